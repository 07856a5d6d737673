"""What networks predict: conversions, and the loss they are trained with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_diffusion.diffusion.denoiser import make_denoiser
from ssl_diffusion.diffusion.loss import add_noise, denoising_loss
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


# Loss


def test_loss_is_zero_for_a_perfect_network_and_per_example_otherwise():
    schedule, key = make_schedule("cosine"), jax.random.key(3)
    x0 = jnp.broadcast_to(jnp.arange(3.0)[:, None, None, None], (3, 4, 4, 2))

    def network(x, timestep, context):  # knows x0, its context, so that eps follows
        alpha, sigma = schedule.at(timestep)
        known = jnp.broadcast_to(context[..., None], x.shape)
        return to_prediction("x0", known, x, alpha, sigma).eps

    context = jnp.arange(3.0)[:, None, None]
    perfect = denoising_loss(network, schedule, "eps", x0, context, key)
    assert perfect.shape == (3,)
    np.testing.assert_allclose(perfect, 0, atol=1e-6)
    # A wrong context in one example is a loss in that example alone.
    spoilt = denoising_loss(network, schedule, "eps", x0, context.at[1].add(0.5), key)
    np.testing.assert_allclose(spoilt[jnp.array([0, 2])], 0, atol=1e-6)
    assert spoilt[1] > 1e-3


def test_loss_of_a_silent_network_is_the_variance_of_its_target():
    schedule, shape = make_schedule("cosine"), (4, 16, 16, 4)
    silent = lambda x, timestep, context: jnp.zeros_like(x)  # noqa: E731
    context = jnp.zeros((4, 1, 2))
    loss = denoising_loss(silent, schedule, "eps", jnp.zeros(shape), context, jax.random.key(0))
    np.testing.assert_allclose(loss, 1, atol=0.25)  # 5 standard errors of 1024 values: 0.22


def test_loss_draws_one_timestep_per_example_over_the_whole_table():
    schedule, seen = make_schedule("cosine", 10), []

    def network(x, timestep, context):
        seen.append(np.asarray(timestep))
        return x

    x0, context = jnp.zeros((500, 1, 1, 1)), jnp.zeros((500, 1, 1))
    denoising_loss(network, schedule, "v", x0, context, jax.random.key(0))
    counts = np.bincount(seen[0].astype(int), minlength=10)
    assert len(counts) == 10 and counts.min() > 20 and counts.max() < 90  # 50 +- 6.7 expected
