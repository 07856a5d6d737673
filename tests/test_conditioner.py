"""From embeddings to contexts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_params

from ssl_diffusion.errors import InputError
from ssl_diffusion.models.build import build_conditioner
from ssl_diffusion.models.conditioner import null_context
from ssl_diffusion.models.dit import position_embedding


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
