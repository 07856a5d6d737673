"""Solvers on a Gaussian whose exact solution is known: orders, moments, calls, compilations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import CONTEXT, MEAN, STD, exact, gaussian_denoiser
from jax.tree_util import Partial

from ssl_diffusion.diffusion.denoiser import make_denoiser
from ssl_diffusion.diffusion.plans import SOLVERS, make_plan
from ssl_diffusion.diffusion.prediction import KINDS, Prediction, to_prediction
from ssl_diffusion.diffusion.schedule import Schedule, make_schedule
from ssl_diffusion.diffusion.solvers import advance, keyed_noise, solve
from ssl_diffusion.diffusion.timesteps import (
    leading_timesteps,
    logsnr_timesteps,
    trailing_timesteps,
)
from ssl_diffusion.errors import InputError

ORDERS = {"ddim": 1, "plms": 2, "dpmpp": 2, "unipc": 3, "heun": 2}  # UniC-2 adds one to UniP-2's
X = jnp.linspace(-2, 2, 16).reshape(1, 4, 4, 1)


def run(solver, schedule, timesteps, denoise, x, noise=None, **options):
    plan = make_plan(solver, schedule, np.asarray(timesteps), **options)
    return solve(plan, lambda k: (denoise, CONTEXT), x, noise=noise)


# Accuracy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["ldm_linear", "flow"])
def test_solvers_converge_to_the_exact_flow_with_their_orders(name, kind):
    whole = make_schedule(name)
    # Without its ends, where log(alpha / sigma) is infinite or nearly so.
    schedule = Schedule(whole.alpha[10:901], whole.sigma[10:901])
    denoise, wanted = gaussian_denoiser(schedule, kind), exact(schedule, X, 890, 0)
    for solver, order in ORDERS.items():
        paths = [logsnr_timesteps(schedule, steps + 1)[:-1] for steps in (40, 80, 160)]
        errors = [np.abs(run(solver, schedule, p, denoise, X) - wanted).max() for p in paths]
        slope = np.log2(errors[0] / errors[-1]) / 2
        assert abs(slope - order) < 0.2, (solver, errors)


@pytest.mark.parametrize("name", ["ldm_linear", "flow"])
def test_fifty_steps_from_the_end_of_the_table_to_the_clean_end_come_near(name):
    schedule = make_schedule(name)
    path, wanted = logsnr_timesteps(schedule, 50), exact(schedule, X, 999, -1)
    for solver in ORDERS:
        found = run(solver, schedule, path, gaussian_denoiser(schedule), X)
        # Of values that span 1.6. DDIM: 0.034 and 0.054; the others 0.0012 to 0.0085.
        assert np.abs(found - wanted).max() < (0.06 if solver == "ddim" else 0.01), solver


@pytest.mark.parametrize("solver", [*ORDERS])
def test_a_denoiser_that_knows_the_image_is_followed_exactly(solver):
    """With x0 and eps constant every step is exact: x' = alpha' x0 + sigma' eps."""
    schedule = make_schedule("flow", 10)
    x0, eps = 0.5 * X, jnp.flip(X)

    def knowing(known, x, timestep, context):
        return Prediction(*known)

    alpha, sigma = schedule.levels(np.array([8.0, 2.5]))
    path = np.array([8, 7.25, 5, 4, 2.5])
    denoise = Partial(knowing, (x0, eps))
    found = run(solver, schedule, path, denoise, alpha[0] * x0 + sigma[0] * eps)
    np.testing.assert_allclose(found, alpha[1] * x0 + sigma[1] * eps, atol=2e-6)


# Noise


def moments(schedule, solver, path, **options):
    x = jax.random.normal(jax.random.key(1), (4, 64, 64, 1))
    noise = keyed_noise(jax.random.split(jax.random.key(2), 4))
    out = run(solver, schedule, path, gaussian_denoiser(schedule), x, noise, **options)
    return float(out.mean()), float(out.std())


@pytest.mark.parametrize("name", ["cosine", "flow"])
@pytest.mark.parametrize(
    ("solver", "options"), [("ddim", {"eta": 0.5}), ("ddim", {"eta": 1.0}), ("ancestral", {})]
)
def test_stochastic_solvers_give_the_moments_of_the_data(name, solver, options):
    schedule = make_schedule(name)
    mean, std = moments(schedule, solver, trailing_timesteps(1000, 500), **options)
    # Standard errors of 16,384 values: 0.003 of the mean, 0.6 % of the deviation.
    np.testing.assert_allclose(mean, MEAN, atol=0.01)
    np.testing.assert_allclose(std, STD, rtol=0.02)


def test_ancestral_sampling_over_the_whole_table_is_ddpm():
    """Against Ho et al. 2020, alg. 2 with eq. 7, in float64, with the very same noise."""
    schedule = make_schedule("ldm_linear", 50, beta_start=0.01, beta_end=0.3)
    noise = keyed_noise(jax.random.split(jax.random.key(2), 3))
    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 1))
    path, denoise = trailing_timesteps(50, 50), gaussian_denoiser(schedule)
    found = run("ancestral", schedule, path, denoise, x, noise)

    abar = np.asarray(schedule.alpha, np.float64) ** 2
    before = np.append(1.0, abar[:-1])
    expected = np.asarray(x, np.float64)
    for step, t in enumerate(reversed(range(50))):
        beta = 1 - abar[t] / before[t]
        gain = np.sqrt(abar[t]) * STD**2 / (abar[t] * STD**2 + 1 - abar[t])
        x0 = MEAN + gain * (expected - np.sqrt(abar[t]) * MEAN)
        mean = np.sqrt(before[t]) * beta / (1 - abar[t]) * x0
        mean += np.sqrt(1 - beta) * (1 - before[t]) / (1 - abar[t]) * expected
        variance = (1 - before[t]) / (1 - abar[t]) * beta
        expected = mean + np.sqrt(variance) * np.asarray(noise(step, x))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_noise_of_an_example_does_not_depend_on_its_batch():
    schedule = make_schedule("cosine")
    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 1))
    keys, path = jax.random.split(jax.random.key(2), 3), trailing_timesteps(1000, 6)
    sample = partial(run, "ancestral", schedule, path, gaussian_denoiser(schedule))
    together, alone = sample(x, keyed_noise(keys)), sample(x[1:2], keyed_noise(keys[1:2]))
    np.testing.assert_allclose(together[1:2], alone, atol=1e-6)


def test_noise_is_drawn_for_every_step_but_one_to_the_clean_end():
    schedule, drawn = make_schedule("cosine"), []

    def noise(step, like):
        drawn.append(step)
        return jnp.ones_like(like)

    sample = partial(run, denoise=gaussian_denoiser(schedule), x=X, noise=noise)
    sample("ancestral", schedule, trailing_timesteps(1000, 3))
    assert drawn == [0, 1]
    drawn.clear()
    sample("ancestral", schedule, leading_timesteps(1000, 3))
    assert drawn == [0, 1, 2]
    drawn.clear()
    sample("ddim", schedule, leading_timesteps(1000, 3))
    assert drawn == []
    with pytest.raises(InputError, match="without noise"):
        run("ancestral", schedule, leading_timesteps(1000, 3), gaussian_denoiser(schedule), X)


# From pure noise


@pytest.mark.parametrize("kind", KINDS)
def test_every_solver_is_finite_from_pure_noise(kind):
    schedule = make_schedule("flow", 8)
    denoise = make_denoiser(lambda p, x, t, c: p * x, 0.3, schedule, kind, CONTEXT[0], 1.0)
    noise = keyed_noise(jax.random.split(jax.random.key(2), 1))
    for solver in SOLVERS:
        for path in ([7, 5, 3.5, 1, -1], [7, 4, 2, 0], [7, 3], [7, -1], [7, 3, -0.5]):
            assert np.isfinite(run(solver, schedule, path, denoise, X, noise)).all(), solver


@pytest.mark.parametrize("solver", ["plms", "heun"])
def test_what_nearly_pure_noise_says_is_not_amplified(solver):
    """A network's eps is a little wrong; where alpha is 5e-5 that is x0 times 20,000."""
    schedule = make_schedule("cosine")
    denoise = gaussian_denoiser(schedule)

    def wrong(denoise, x, timestep, context):
        x0, eps = denoise(x, timestep, context)
        return Prediction(x0, eps * 1.01)

    path = trailing_timesteps(1000, 20)
    found = run(solver, schedule, path, jax.tree_util.Partial(wrong, denoise), X)
    assert np.abs(found - exact(schedule, X, 999, -1)).max() < 0.2


def test_from_pure_noise_the_first_step_mixes_x0_and_noise():
    schedule = make_schedule("flow", 8)
    for solver in ("ddim", "dpmpp", "unipc", "heun"):
        found = run(solver, schedule, [7, 3], gaussian_denoiser(schedule), X)
        np.testing.assert_allclose(found, 0.5 * MEAN + 0.5 * X, atol=1e-6)


# Calls and compilations


def test_solvers_call_the_network_as_often_as_they_say_and_compile_it_once_for_a_memory():
    schedule, traces, calls = make_schedule("cosine"), [], []

    def apply(params, x, timestep, context):
        traces.append(1)
        jax.debug.callback(lambda t: calls.append(int(t)), timestep[0], ordered=True)
        return params * x

    def called(solver, path, params=0.1, guidance=1.0):
        calls.clear()
        denoise = make_denoiser(apply, jnp.float32(params), schedule, "v", CONTEXT[0], guidance)
        assert np.isfinite(run(solver, schedule, path, denoise, X)).all()
        jax.effects_barrier()
        return calls.copy()

    leading, trailing = leading_timesteps(1000, 5), trailing_timesteps(1000, 5)
    assert called("ddim", leading) == [801, 601, 401, 201, 1]
    assert called("plms", leading) == [801, 601, 601, 401, 201, 1]
    assert called("unipc", leading) == [801, 601, 401, 201, 1]
    assert called("dpmpp", leading) == [801, 601, 401, 201, 1]
    assert len(traces) == 4  # memory 0, 3, 2 and 1
    twice = [801, 601, 601, 401, 401, 201, 201, 1, 1, 0]
    assert called("heun", leading) == twice
    # The cosine table's 999 is nearly pure noise: one evaluation there.
    assert called("heun", trailing) == [999, 799, 599, 599, 399, 399, 199, 199]
    called("ddim", trailing_timesteps(1000, 9), params=0.2)
    assert len(traces) == 4  # other paths and parameters included
    called("ddim", leading, guidance=2.0)
    called("ddim", trailing, guidance=3.0)
    assert len(traces) == 5


def test_start_noise_stays_valid_and_progress_sees_every_evaluation():
    schedule, seen = make_schedule("cosine"), []

    def progress(evaluations):
        for k in evaluations:
            seen.append(k)
            yield k

    x = jnp.array(X)
    plan, denoise = (
        make_plan("heun", schedule, np.array([900, 666, -1])),
        gaussian_denoiser(schedule),
    )
    solve(plan, lambda k: (denoise, CONTEXT), x, progress=progress)
    assert seen == [0, 1, 2]
    np.testing.assert_array_equal(x, X)


def test_the_denoiser_and_its_context_may_change_from_one_evaluation_to_the_next():
    schedule = make_schedule("flow", 4)

    def echo(_, x, timestep, context):
        return to_prediction("x0", jnp.full_like(x, context), x, *schedule.at(timestep))

    echo = Partial(echo, 0)
    plan = make_plan("ddim", schedule, np.array([3, 1, -1]))
    found = solve(plan, lambda k: (echo, jnp.float32(k)), X)
    np.testing.assert_array_equal(found, jnp.ones_like(X))  # the last x0


def test_advance_is_the_weighted_sum_of_its_terms():
    state, parts, noise = np.random.default_rng(0).normal(size=(3, 2, 5)).astype(np.float32)
    weights = np.arange(10, dtype=np.float32).reshape(2, 5)
    terms = np.stack([*state, *parts, noise[0]])
    given = jnp.asarray(state), Prediction(*jnp.asarray(parts))
    found = advance(jnp.asarray(weights), *given, jnp.asarray(noise[0]))
    np.testing.assert_allclose(found, weights @ terms, rtol=1e-5)
    without = advance(jnp.asarray(weights), *given, None)
    np.testing.assert_allclose(without, weights[:, :4] @ terms[:4], rtol=1e-5)


@pytest.mark.parametrize("steps", [4, 6, 10])
@pytest.mark.parametrize("solver", ["heun", "plms"])
def test_long_steps_are_followed_no_worse_than_by_ddim(solver, steps):
    schedule = make_schedule("cosine")
    path, wanted = logsnr_timesteps(schedule, steps), exact(schedule, X, 999, -1)
    found, plain = (
        np.abs(run(name, schedule, path, gaussian_denoiser(schedule), X) - wanted).max()
        for name in (solver, "ddim")
    )
    assert found <= plain * 1.01
