from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_diffusion.benchmark import SIZES, matmul_flop
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.build import build_conditioner, build_network
from ssl_diffusion.models.conditioner import null_context
from ssl_diffusion.models.dit import patchify, position_embedding, unpatchify
from ssl_diffusion.models.layers import (
    Attention,
    Dense,
    GroupNorm,
    project_context,
    timestep_embedding,
)
from ssl_diffusion.models.unet import Downsample, ResidualBlock, Upsample
from ssl_diffusion.weights.model import Apply

UNET = {
    "name": "unet",
    "base_channels": 32,
    "channel_multipliers": [1, 2],
    "blocks_per_level": 1,
    "attention_levels": [1],
    "heads": 2,
    "out_channels": 4,
}
DIT = {"name": "dit", "patch_size": 2, "width": 32, "depth": 2, "heads": 2, "out_channels": 4}
ARCHITECTURES = {
    "unet": UNET,
    "unet_beyond": {**UNET, "scale_shift": True, "pooled_context": True},
    "dit_single": DIT,
    "dit_block": {**DIT, "adaln": "block", "pooled_context": True},
}


def inputs(tokens: int = 1, height: int = 4, width: int = 8):
    """Latent, timestep and context of two examples."""
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((2, height, width, 4), np.float32)
    context = rng.standard_normal((2, tokens, 6), np.float32)
    return jnp.asarray(latent), jnp.array([3.0, 700.0]), jnp.asarray(context)


def random_params(network: nn.Module, *args):
    """Parameters without the zeros of an initialisation, which hide what lies behind them."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), *args)["params"]
    rng = np.random.default_rng(1)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = np.prod(leaf.shape[:-1])  # 1 for vectors
        return jnp.asarray(
            rng.standard_normal(leaf.shape, np.float32) / np.sqrt(fan_in), leaf.dtype
        )

    return jax.tree.map(draw, shapes)


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def network_and_params(request):
    network = build_network(ARCHITECTURES[request.param])
    return network, random_params(network, *inputs())


def count(architecture: dict, latent: tuple, context_width: int) -> int:
    arguments = jnp.zeros((1, *latent)), jnp.zeros(1), jnp.zeros((1, 1, context_width))
    shapes = jax.eval_shape(build_network(architecture).init, jax.random.key(0), *arguments)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


# ---- networks


def test_unet_has_the_parameters_of_the_published_checkpoint():
    published = {
        "name": "unet",
        "base_channels": 192,
        "channel_multipliers": [1, 2, 3, 5],
        "blocks_per_level": 2,
        "attention_levels": [1, 2, 3],
        "heads": 1,
        "transformer_depth": 1,
        "out_channels": 3,
    }
    assert count(published, (64, 64, 3), 512) == 400_920_579


def test_dit_has_the_parameters_of_the_published_checkpoint():
    published = {
        "name": "dit",
        "patch_size": 2,
        "width": 1152,
        "depth": 28,
        "heads": 16,
        "out_channels": 32,
        "interpolation_scale": 0.5,
    }
    assert count(published, (32, 32, 16), 1152) == 604_974_080


def test_predicts_zero_at_initialisation(network_and_params):
    network, _ = network_and_params
    output, _ = network.init_with_output(jax.random.key(0, impl="rbg"), *inputs())
    assert output.shape == (2, 4, 8, 4)
    assert output.dtype == jnp.float32
    assert not output.any()


@pytest.mark.parametrize("changed", ["latent", "timestep", "context"])
def test_an_example_depends_on_its_own_inputs_only(network_and_params, changed):
    network, params = network_and_params
    arguments = dict(zip(("latent", "timestep", "context"), inputs(), strict=True))
    before = network.apply({"params": params}, *arguments.values())
    arguments[changed] = arguments[changed].at[1].add(1.0)
    after = network.apply({"params": params}, *arguments.values())
    np.testing.assert_array_equal(before[0], after[0])
    assert jnp.abs(before[1] - after[1]).max() > 1e-3


def test_one_token_is_the_same_as_that_token_twice(network_and_params):
    network, params = network_and_params
    latent, timestep, context = inputs()
    one = network.apply({"params": params}, latent, timestep, context)
    two = network.apply({"params": params}, latent, timestep, jnp.repeat(context, 2, axis=1))
    np.testing.assert_allclose(one, two, atol=1e-5 * float(jnp.std(two)))


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_context_projected_beforehand_gives_the_same(network_and_params, tokens):
    network, params = network_and_params
    latent, timestep, context = inputs(tokens)
    projected = project_context(params, context, jnp.float32)
    found = network.apply({"params": params}, latent, timestep, projected)
    expected = network.apply({"params": params}, latent, timestep, context)
    np.testing.assert_allclose(found, expected, atol=2e-5)


# Products and convolutions of one forward. The published U-Net takes 208.5 GFLOP; with one token
# the queries and outputs of its cross-attentions, 2 * 2 n c^2 each, need not be computed.
UNET_GFLOP = 208.5 - 4e-9 * (5 * 1024 * 384**2 + 5 * 256 * 576**2 + 6 * 64 * 960**2)
DIT_GFLOP = 1e-9 * 28 * (2 * 12 * 256 * 1152**2 + 4 * 256**2 * 1152)


@pytest.mark.parametrize(("name", "gflop"), [("unet", UNET_GFLOP), ("dit", DIT_GFLOP)])
def test_benchmark_counts_the_flop_of_the_published_sizes(name, gflop):
    architecture, latent, width = SIZES[name]
    network = build_network(architecture)
    latent, timestep, tokens = (
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, *latent), (1,), (1, 1, width))
    )
    init = partial(network.init, jax.random.key(0))
    params = jax.eval_shape(init, latent, timestep, tokens)["params"]
    context = jax.eval_shape(partial(project_context, dtype=jnp.float32), params, tokens)

    def apply(params, *arguments):
        return network.apply({"params": params}, *arguments)

    jaxpr = jax.make_jaxpr(apply)(params, latent, timestep, context).jaxpr
    assert matmul_flop(jaxpr) / 1e9 == pytest.approx(gflop, rel=0.005)


def test_bfloat16_computes_about_the_same_from_float32_parameters(network_and_params):
    network, params = network_and_params
    exact = network.apply({"params": params}, *inputs(tokens=2))
    low = network.clone(dtype=jnp.bfloat16)
    initial = jax.eval_shape(low.init, jax.random.key(0), *inputs(tokens=2))["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype("float32")}
    output = low.apply({"params": params}, *inputs(tokens=2))
    assert output.dtype == jnp.float32
    error = jnp.sqrt(jnp.mean(jnp.square(output - exact)) / jnp.mean(jnp.square(exact)))
    assert 0 < error < 0.03


@pytest.mark.parametrize("architecture", [UNET, DIT], ids=["unet", "dit"])
def test_a_latent_of_the_wrong_size_is_refused(architecture):
    network = build_network(architecture)
    with pytest.raises(InputError, match="latent of 5x8, expected multiples of 2"):
        jax.eval_shape(network.init, jax.random.key(0), *inputs(height=5))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({**UNET, "name": "vit"}, "network name 'vit', expected one of unet, dit"),
        ({}, "network name None"),
        ({**UNET, "patch_size": 2}, "unknown patch_size.*expected base_channels, channel_mult"),
        ({"name": "dit", "patch_size": 2, "width": 32}, "missing depth, heads, out_channels"),
        ({**UNET, "base_channels": "32"}, "UNet: base_channels is '32', expected a positive int"),
        ({**UNET, "heads": True}, "UNet: heads is True, expected a positive int"),
        ({**DIT, "heads": 0}, "DiT: heads is 0, expected a positive int"),
        (
            {**UNET, "channel_multipliers": [0, 1]},
            r"channel_multipliers \(0, 1\), expected one positive",
        ),
        (
            {**UNET, "channel_multipliers": [1, 2.0]},
            "channel_multipliers is .*expected whole numbers",
        ),
        ({**UNET, "scale_shift": 1}, "scale_shift is 1, expected a bool"),
        ({**UNET, "base_channels": 48}, "base_channels 48, expected a multiple of 32"),
        ({**UNET, "heads": 3}, "heads 3 does not divide"),
        ({**UNET, "attention_levels": [2]}, r"attention_levels \(2,\), expected indices below 2"),
        ({**DIT, "heads": 5}, r"width 32, expected a multiple of heads \(5\)"),
        ({**DIT, "adaln": "zero"}, "adaln 'zero', expected 'single' or 'block'"),
    ],
)
def test_a_wrong_architecture_is_named(architecture, message):
    with pytest.raises(InputError, match=message):
        build_network(architecture)


# ---- layers


def test_timestep_embedding_is_cos_then_sin_of_falling_frequencies():
    embedding = timestep_embedding(jnp.array([0.0, 10.0]), 4)
    expected = [[1, 1, 0, 0], [np.cos(10), np.cos(0.1), np.sin(10), np.sin(0.1)]]
    np.testing.assert_allclose(embedding, expected, atol=1e-6)


def test_group_norm_gives_every_group_zero_mean_and_unit_variance():
    rng = np.random.default_rng(0)
    x = 1e-2 * rng.standard_normal((2, 6, 5, 64)) * np.arange(1, 65) + 3.0
    x = jnp.asarray(x, jnp.float32)
    layer = GroupNorm(1e-4)
    variables = {"params": {"scale": jnp.arange(64.0), "bias": jnp.ones(64)}}
    groups = np.asarray(x, np.float64).reshape(2, 30, 32, 2)
    deviation = groups - groups.mean((1, 3), keepdims=True)
    normal = deviation / np.sqrt(np.square(deviation).mean((1, 3), keepdims=True) + 1e-4)
    expected = normal.reshape(x.shape) * np.arange(64.0) + 1
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-3)


def test_group_norm_keeps_float32_statistics_below_a_bfloat16_output():
    # In bfloat16, 100 + 0.1 is 100: the variance would be lost.
    x = 100 + 0.1 * jax.random.normal(jax.random.key(0), (1, 256, 32))
    layer = GroupNorm(1e-6, dtype=jnp.bfloat16)
    y, _ = layer.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert float(jnp.std(y.astype(jnp.float32))) == pytest.approx(1, abs=0.01)


def test_attention_is_a_softmax_over_scaled_dot_products():
    rng = np.random.default_rng(0)
    x, context = rng.standard_normal((1, 5, 8)), rng.standard_normal((1, 3, 6))
    layer = Attention(heads=2)
    arguments = jnp.asarray(x, jnp.float32), jnp.asarray(context, jnp.float32)
    params = random_params(layer, *arguments)
    output = layer.apply({"params": params}, *arguments)
    weights = {name: np.asarray(value["kernel"], np.float64) for name, value in params.items()}
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        q, k = x[0] @ weights["to_q"][:, head], context[0] @ weights["to_k"][:, head]
        scores = np.exp(q @ k.T / 2)  # 2 = sqrt(4), the width of a head
        values = context[0] @ weights["to_v"][:, head]
        heads.append(scores / scores.sum(1, keepdims=True) @ values)
    expected = np.concatenate(heads, 1) @ weights["to_out"] + np.asarray(params["to_out"]["bias"])
    np.testing.assert_allclose(output[0], expected, atol=1e-5)


def test_dense_is_linen_dense_on_any_number_of_axes():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    params = nn.Dense(7).init(jax.random.key(1), x)
    expected = nn.Dense(7).apply(params, x)
    np.testing.assert_allclose(Dense(7).apply(params, x), expected, atol=1e-6)


def test_scale_and_shift_of_zero_are_those_of_the_plain_block():
    x, embedding = jax.random.normal(jax.random.key(0), (2, 4, 4, 32)), jnp.ones((2, 6))
    outputs = []
    for scale_shift in (False, True):
        block = ResidualBlock(32, scale_shift)
        params = random_params(block, x, embedding)
        # The other weights are equal by hand: the draws differ where shapes do.
        kernel = jnp.asarray(np.random.default_rng(2).standard_normal((3, 3, 32, 32)) / 17)
        params["in_conv"]["kernel"] = params["out_conv"]["kernel"] = kernel.astype(jnp.float32)
        for name in ("in_norm", "out_norm", "in_conv", "out_conv"):
            params[name]["bias"] = jnp.full(32, 0.1)
        for name in ("in_norm", "out_norm"):
            params[name]["scale"] = jnp.linspace(0.5, 1.5, 32)
        params["emb"] = jax.tree.map(jnp.zeros_like, params["emb"])
        outputs.append(block.apply({"params": params}, x, embedding))
    np.testing.assert_array_equal(*outputs)
    assert jnp.abs(outputs[0] - x).max() > 0.1


def test_downsampling_pads_every_side_alike():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    first_tap = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1)
    variables = {"params": {"op": {"kernel": first_tap, "bias": jnp.zeros(1)}}}
    # Output pixel i reads input pixels 2i - 1, 2i, 2i + 1: here the first of them.
    np.testing.assert_array_equal(Downsample().apply(variables, x)[0, ..., 0], [[0, 0], [0, 5]])


def test_upsampling_repeats_pixels():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    centre = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
    variables = {"params": {"conv": {"kernel": centre, "bias": jnp.zeros(1)}}}
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    np.testing.assert_array_equal(Upsample().apply(variables, x)[0, ..., 0], expected)


def test_positions_tell_the_column_first_then_the_row():
    table = position_embedding(3, 4, 8, interpolation_scale=0.5).reshape(3, 4, 8)
    assert table.dtype == np.float32
    column, row = 6, 2  # positions of column 3 and row 1 at a scale of 0.5
    expected = [f(p * w) for p in (column, row) for f in (np.sin, np.cos) for w in (1, 0.01)]
    np.testing.assert_allclose(table[1, 3], expected, atol=1e-6)


def test_patches_are_row_major_and_put_back():
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3).astype(jnp.float32)
    patches = patchify(x, 2)
    np.testing.assert_array_equal(patches[1, 4], x[1, 2:4, 2:4].ravel())
    np.testing.assert_array_equal(unpatchify(patches, 2, 2), x)


# ---- conditioner


@pytest.fixture(scope="module")
def conditioner():
    module = build_conditioner({"name": "linear", "width": 5})
    return module, random_params(module, jnp.zeros((1, 2, 8)))


def test_context_is_a_linear_layer_on_unit_vectors(conditioner):
    module, params = conditioner
    embedding = jax.random.normal(jax.random.key(0), (3, 2, 8)) * jnp.array([[[1.0], [50.0]]])
    unit = embedding / jnp.linalg.norm(embedding, axis=-1, keepdims=True)
    expected = unit @ params["projection"]["kernel"] + params["projection"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, embedding), expected, atol=1e-6)


def test_a_dropped_example_gets_the_null_context_and_the_others_do_not(conditioner):
    module, params = conditioner
    embedding = jax.random.normal(jax.random.key(0), (3, 2, 8))
    kept = module.apply({"params": params}, embedding)
    context = module.apply({"params": params}, embedding, jnp.array([False, True, False]))
    null = null_context(module, params, 2, 8)
    assert null.shape == (2, 5)
    np.testing.assert_array_equal(context[1], null)
    np.testing.assert_array_equal(context[::2], kept[::2])
    assert jnp.abs(kept - null).max(axis=(1, 2)).min() > 0.1


def test_a_zero_embedding_is_finite_and_null_and_so_is_its_gradient(conditioner):
    module, params = conditioner
    zero = jnp.zeros((1, 2, 8))
    context = module.apply({"params": params}, zero)
    np.testing.assert_array_equal(context[0], null_context(module, params, 2, 8))
    gradient = jax.grad(lambda e: module.apply({"params": params}, e).sum())(zero)
    assert jnp.isfinite(gradient).all()


def test_parts_become_a_token_each_through_a_layer_of_their_own():
    module = build_conditioner({"name": "linear", "width": 5, "parts": [3, 4]})
    embedding = jax.random.normal(jax.random.key(0), (2, 1, 7))
    params = random_params(module, embedding)
    context = module.apply({"params": params}, embedding)
    assert context.shape == (2, 2, 5)
    for i, part in enumerate((embedding[:, 0, :3], embedding[:, 0, 3:])):
        unit = part / jnp.linalg.norm(part, axis=-1, keepdims=True)
        layer = params[f"projection_{i}"]
        np.testing.assert_allclose(context[:, i], unit @ layer["kernel"] + layer["bias"], atol=1e-6)
    first = module.apply({"params": params}, embedding[..., :3])
    np.testing.assert_array_equal(first[:, 0], context[:, 0])
    null = null_context(module, params, 1, 7)
    np.testing.assert_array_equal(first[:, 1], jnp.broadcast_to(null[1], (2, 5)))
    np.testing.assert_array_equal(null, null_context(module, params, 1, 3))
    for shape in ((2, 1, 4), (2, 2, 7)):
        with pytest.raises(InputError, match=r"expected one token of 3 or of 7 \(3 \+ 4\)"):
            module.apply({"params": params}, jnp.zeros(shape))


@pytest.mark.parametrize("tokens", [1, 4])
def test_token_projection_drops_to_its_null_embedding_and_tells_tokens_apart(tokens):
    module = build_conditioner({"name": "tokens", "width": 6, "grid": 8})
    embedding = jax.random.normal(jax.random.key(0), (2, tokens, 8))
    params = random_params(module, embedding)
    context = module.apply({"params": params}, embedding, jnp.array([False, True]))
    np.testing.assert_array_equal(context[0], module.apply({"params": params}, embedding)[0])
    null = null_context(module, params, tokens, 8)
    np.testing.assert_allclose(context[1], null, atol=1e-6)
    of_null = module.apply({"params": params}, params["null"][None])
    np.testing.assert_allclose(of_null[0], null, atol=1e-6)
    # Equal tokens differ by their positions alone: 8 / 2 / 2 apart, from floor(8 / 4) on.
    equal = module.apply({"params": params}, jnp.ones((1, tokens, 8)))[0]
    if tokens > 1:
        table = position_embedding(2, 2, 8, interpolation_scale=0.5, offset=2.0)
        assert table[0, 0] == pytest.approx(np.sin(2)) and table[1, 0] == pytest.approx(np.sin(4))
        hidden = nn.gelu(
            (1 + table) @ params["projection"]["linear_1"]["kernel"]
            + params["projection"]["linear_1"]["bias"]
        )
        layer = params["projection"]["linear_2"]
        np.testing.assert_allclose(equal, hidden @ layer["kernel"] + layer["bias"], atol=1e-5)
        with pytest.raises(InputError, match="embedding of 3 tokens, expected one or a square"):
            jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 3, 8)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 5}, "conditioner name None, expected one of linear, tokens"),
        ({"name": "tokens", "width": 5}, "TokenProjection: .*missing grid"),
        ({"name": "linear", "width": 5, "parts": [1.5]}, "parts is .*expected whole numbers"),
    ],
)
def test_a_wrong_conditioner_is_named(fields, message):
    with pytest.raises(InputError, match=message):
        build_conditioner(fields)


def test_a_learned_variance_is_left_out():
    network = build_network({**DIT, "out_channels": 8})
    params = random_params(network, *inputs())
    whole = network.apply({"params": params}, *inputs())
    np.testing.assert_array_equal(Apply(network)(params, *inputs()), whole[..., :4])
