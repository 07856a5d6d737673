"""The training objective: what is drawn for an example, and how its error is weighted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_diffusion.diffusion.loss import (
    Noised,
    check_process,
    denoising_loss,
    min_snr_weight,
    read_objective,
)
from ssl_diffusion.diffusion.prediction import KINDS, target, to_prediction
from ssl_diffusion.diffusion.schedule import make_schedule
from ssl_diffusion.errors import InputError

GAMMA = 5.0
SHAPE = (4, 16, 16, 8)  # of most examples here: each shape compiles its own noise


def objective(kind="eps", schedule="cosine", steps=1000, **settings):
    diffusion = {"schedule": {"name": schedule, "steps": steps}, "prediction": kind}
    return read_objective(diffusion, settings)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


# What is drawn


@pytest.mark.parametrize("schedule", ["cosine", "flow"])
@pytest.mark.parametrize("kind", ["x0", "v", "flow"])
def test_examples_are_noised_to_the_level_of_their_timestep(kind, schedule):
    drawn = objective(kind, schedule)
    x0 = jax.random.normal(jax.random.key(1), SHAPE)
    x, timestep, output, weight = drawn.draw(x0, keys(4))
    found = to_prediction(kind, output, x, *drawn.schedule.at(timestep))
    np.testing.assert_allclose(found.x0, x0, atol=1e-5)
    eps = np.asarray(found.eps)
    # Standard errors of 2048 values: 0.022 of the mean, 1.6 % of the deviation.
    np.testing.assert_allclose(eps.mean((1, 2, 3)), 0, atol=0.1)
    np.testing.assert_allclose(eps.std((1, 2, 3)), 1, atol=0.07)
    assert np.abs(np.corrcoef(eps.reshape(4, -1)) - np.eye(4)).max() < 0.1
    np.testing.assert_array_equal(weight, 1)
    assert len(set(timestep.tolist())) == 4


def test_an_example_is_drawn_by_its_key_alone():
    drawn = objective("v", timesteps={"name": "laplace"}, min_snr_gamma=GAMMA)
    x0 = jax.random.normal(jax.random.key(1), SHAPE)
    together = drawn.draw(x0, keys(4))
    assert len(set(np.asarray(together.x[:, 0, 0, 0]).tolist())) == 4
    order = np.array([3, 1])
    draw = jax.jit(lambda drawn, x0, keys: drawn.draw(x0, keys))  # it is a pytree
    apart = draw(drawn, x0[order], keys(4)[order])
    np.testing.assert_array_equal(apart.timestep, together.timestep[order])
    for some, every in zip(apart, together, strict=True):
        np.testing.assert_allclose(some, every[order], atol=1e-6)  # compiled: not to the bit


def test_latents_of_half_precision_are_noised_in_float32():
    drawn = objective("x0")
    x0 = jnp.full(SHAPE, 1.5, jnp.float16)
    half, full = drawn.draw(x0, keys(4)), drawn.draw(x0.astype(jnp.float32), keys(4))
    assert {part.dtype for part in half} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(half.x, full.x)
    loss = denoising_loss(jnp.zeros(SHAPE, jnp.bfloat16), half)
    assert loss.dtype == jnp.float32


# The loss


def test_loss_is_zero_for_a_perfect_network_and_per_example_otherwise():
    drawn = objective("eps")
    x0 = jnp.broadcast_to(jnp.arange(4.0)[:, None, None, None], SHAPE)
    noised = drawn.draw(x0, keys(4))

    def loss(known):  # of a network that knows x0, so that eps follows
        levels = drawn.schedule.at(noised.timestep)
        output = to_prediction("x0", known, noised.x, *levels).eps
        return denoising_loss(output, noised)

    perfect = loss(x0)
    assert perfect.shape == (4,)
    np.testing.assert_allclose(perfect, 0, atol=1e-6)
    # A wrong x0 in one example is a loss in that example alone.
    spoilt = loss(x0.at[1].add(0.5))
    np.testing.assert_allclose(spoilt[jnp.array([0, 2, 3])], 0, atol=1e-6)
    assert spoilt[1] > 1e-3


def test_loss_of_a_silent_network_is_the_variance_of_its_target():
    noised = objective("eps").draw(jnp.zeros(SHAPE), keys(4))
    loss = denoising_loss(jnp.zeros(SHAPE), noised)
    np.testing.assert_allclose(loss, 1, atol=0.16)  # 5 standard errors of 2048 values


# Min-SNR


@pytest.mark.parametrize("circle", [True, False])
def test_an_error_of_x0_weighs_the_same_whatever_the_network_predicts(circle):
    alpha = jnp.array([0.999, 0.9, 0.6, 0.3, 0.05])
    sigma = jnp.sqrt(1 - alpha**2) if circle else 1.2 - alpha
    snr = (np.asarray(alpha, float) / np.asarray(sigma, float)) ** 2
    assert snr.max() > GAMMA > snr.min()
    x, x0, error = (jax.random.normal(key, (5, 3, 4, 2)) for key in keys(3))
    wanted = np.minimum(snr, GAMMA) * np.mean(np.square(error), (1, 2, 3))
    for kind in KINDS:

        def output(x0, kind=kind):
            return target(kind, *to_prediction("x0", x0, x, alpha, sigma), alpha, sigma)

        weight = min_snr_weight(kind, alpha, sigma, GAMMA)
        noised = Noised(x, jnp.zeros(5), output(x0), weight)
        np.testing.assert_allclose(
            denoising_loss(output(x0 + error), noised), wanted, rtol=2e-3, err_msg=kind
        )


def test_min_snr_has_the_special_cases_of_the_paper():
    snr = np.array([0.25, 1.0, 4.0, 100.0])
    alpha, sigma = jnp.sqrt(jnp.float32(snr / (1 + snr))), jnp.sqrt(jnp.float32(1 / (1 + snr)))
    capped = np.array([0.25, 1.0, 2.0, 2.0])
    for kind, wanted in {"x0": capped, "eps": capped / snr, "v": capped / (snr + 1)}.items():
        np.testing.assert_allclose(min_snr_weight(kind, alpha, sigma, 2.0), wanted, rtol=1e-5)
    np.testing.assert_array_equal(min_snr_weight("v", alpha, sigma, None), 1)


@pytest.mark.parametrize(
    ("kind", "noise", "clean"), [("eps", 1, 0), ("x0", 0, GAMMA), ("v", 0, 0), ("flow", 0, 0)]
)
def test_min_snr_is_finite_in_pure_noise_and_without_noise(kind, noise, clean):
    alpha, sigma = jnp.array([0.0, 1.0, 1e-30]), jnp.array([1.0, 0.0, 1.0])
    weight = min_snr_weight(kind, alpha, sigma, GAMMA)
    np.testing.assert_array_equal(weight, [noise, clean, noise])


def test_objectives_weight_by_their_timestep():
    drawn = objective("x0", "flow", 10, min_snr_gamma=GAMMA)
    noised = drawn.draw(jnp.zeros((50, 1, 1, 1)), keys(50))
    sigma = (np.asarray(noised.timestep, float) + 1) / 10
    wanted = np.minimum(((1 - sigma) / sigma) ** 2, GAMMA)
    np.testing.assert_allclose(noised.weight, wanted, rtol=1e-4, atol=1e-6)
    assert set(noised.timestep.tolist()) == set(range(10))


# Settings


@pytest.mark.parametrize("name", ["cosine", "ldm_linear"])
def test_eps_is_refused_where_it_says_nothing_of_x0(name):
    rescaled = make_schedule(name, zero_terminal_snr=True)
    for schedule in (rescaled, make_schedule("flow")):
        with pytest.raises(InputError, match="ends in pure noise.*nothing of x0.*v, x0 or flow"):
            check_process(schedule, "eps")
        for kind in ("x0", "v", "flow"):
            check_process(schedule, kind)
    for kind in KINDS:
        check_process(make_schedule(name), kind)


def test_wrong_settings_are_named():
    diffusion = {"schedule": {"name": "cosine"}, "prediction": "v"}
    for settings, message in [
        ({"timesteps": {"name": "normal"}}, "'normal'; expected one of uniform"),
        ({"min_snr": 5}, "objective with min_snr; expected min_snr_gamma, timesteps"),
        ({"min_snr_gamma": 0}, "min_snr_gamma 0; expected a number above 0"),
        ({"min_snr_gamma": "5"}, "min_snr_gamma '5'"),
    ]:
        with pytest.raises(InputError, match=message):
            read_objective(diffusion, settings)
    for change, message in [
        ({"prediction": "velocity"}, "'velocity'; expected one of eps, x0, v, flow"),
        ({"schedule": {"name": "flow"}, "prediction": "eps"}, "ends in pure noise"),
        ({"schedule": {"name": "sigmoid"}}, "unknown schedule 'sigmoid'"),
        ({"loss": "l1"}, "diffusion with loss; expected prediction, schedule"),
    ]:
        with pytest.raises(InputError, match=message):
            read_objective(diffusion | change, {})
    with pytest.raises(InputError, match="diffusion without prediction"):
        read_objective({"schedule": {"name": "cosine"}}, {})


def test_settings_left_out_are_uniform_timesteps_and_weight_one():
    drawn = read_objective({"schedule": {"name": "cosine"}, "prediction": "v"}, {})
    written = objective("v", timesteps={"name": "uniform"}, min_snr_gamma=None)
    assert (drawn.timesteps, drawn.min_snr_gamma) == (written.timesteps, None)
