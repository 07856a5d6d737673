"""Networks against recorded outputs of published implementations; their tables, both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax.traverse_util import unflatten_dict

from ssl_diffusion.errors import InputError
from ssl_diffusion.models.autoencoder import Autoencoder
from ssl_diffusion.models.build import build, build_conditioner, build_network
from ssl_diffusion.weights.layouts import diffusers, ldm
from ssl_diffusion.weights.naming import to_ours, to_published

RELEASED = ("brca_hipt_20x", "crc_ibot_20x", "brca_ctranspath_5x", "naip_vitb16")
SLOW = pytest.mark.slow


def stand_ins(name: str, prefix: str) -> dict[str, np.ndarray]:
    """The stand-in tensors of a manifest whose names begin with `prefix`."""
    return {prefix + key: value for key, value in oracle.tensors(name, prefix).items()}


def empty(name: str) -> dict[str, np.ndarray]:
    """Names and shapes of a manifest; the arrays take no memory."""
    shapes, _ = oracle.manifest(name)
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


def shapes_of(network, *inputs) -> dict:
    return jax.eval_shape(network.init, jax.random.key(0), *map(jnp.asarray, inputs))["params"]


def read(naming, network, tensors, *inputs, computed=()):
    """The network's parameters from published tensors, all of which must be used."""
    params, used, problems = to_ours(naming, shapes_of(network, *inputs), tensors)
    assert not problems
    assert {name for name in tensors if name.startswith(naming.prefix)} - used == set(computed)
    return unflatten_dict(params, sep="/")


def apply(network, params, *inputs, **options) -> np.ndarray:
    compiled = jax.jit(lambda p, *x: network.apply({"params": p}, *x, **options))
    return jax.tree.map(np.asarray, compiled(params, *map(jnp.asarray, inputs)))


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert oracle.difference(found, expected) < oracle.TOLERANCE


# ---- LDM


def latent_network(name: str, recording: dict):
    tensors = stand_ins(name, ldm.UNET.prefix)
    network = build_network(ldm.unet_architecture(tensors))
    inputs = oracle.nhwc(recording["latent"]), recording["timestep"], recording["context"]
    return network, read(ldm.UNET, network, tensors, *inputs), inputs


def test_parity_unet_small():
    recording = oracle.recorded("unet_small")
    network, params, inputs = latent_network("small", recording)
    close(apply(network, params, *inputs), oracle.nhwc(recording["eps"]))


@SLOW
def test_parity_unet_full_of_two_tokens_and_of_one():
    recording = oracle.recorded("unet_full")
    network, params, (latent, timestep, context) = latent_network("brca_hipt_20x", recording)
    assert network.channel_multipliers == (1, 2, 3, 5) and network.attention_levels == (1, 2, 3)
    close(apply(network, params, latent, timestep, context), oracle.nhwc(recording["eps"]))
    one = apply(network, params, latent, timestep, context[:, :1])
    close(one, oracle.nhwc(recording["eps_one_token"]))


@SLOW
def test_bfloat16_of_the_full_unet_stays_near_float32(capsys):
    recording = oracle.recorded("unet_full")
    network, params, (latent, _, context) = latent_network("brca_hipt_20x", recording)
    low = network.clone(dtype=jnp.bfloat16)
    errors = {}
    for timestep in (0, 20, 100, 300, 500, 700, 900, 999):
        at = jnp.full(len(latent), timestep, jnp.float32)
        exact = apply(network, params, latent, at, context)
        error = np.asarray(apply(low, params, latent, at, context)) - exact
        errors[timestep] = float(np.linalg.norm(error) / np.linalg.norm(exact))
    with capsys.disabled():
        print("\nrelative error of bfloat16 by timestep:")
        print("\n".join(f"{timestep:5d} {error:.4f}" for timestep, error in errors.items()))
    assert max(errors.values()) < 0.03


@pytest.mark.parametrize(
    ("name", "checkpoint", "embeddings"),
    [
        ("unet_small", "small", ("embedding",)),
        ("unet_full", "brca_hipt_20x", ("patch_embedding", "region_embedding")),
        ("embedder_patch_only", "crc_ibot_20x", ("embedding",)),
    ],
)
def test_parity_conditioner(name, checkpoint, embeddings):
    recording = oracle.recorded(name)
    tensors = stand_ins(checkpoint, ldm.CONDITIONER.prefix)
    conditioner = build_conditioner(ldm.conditioner_architecture(tensors)[0])
    embedding = np.concatenate([recording[key] for key in embeddings], axis=-1)[:, None]
    params = read(ldm.CONDITIONER, conditioner, tensors, embedding)
    close(apply(conditioner, params, embedding), recording["context"])


def test_parity_conditioner_takes_zeros_for_an_absent_region():
    recording = oracle.recorded("unet_full")
    tensors = stand_ins("brca_hipt_20x", ldm.CONDITIONER.prefix)
    conditioner = build_conditioner(ldm.conditioner_architecture(tensors)[0])
    patch = recording["patch_embedding"][:, None]
    params = read(ldm.CONDITIONER, conditioner, tensors, patch)
    context = apply(conditioner, params, patch)
    close(context[:, 0], recording["context"][:, 0])
    bias = tensors["cond_stage_model.region_fc.bias"]
    np.testing.assert_array_equal(context[:, 1], np.broadcast_to(bias, context[:, 1].shape))


def test_parity_vq_full():
    recording = oracle.recorded("vq_full")
    tensors = stand_ins("brca_hipt_20x", ldm.FIRST_STAGE.prefix)
    network = build(Autoencoder, ldm.autoencoder_architecture(tensors))
    image, latent = oracle.nhwc(recording["image"]), oracle.nhwc(recording["latent"])
    params = read(ldm.FIRST_STAGE, network, tensors, image)
    close(apply(network, params, image, method="encode"), latent)
    indices = apply(network, params, latent, method="nearest_code")
    assert (indices == recording["indices"]).mean() >= 0.99
    # Decoded from the recorded codes: a rounding between two codes would be another image.
    decoded = apply(network, params, params["codes"][recording["indices"]], method="decode")
    close(decoded, oracle.nhwc(recording["decoded"]))


def networks_of(tensors: dict[str, np.ndarray], dim: int) -> list[tuple]:
    """(table, network, inputs) of the U-Net, the first stage and the conditioner."""
    unet = build_network(ldm.unet_architecture(tensors))
    first_stage = build(Autoencoder, ldm.autoencoder_architecture(tensors))
    conditioner = build_conditioner(ldm.conditioner_architecture(tensors)[0])
    image, context = np.zeros((1, 64, 64, 3)), np.zeros((1, 1, conditioner.width))
    return [
        (ldm.UNET, unet, (image, np.zeros(1), context)),
        (ldm.FIRST_STAGE, first_stage, (image,)),
        (ldm.CONDITIONER, conditioner, (np.zeros((1, 1, dim)),)),
    ]


@pytest.mark.parametrize("name", RELEASED)
def test_parity_every_tensor_of_a_released_checkpoint_is_read_and_written_back(name):
    tensors = empty(name)
    parts = networks_of(tensors, dim=384 if name == "brca_hipt_20x" else 768)
    written = {}
    for naming, network, inputs in parts:
        written |= to_published(naming, read(naming, network, tensors, *inputs))
    assert {key: value.shape for key, value in written.items()} == {
        key: value.shape for key, value in tensors.items() if key in written
    }
    schedule = {key for key in tensors if key not in written}
    assert {tensors[key].shape for key in schedule} == {(1000,)} and len(schedule) == 12
    assert not any("." in key for key in schedule)
    (_, unet, _), (_, first_stage, _), _ = parts
    assert unet == build_network(
        {
            "name": "unet",
            "base_channels": 192,
            "channel_multipliers": [1, 2, 3, 5],
            "blocks_per_level": 2,
            "attention_levels": [1, 2, 3],
            "heads": 1,
            "out_channels": 3,
        }
    )
    assert first_stage == Autoencoder(codebook=8192)


def test_parity_values_of_an_ldm_checkpoint_are_written_back():
    tensors = stand_ins("small", "")
    written = {}
    for naming, network, inputs in networks_of(tensors, dim=48):
        written |= to_published(naming, read(naming, network, tensors, *inputs))
    assert tensors.keys() - written.keys() == {"betas"}
    for key, value in written.items():
        np.testing.assert_array_equal(value, tensors[key], err_msg=key)


@pytest.mark.parametrize(
    ("infer", "layer"),
    [
        (ldm.unet_architecture, "model.diffusion_model.out.2"),
        (ldm.autoencoder_architecture, "first_stage_model.encoder.conv_out"),
        (ldm.conditioner_architecture, "cond_stage_model.patch_fc"),
    ],
)
def test_an_architecture_is_not_made_of_tensors_that_are_not_there(infer, layer):
    tensors = empty("small")
    expected = infer(tensors)
    tensors[f"{layer}.bias"] = np.zeros((0, 3))  # the weight alone tells it
    assert infer(tensors) == expected
    for weight in (np.zeros((0, 3)), None):
        tensors[f"{layer}.weight"] = weight
        if weight is None:
            del tensors[f"{layer}.weight"]
        with pytest.raises(InputError, match=f"{layer}.weight"):
            infer(tensors)


# ---- diffusers


@pytest.mark.parametrize(
    "name",
    ["pixart_small", "pixart_small_16tokens", pytest.param("pixart_256_full", marks=SLOW)],
)
def test_parity_pixart(name):
    recording = oracle.recorded(name)
    tensors, (_, config) = oracle.tensors(name), oracle.manifest(name)
    network = build_network(diffusers.dit_architecture(config))
    conditioner = build_conditioner(diffusers.conditioner_architecture(config))
    embedding = recording["embedding"]
    projection = read(diffusers.TOKEN_PROJECTION, conditioner, tensors, embedding)
    context = apply(conditioner, projection, embedding)

    table = diffusers.transformer(network.patch_size)
    inputs = oracle.nhwc(recording["latent"]), recording["timestep"].astype(np.float32), context
    others = {k for k in tensors if k.startswith(diffusers.TOKEN_PROJECTION.prefix)}
    computed = others | tensors.keys() & set(diffusers.COMPUTED)
    params = read(table, network, tensors, *inputs, computed=computed)
    close(apply(network, params, *inputs), oracle.nhwc(recording["output"]))

    written = to_published(table, params) | to_published(diffusers.TOKEN_PROJECTION, projection)
    assert written.keys() == tensors.keys() - set(diffusers.COMPUTED)
    for key, value in written.items():
        np.testing.assert_array_equal(value, tensors[key], err_msg=key)


@pytest.mark.parametrize("name", ["kl_f8_small", "kl_f8_quant_conv_small", "kl_f8_full"])
def test_parity_kl(name):
    recording = {key: oracle.nhwc(value) for key, value in oracle.recorded(name).items()}
    tensors, (_, config) = oracle.tensors(name), oracle.manifest(name)
    network = build(Autoencoder, diffusers.autoencoder_architecture(config))
    assert network.factor == 8
    table = diffusers.first_stage(len(network.channel_multipliers))
    params = read(table, network, tensors, recording["image"])
    mean, log_variance = apply(network, params, recording["image"], method="moments")
    close(mean, recording["mean"])
    close(log_variance, recording["logvar"])
    close(apply(network, params, recording["mean"], method="decode"), recording["decoded"])

    written = to_published(table, params)
    assert written.keys() == tensors.keys()
    for key, value in written.items():
        np.testing.assert_array_equal(value, tensors[key], err_msg=key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cross_attention_dim": 768}, "cross_attention_dim is 768, expected 64"),
        ({"use_additional_conditions": True}, "use_additional_conditions is True, expected False"),
        ({"norm_type": "ada_norm"}, "norm_type is 'ada_norm', expected 'ada_norm_single'"),
        ({"num_layers": None}, "num_layers is None, expected a positive whole number"),
    ],
)
def test_a_transformer_that_is_not_ours_is_refused(change, message):
    _, config = oracle.manifest("pixart_small")
    with pytest.raises(InputError, match=message):
        diffusers.dit_architecture(config | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_num_groups": 16}, "norm_num_groups is 16, expected 32"),
        ({"use_post_quant_conv": True}, "use_post_quant_conv is True, expected False"),
        ({"block_out_channels": [64, 96]}, r"is \[64, 96\], expected multiples of the first"),
        ({"block_out_channels": "64"}, "is '64', expected a list of widths"),
        ({"act_fn": "relu", "in_channels": 4}, "in_channels is 4, expected 3; act_fn is 'relu'"),
    ],
)
def test_an_autoencoder_that_is_not_ours_is_refused(change, message):
    _, config = oracle.manifest("kl_f8_small")
    with pytest.raises(InputError, match=message):
        diffusers.autoencoder_architecture(config | change)


def test_an_interpolation_scale_that_is_absent_follows_the_sample_size():
    _, config = oracle.manifest("pixart_small")
    absent = {"interpolation_scale": None}
    for size, scale in ((32, 1), (128, 2)):
        architecture = diffusers.dit_architecture(config | absent | {"sample_size": size})
        assert architecture["interpolation_scale"] == scale
