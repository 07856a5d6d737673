"""What networks predict: conversions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_diffusion.diffusion.denoiser import make_denoiser
from ssl_diffusion.diffusion.loss import add_noise
from ssl_diffusion.diffusion.prediction import KINDS, target, to_prediction
from ssl_diffusion.diffusion.schedule import make_schedule
from ssl_diffusion.errors import InputError


@pytest.mark.parametrize("circle", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_conversions_round_trip(kind, circle):
    keys = jax.random.split(jax.random.key(0), 2)
    x0, eps = (jax.random.normal(key, (5, 3, 4, 2)) for key in keys)
    alpha = jnp.array([0.999, 0.9, 0.6, 0.3, 0.05])
    sigma = jnp.sqrt(1 - alpha**2) if circle else 1.2 - alpha
    x = add_noise(x0, eps, alpha, sigma)
    output = target(kind, x0, eps, alpha, sigma)
    found = to_prediction(kind, output, x, alpha, sigma)
    np.testing.assert_allclose(found.x0, x0, atol=2e-5)
    np.testing.assert_allclose(found.eps, eps, atol=2e-5)
    np.testing.assert_allclose(target(kind, *found, alpha, sigma), output, atol=2e-5)


def test_v_is_that_of_salimans_and_ho():
    one = jnp.ones((1, 1, 1, 1))
    v = target("v", 2 * one, 3 * one, jnp.array([0.6]), jnp.array([0.8]))
    np.testing.assert_allclose(v, 0.6 * 3 - 0.8 * 2, rtol=1e-6)


def test_flow_is_noise_less_image():
    one = jnp.ones((1, 1, 1, 1))
    u = target("flow", 2 * one, 3 * one, jnp.array([0.6]), jnp.array([0.4]))
    np.testing.assert_array_equal(u, one)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_ends_of_a_schedule_are_finite_with_finite_gradients(kind, alpha):
    x = jnp.full((1, 2, 2, 1), 1.5)
    levels = jnp.array([alpha]), jnp.array([(1 - alpha**2) ** 0.5])

    def total(output):
        return sum(part.sum() for part in to_prediction(kind, output, x, *levels))

    value, gradient = jax.value_and_grad(total)(0.5 * x)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_an_unknown_kind_is_named():
    x = jnp.zeros((1, 2, 2, 1))
    with pytest.raises(InputError, match="'velocity'.*eps, x0, v, flow"):
        make_denoiser(lambda *a: x, {}, make_schedule("cosine"), "velocity", jnp.zeros(2), 1.0)
    with pytest.raises(InputError, match="'velocity'"):
        target("velocity", x, x, jnp.ones(1), jnp.ones(1))
