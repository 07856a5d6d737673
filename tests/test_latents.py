"""Latents of a batch: drawn from stored posteriors, or encoded on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_config, random_params, shrink
from test_models import DIT, UNET, inputs
from test_prepare import recipe

from ssl_diffusion import demo
from ssl_diffusion.data.records import open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.autoencoder import Autoencoder
from ssl_diffusion.models.build import build_network
from ssl_diffusion.prepare import prepare
from ssl_diffusion.rates import matmul_flop
from ssl_diffusion.training.tasks.denoiser import DenoiserTask
from ssl_diffusion.training.tasks.latents import LatentInput, make_input
from ssl_diffusion.weights.model import FirstStage

KEYS = jax.random.split(jax.random.key(0), 4000)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Of a piece of the slide, with posteriors."""
    folder = tmp_path_factory.mktemp("posteriors")
    prepare(recipe(folder, posterior=True), folder / "records")
    return open_records(folder / "records")


def config_of(**data):
    config = shrink(load_config("demo", "dit"))
    config.data.update({"posterior": True} | data)
    return config


def test_a_stored_posterior_is_drawn_afresh_for_every_key():
    source = LatentInput((2, 2, 3), {}, {}, None, shift=0.5, scale=2.0)
    mean = jnp.arange(12.0).reshape(2, 2, 3)
    deviation = jnp.linspace(0.1, 3.0, 12).reshape(2, 2, 3)
    batch = {
        "latent": jnp.broadcast_to(mean, (4000, 2, 2, 3)).astype(jnp.float16),
        "latent_std": jnp.broadcast_to(deviation, (4000, 2, 2, 3)).astype(jnp.float16),
    }
    drawn = np.asarray(source.latent({}, batch, KEYS))
    assert drawn.dtype == np.float32
    # Of 4,000 draws the mean is known to 1/63 of a deviation, the deviation to 1/89 of itself.
    z = (drawn.mean(0) - (mean - 0.5) * 2.0) / (2.0 * deviation)
    assert np.abs(z).max() < 4 / 63
    np.testing.assert_allclose(drawn.std(0), 2.0 * deviation, rtol=4 / 89)
    assert len({example.tobytes() for example in drawn}) == 4000
    # Pixels and channels are independent, and a key's draw does not depend on the batch.
    correlation = np.corrcoef(drawn.reshape(4000, 12).T) - np.eye(12)
    assert np.abs(correlation).max() < 5 / 63
    some = {name: values[:3] for name, values in batch.items()}
    np.testing.assert_array_equal(source.latent({}, some, KEYS[5:8]), drawn[5:8])


def test_a_latent_without_a_deviation_is_scaled_and_nothing_else():
    source = LatentInput((2, 2, 3), {}, {}, None, shift=0.5, scale=2.0)
    latent = jnp.arange(24.0, dtype=jnp.float16).reshape(2, 2, 2, 3)
    found = source.latent({}, {"latent": latent}, KEYS[:2])
    np.testing.assert_array_equal(found, 2 * np.arange(24.0).reshape(2, 2, 2, 3) - 1)


def test_images_encoded_on_the_device_give_the_latents_of_the_records(records):
    """Mean and deviation, told apart by drawing with the same keys; to the rounding of float16."""
    stored = make_input(config_of(), records)
    encoded = make_input(config_of(input="image"), records)
    assert list(stored.fields) == ["latent", "latent_std"] and list(encoded.fields) == ["image"]
    assert stored.shape == encoded.shape == (16, 16, 6)
    both = ("image", "latent", "latent_std")
    batch = records.source("train", both, raw=True).spread(8)
    keys = KEYS[:8]
    assert (batch["latent_std"] > 0).all()
    from_images, moments = jax.jit(encoded.latent), {name: batch[name] for name in stored.fields}
    of_images = from_images(encoded.frozen, {"image": batch["image"]}, keys)
    of_records = stored.latent({}, moments, keys)
    size = np.abs(batch["latent"]).max() * stored.scale
    np.testing.assert_allclose(of_images, of_records, atol=size * 2**-10)
    # The difference of two draws is of the deviation alone.
    by_images = from_images(encoded.frozen, {"image": batch["image"]}, KEYS[8:16]) - of_images
    by_records = stored.latent({}, moments, KEYS[8:16]) - of_records
    assert np.abs(by_records).max() > 0.02
    np.testing.assert_allclose(by_images, by_records, rtol=2e-3, atol=5e-6)
    # Scaled they are what the records give, which is what a sampler decodes.
    scaled = records.source("train", ("latent",)).spread(8)["latent"]
    still = batch | {"latent_std": np.zeros_like(batch["latent_std"])}
    np.testing.assert_allclose(stored.latent({}, still, keys), scaled, rtol=1e-6, atol=1e-6)


def test_a_quantised_first_stage_has_nothing_to_draw():
    network = Autoencoder(32, (1,), 1, 3, middle_attention=False, codebook=7)
    image = np.random.default_rng(0).integers(0, 255, (2, 4, 4, 3), np.uint8)
    params = random_params(network, jnp.zeros((1, 4, 4, 3)))
    source = LatentInput((4, 4, 3), {}, params, network, shift=1.0, scale=3.0)
    latent = jax.jit(source.latent)
    found = latent(params, {"image": image}, KEYS[:2])
    features = FirstStage(network, params, {}).encode(image)
    np.testing.assert_allclose(found, 3 * (features - 1), atol=1e-5)
    np.testing.assert_array_equal(found, latent(params, {"image": image}, KEYS[2:4]))


def test_without_records_shapes_are_those_of_the_config():
    """What --plan compiles: the autoencoder's parameters as shapes alone."""
    task = DenoiserTask(config_of(input="image", autoencoder=demo.AUTOENCODER), None)
    frozen = jax.tree.leaves(task.frozen)
    assert frozen and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in frozen)
    batch = task.batch(4)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in batch.items()} == {
        "embedding": ((4, 1, 192), jnp.float32),
        "image": ((4, 64, 64, 3), jnp.uint8),
    }
    params = jax.eval_shape(task.init, jax.random.key(0))
    keys = jax.eval_shape(lambda: KEYS[:4])
    loss, _ = jax.eval_shape(task.loss, params, task.frozen, batch, keys)
    assert loss.shape == (4,)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"latent": {"channels": 4, "factor": 4}}, r"the shape \[16, 16, 6\].* say \[16, 16, 4\]"),
        ({"latent": {"channels": 6, "factor": 8}}, r"the shape \[16, 16, 6\].* say \[8, 8, 6\]"),
        ({"input": "pixels"}, "data.input is 'pixels', expected latent or image"),
    ],
)
@pytest.mark.parametrize("source", ["latent", "image"])
def test_latents_of_another_shape_are_refused(records, change, message, source):
    with pytest.raises(InputError, match=message):
        make_input(config_of(**({"input": source} | change)), records)


def test_without_records_an_autoencoder_of_another_shape_is_refused():
    change = {"input": "image", "latent": {"channels": 16, "factor": 8}}
    with pytest.raises(InputError, match=r"demo:autoencoder have the shape \[16, 16, 6\]"):
        make_input(config_of(**change), None)


def test_records_without_what_the_config_reads_are_refused(records, tmp_path):
    prepare(recipe(records.folder.parent, autoencoder="", encoder=""), tmp_path / "patches")
    with pytest.raises(InputError, match="were made without an autoencoder"):
        make_input(config_of(), open_records(tmp_path / "patches"))


@pytest.mark.parametrize(
    "architecture",
    [{**UNET, "channel_multipliers": [1], "attention_levels": [0]}, DIT],
    ids=["unet", "dit"],
)
def test_remat_changes_neither_loss_nor_gradient(architecture):
    """And it computes something a second time."""
    plain = build_network(architecture)
    params, (latent, timestep, context) = random_params(plain, *inputs()), inputs()

    def value_and_gradient(network):
        def loss(params):
            output = network.apply({"params": params}, latent, timestep, context)
            return jnp.square(output).mean()

        traced = jax.make_jaxpr(jax.grad(loss))(params)
        return *jax.jit(jax.value_and_grad(loss))(params), matmul_flop(traced.jaxpr)

    loss, gradient, flop = value_and_gradient(plain)
    again, same, more = value_and_gradient(plain.clone(remat=True))
    # A gradient is three times the products of a forward, of which most are taken once more.
    assert 1.1 * flop < more < 4 / 3 * flop
    np.testing.assert_allclose(again, loss, rtol=1e-6)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    for one, other in zip(*map(jax.tree.leaves, (gradient, same)), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6 * largest)
