"""Noise tables against published facts, and paths of timesteps through them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import CONTEXT, MEAN, STD, exact, gaussian_denoiser

from ssl_diffusion.diffusion.plans import SOLVERS, make_plan
from ssl_diffusion.diffusion.schedule import (
    find_schedule,
    make_betas,
    make_schedule,
    with_defaults,
)
from ssl_diffusion.diffusion.solvers import keyed_noise, solve
from ssl_diffusion.diffusion.timesteps import (
    SPACINGS,
    leading_timesteps,
    logsnr_timesteps,
    trailing_timesteps,
)
from ssl_diffusion.errors import InputError


def test_ldm_linear_has_the_published_betas():
    schedule = make_schedule("ldm_linear")
    alpha = np.asarray(schedule.alpha, np.float64)
    betas = 1 - (alpha / np.concatenate([[1.0], alpha[:-1]])) ** 2
    assert schedule.steps == 1000
    np.testing.assert_allclose(betas[[0, -1]], [0.0015, 0.0195], rtol=1e-4)
    # Linear in the square root: the middle of the table is the square of the mean root.
    roots = np.sqrt(betas)
    np.testing.assert_allclose(roots, np.linspace(roots[0], roots[-1], 1000), atol=3e-5)
    # Not zero-terminal: 1.2 % of the signal's amplitude is left at the last step.
    np.testing.assert_allclose(alpha[-1], 0.011929, rtol=1e-4)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("name", ["ldm_linear", "cosine"])
def test_schedules_of_betas_preserve_variance_and_only_ever_add_noise(name, zero_terminal_snr):
    schedule = make_schedule(name, zero_terminal_snr=zero_terminal_snr)
    alpha, sigma = np.asarray(schedule.alpha, np.float64), np.asarray(schedule.sigma, np.float64)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=2e-7)
    assert (np.diff(alpha) < 0).all() and (np.diff(sigma) >= 0).all()
    assert (alpha[-1] == 0) == zero_terminal_snr


def test_cosine_follows_its_equation_and_caps_beta():
    schedule = make_schedule("cosine")
    f = np.cos((np.array([0.0, 0.5]) + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(schedule.alpha[499] ** 2, f[1] / f[0], rtol=1e-5)
    ratio = float(schedule.alpha[999]) ** 2 / float(schedule.alpha[998]) ** 2
    np.testing.assert_allclose(1 - ratio, 0.999, rtol=1e-5)


def test_timestep_minus_one_is_clean_not_the_end_of_the_table():
    alpha, sigma = make_schedule("cosine").at(jnp.array([-1.0, 0.0, 999.0]))
    np.testing.assert_array_equal(alpha[0], 1)
    np.testing.assert_array_equal(sigma[0], 0)
    assert alpha[1] > 0.999 and alpha[2] < 1e-4


def test_flow_is_a_line_that_ends_in_pure_noise():
    schedule = make_schedule("flow", 4)
    np.testing.assert_array_equal(schedule.alpha, [0.75, 0.5, 0.25, 0])
    np.testing.assert_array_equal(schedule.sigma, [0.25, 0.5, 0.75, 1])
    alpha, sigma = schedule.at(jnp.array([-1, -0.5, 1.25, 3]))
    np.testing.assert_array_equal(sigma, [0, 0.125, 0.5625, 1])  # t = (k + 1) / 4, between too
    np.testing.assert_array_equal(alpha, 1 - sigma)


@pytest.mark.parametrize("name", ["ldm_linear", "cosine", "flow"])
def test_fractional_timesteps_lie_between_the_entries_and_whole_ones_are_entries(name):
    schedule = make_schedule(name)
    alpha, sigma = schedule.at(jnp.arange(1000.0))
    np.testing.assert_array_equal(alpha, schedule.alpha)
    np.testing.assert_array_equal(sigma, schedule.sigma)
    fine = np.linspace(-1, 999, 8001)
    alpha, sigma = schedule.at(jnp.float32(fine))
    assert (np.diff(alpha) <= 0).all() and (np.diff(sigma) >= 0).all()
    np.testing.assert_allclose(np.stack([alpha, sigma]), schedule.levels(fine), atol=1e-7)
    if name == "ldm_linear":
        short = 1 - (alpha**2 + sigma**2)
        assert short[fine >= 0].max() < 1e-4 and short.max() < 4e-4


# Zero terminal SNR


@pytest.mark.parametrize("name", ["ldm_linear", "linear", "cosine"])
def test_zero_terminal_snr_shifts_and_stretches_alpha_to_end_in_pure_noise(name):
    plain = np.asarray(make_schedule(name).alpha, np.float64)
    schedule = make_schedule(name, zero_terminal_snr=True)
    np.testing.assert_array_equal(schedule.alpha[-1], 0)
    np.testing.assert_array_equal(schedule.sigma[-1], 1)
    np.testing.assert_array_equal(schedule.alpha[0], make_schedule(name).alpha[0])
    # A line through (first, first) and (last, 0), whatever lies between.
    line = np.interp(plain, [plain[-1], plain[0]], [0, plain[0]])
    np.testing.assert_allclose(schedule.alpha, line, atol=1e-7)
    betas = make_betas(name, zero_terminal_snr=True)
    assert (betas > 0).all() and (betas[:-1] < 1).all() and betas[-1] == 1
    np.testing.assert_allclose(betas[0], make_betas(name)[0], rtol=1e-9)


def test_what_is_rescaled_is_the_terminal_snr_of_lin_et_al():
    """Their sec. 3.1: of Stable Diffusion x_T = 0.068265 x_0 + 0.997667 eps."""
    schedule = make_schedule("ldm_linear", beta_start=0.00085, beta_end=0.012)
    np.testing.assert_allclose(schedule.alpha[-1], 0.068265, atol=1e-6)
    np.testing.assert_allclose(schedule.sigma[-1], 0.997667, atol=1e-6)


@pytest.mark.parametrize("kind", ["x0", "v", "flow"])
@pytest.mark.parametrize("spacing", ["trailing", "logsnr"])
def test_solvers_start_from_pure_noise_and_come_near_the_exact_flow(spacing, kind):
    schedule = make_schedule("cosine", zero_terminal_snr=True)
    x = jnp.linspace(-2, 2, 16).reshape(1, 4, 4, 1)
    wanted, denoise = exact(schedule, x, 999, -1), gaussian_denoiser(schedule, kind)
    np.testing.assert_allclose(wanted, MEAN + STD * np.asarray(x), atol=1e-6)
    for solver in set(SOLVERS) - {"ancestral"}:
        plan = make_plan(solver, schedule, SPACINGS[spacing](schedule, 50))
        found = solve(plan, lambda k: (denoise, CONTEXT), x)
        # Of values that span 1.6. DDIM: 0.029 and 0.046; the others 0.0007 to 0.0058.
        assert np.abs(found - wanted).max() < (0.06 if solver == "ddim" else 0.01), solver


def test_ancestral_samples_of_a_rescaled_table_have_the_moments_of_the_data():
    schedule = make_schedule("cosine", zero_terminal_snr=True)
    x = jax.random.normal(jax.random.key(1), (4, 64, 64, 1))
    noise = keyed_noise(jax.random.split(jax.random.key(2), 4))
    plan, denoise = (
        make_plan("ancestral", schedule, trailing_timesteps(1000, 400)),
        gaussian_denoiser(schedule, "v"),
    )
    out = solve(plan, lambda k: (denoise, CONTEXT), x, noise=noise)
    # Standard errors of 16,384 values: 0.003 of the mean, 0.6 % of the deviation.
    np.testing.assert_allclose(out.mean(), MEAN, atol=0.01)
    np.testing.assert_allclose(out.std(), STD, rtol=0.02)


def test_zero_terminal_snr_is_an_argument_like_the_others():
    written = {"name": "cosine", "steps": 10}
    assert with_defaults(written) == written | {"offset": 0.008, "zero_terminal_snr": False}
    rescaled = written | {"zero_terminal_snr": True}
    assert with_defaults(rescaled) == rescaled | {"offset": 0.008}
    np.testing.assert_array_equal(
        make_schedule(**with_defaults(rescaled)).alpha, make_schedule(**rescaled).alpha
    )
    np.testing.assert_array_equal(
        make_schedule(**with_defaults(written)).alpha, make_schedule(**written).alpha
    )
    with pytest.raises(InputError, match="between 0 and 1"):  # the last beta is 1
        find_schedule(make_betas(**rescaled).astype(np.float32))


# Paths


def test_timesteps_trail():
    np.testing.assert_array_equal(trailing_timesteps(1000, 4), [999, 749, 499, 249, -1])
    np.testing.assert_array_equal(trailing_timesteps(1000, 1000), np.arange(-1, 1000)[::-1])
    for steps in range(1, 998, 7):
        timesteps = trailing_timesteps(997, steps)
        assert timesteps[0] == 996 and timesteps[-1] == -1
        assert len(timesteps) == steps + 1 and (np.diff(timesteps) < 0).all()


def test_timesteps_lead():
    np.testing.assert_array_equal(leading_timesteps(1000, 4), [751, 501, 251, 1, 0])
    for steps in range(1, 997, 7):
        timesteps = leading_timesteps(997, steps)
        assert timesteps[0] <= 996 and timesteps[-2] == 1 and timesteps[-1] == 0
        assert len(timesteps) == steps + 1 and (np.diff(timesteps) < 0).all()


@pytest.mark.parametrize("name", ["ldm_linear", "cosine", "flow", "rescaled"])
def test_timesteps_uniform_in_log_snr(name):
    schedule = make_schedule("ldm_linear", zero_terminal_snr=True)
    if name != "rescaled":
        schedule = make_schedule(name)
    for steps in (1, 2, 7, 50):
        timesteps = logsnr_timesteps(schedule, steps)
        assert timesteps[0] == 999 and timesteps[-1] == -1
        assert len(timesteps) == steps + 1 and (np.diff(timesteps) < 0).all()
        if steps > 1:
            assert timesteps[-2] == 0
    alpha, sigma = schedule.levels(timesteps[1:-1])  # the first may be pure noise
    gains = np.diff(np.log(alpha / sigma))
    np.testing.assert_allclose(gains, gains.mean(), rtol=1e-6)
    first = 998 if name in ("flow", "rescaled") else 999
    alpha, sigma = schedule.levels(np.array([first, 0]))
    np.testing.assert_allclose(gains.mean(), np.diff(np.log(alpha / sigma)) / 49, rtol=1e-6)


# Errors


def test_bad_schedules_and_paths_are_named():
    with pytest.raises(InputError, match="unknown schedule 'sigmoid'.*ldm_linear.*flow"):
        make_schedule("sigmoid")
    with pytest.raises(InputError, match="'flow' with offset; expected no more"):
        make_schedule("flow", offset=0.1)
    with pytest.raises(InputError, match="'flow' with zero_terminal_snr; .* by itself"):
        make_schedule("flow", zero_terminal_snr=True)
    with pytest.raises(InputError, match="1 step with zero_terminal_snr.*at least 2"):
        make_schedule("cosine", 1, zero_terminal_snr=True)
    with pytest.raises(InputError, match="'flow' has no betas"):
        make_betas("flow")
    for name in ("cosine", "flow"):
        with pytest.raises(InputError, match="0 steps"):
            make_schedule(name, 0)
    for steps in (0, 11):
        with pytest.raises(InputError, match="expected 1 to 10"):
            trailing_timesteps(10, steps)
        with pytest.raises(InputError, match="expected 1 to 10"):
            logsnr_timesteps(make_schedule("flow", 10), steps)
        with pytest.raises(InputError, match="expected 1 to 9"):
            leading_timesteps(10, max(0, steps - 1))
