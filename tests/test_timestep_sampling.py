"""Where training timesteps are drawn: 20,000 draws against the distributions they are named for."""

import math

import jax
import numpy as np
import pytest

from ssl_diffusion.diffusion.schedule import make_schedule
from ssl_diffusion.diffusion.timestep_sampling import make_timestep_sampler
from ssl_diffusion.errors import InputError

DRAWS = 20_000
# Kolmogorov & Smirnov: 1 in 1,000 samples strays further from its distribution than this.
STRAY = 1.95 / math.sqrt(DRAWS)


VMAPPED = jax.jit(lambda sampler, keys: jax.vmap(sampler)(keys))


def draw(settings, schedule, draws=DRAWS) -> np.ndarray:
    sampler = make_timestep_sampler(settings, schedule)
    timesteps = VMAPPED(sampler, jax.random.split(jax.random.key(0), draws))
    assert timesteps.dtype == np.float32 and timesteps.shape == (draws,)
    timesteps = np.asarray(timesteps)
    np.testing.assert_array_equal(timesteps, np.round(timesteps))
    assert timesteps.min() >= 0 and timesteps.max() <= schedule.steps - 1
    return timesteps


def shares(timesteps: np.ndarray, steps: int) -> np.ndarray:
    """The share of draws at timestep k or below, k = 0..T-1."""
    return np.bincount(timesteps.astype(int), minlength=steps).cumsum() / len(timesteps)


def laplace_cdf(value, mean, scale):
    away = np.exp(-np.abs(value - mean) / scale) / 2
    return np.where(value < mean, away, 1 - away)


def test_uniform_draws_every_timestep_alike():
    found = shares(draw({"name": "uniform"}, make_schedule("cosine", 12)), 12)
    np.testing.assert_allclose(found, np.arange(1, 13) / 12, atol=STRAY)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.7, 0.5), (1, 2)])
def test_logit_normal_is_normal_in_its_logit(mean, std):
    settings = {"name": "logit_normal", "mean": mean, "std": std}
    found = shares(draw(settings, make_schedule("flow", 12)), 12)
    time = np.arange(1, 12) / 12  # a draw is at most k where t is below (k + 1) / T
    quantile = (np.log(time / (1 - time)) - mean) / std
    wanted = [(1 + math.erf(q / math.sqrt(2))) / 2 for q in quantile]
    np.testing.assert_allclose(found[:-1], wanted, atol=STRAY)


def test_logit_normal_stays_in_the_table_where_its_logit_overflows():
    schedule = make_schedule("flow", 12)
    for mean, only in ((50, 11), (-50, 0)):
        settings = {"name": "logit_normal", "mean": mean, "std": 0.1}
        timesteps = draw(settings, schedule, draws=50)
        np.testing.assert_array_equal(timesteps, only)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 0.5), (1.5, 1.0), (-2, 0.8)])
@pytest.mark.parametrize("name", ["cosine", "ldm_linear", "flow"])
def test_laplace_is_that_in_the_log_snr_of_any_schedule(name, mean, scale):
    schedule = make_schedule(name)
    timesteps = draw({"name": "laplace", "mean": mean, "scale": scale}, schedule).astype(int)
    alpha, sigma = np.asarray(schedule.alpha, float), np.asarray(schedule.sigma, float)
    logsnr = np.log(alpha[1:-1] ** 2 / sigma[1:-1] ** 2)
    found = shares(timesteps, 1000)[1:-1]
    # A draw is at most k where it is above the edge between k and k + 1, near k itself: what that
    # adds to the stray of 0.014 is at most half an entry, 0.003 here.
    np.testing.assert_allclose(found, 1 - laplace_cdf(logsnr, mean, scale), atol=STRAY + 0.004)


def test_laplace_takes_the_nearest_timestep():
    schedule = make_schedule("ldm_linear", 20, zero_terminal_snr=True)
    alpha, sigma = schedule.levels(np.arange(19) + 0.0)
    for timestep in (0, 1, 10, 17, 18):
        logsnr = float(np.log(alpha**2 / sigma**2)[timestep])
        drawn = draw({"name": "laplace", "mean": logsnr, "scale": 1e-3}, schedule, draws=50)
        np.testing.assert_array_equal(drawn, timestep)


def test_laplace_reaches_pure_noise_and_clips_to_the_table():
    schedule = make_schedule("flow", 8)
    for mean, only in ((-40, 7), (40, 0)):
        timesteps = draw({"name": "laplace", "mean": mean, "scale": 1.0}, schedule, draws=50)
        np.testing.assert_array_equal(timesteps, only)
    # Half-way between the last two entries alpha is 1/16 and sigma 15/16.
    edge = 2 * math.log(1 / 15)
    timesteps = draw({"name": "laplace", "mean": edge, "scale": 0.1}, schedule)
    assert set(timesteps) == {6, 7}
    np.testing.assert_allclose((timesteps == 7).mean(), 0.5, atol=STRAY)


def test_parameters_left_out_are_the_best_of_the_papers():
    schedule = make_schedule("cosine")
    assert make_timestep_sampler({"name": "logit_normal"}, schedule).std == 1.0
    laplace = make_timestep_sampler({"name": "laplace"}, schedule)
    assert (laplace.mean, laplace.scale) == (0.0, 0.5)


@pytest.mark.parametrize("name", ["uniform", "logit_normal", "laplace"])
def test_samplers_are_arguments_of_jitted_functions_and_a_key_gives_its_own_draw(name):
    sampler = make_timestep_sampler({"name": name}, make_schedule("cosine"))
    keys = jax.random.split(jax.random.key(3), 5)
    together = VMAPPED(sampler, keys)
    np.testing.assert_array_equal(together, [sampler(key) for key in keys])
    assert len(set(together.tolist())) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cosine"}, "'cosine'; expected one of uniform, logit_normal, laplace"),
        ({}, "None; expected one of uniform"),
        ({"name": "uniform", "mean": 0}, "'uniform' with mean; expected no more"),
        ({"name": "laplace", "std": 1.0}, "'laplace' with std; expected mean, scale"),
        ({"name": "laplace", "scale": 0}, "scale 0; expected a number above 0"),
        ({"name": "logit_normal", "std": -1.0}, "std -1.0; expected a number above 0"),
        ({"name": "logit_normal", "mean": math.nan}, "mean nan; expected a number"),
        ({"name": "laplace", "mean": "0"}, "mean '0'; expected a number"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        make_timestep_sampler(settings, make_schedule("cosine"))
