"""Denoisers as wholes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_params

from ssl_diffusion.benchmarks.published import SIZES
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.build import build_network
from ssl_diffusion.models.layers import project_context
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


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def network_and_params(request):
    network = build_network(ARCHITECTURES[request.param])
    return network, random_params(network, *inputs())


def count(architecture: dict, latent: tuple, context_width: int) -> int:
    arguments = jnp.zeros((1, *latent)), jnp.zeros(1), jnp.zeros((1, 1, context_width))
    shapes = jax.eval_shape(build_network(architecture).init, jax.random.key(0), *arguments)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name, parameters", [("unet", 400_920_579), ("dit", 604_974_080)])
def test_a_network_has_the_parameters_of_the_published_checkpoint(name, parameters):
    assert count(*SIZES[name]) == parameters


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


def test_a_learned_variance_is_left_out():
    network = build_network({**DIT, "out_channels": 8})
    params = random_params(network, *inputs())
    whole = network.apply({"params": params}, *inputs())
    np.testing.assert_array_equal(Apply(network)(params, *inputs()), whole[..., :4])
