"""Layers that the networks are made of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_params

from ssl_diffusion.models.dit import patchify, position_embedding, unpatchify
from ssl_diffusion.models.layers import Attention, Dense, GroupNorm, timestep_embedding
from ssl_diffusion.models.unet import Downsample, ResidualBlock, Upsample


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
