"""The mathematics of diffusion against closed forms and published facts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ssl_diffusion.diffusion.denoiser import make_denoiser
from ssl_diffusion.diffusion.guidance import guide
from ssl_diffusion.diffusion.loss import add_noise, denoising_loss
from ssl_diffusion.diffusion.prediction import KINDS, Prediction, target, to_prediction
from ssl_diffusion.diffusion.schedule import Schedule, make_schedule
from ssl_diffusion.diffusion.solvers import (
    ddim,
    ddim_step,
    ddpm,
    keyed_noise,
    leading_timesteps,
    plms,
    trailing_timesteps,
)
from ssl_diffusion.errors import InputError

MEAN, STD = 0.7, 0.4  # of the Gaussian whose optimal denoiser is known
CONTEXT = jnp.zeros((1, 1, 2))


def levels(alpha: list[float]) -> Schedule:
    alpha = np.asarray(alpha)
    return Schedule(jnp.float32(alpha), jnp.float32(np.sqrt(1 - alpha**2)))


def gaussian_denoiser(schedule: Schedule) -> Partial:
    """E[x0 | x] for x0 ~ N(MEAN, STD^2): a linear function of x."""

    def denoise(schedule, x, timestep, context):
        alpha, sigma = schedule.at(timestep)
        gain = (alpha * STD**2 / (alpha**2 * STD**2 + sigma**2))[:, None, None, None]
        alpha_ = alpha[:, None, None, None]
        return to_prediction("x0", MEAN + gain * (x - alpha_ * MEAN), x, alpha, sigma)

    return Partial(denoise, schedule)


# Schedule


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


@pytest.mark.parametrize("name", ["ldm_linear", "cosine"])
def test_schedules_preserve_variance_and_only_ever_add_noise(name):
    schedule = make_schedule(name)
    alpha, sigma = np.asarray(schedule.alpha, np.float64), np.asarray(schedule.sigma, np.float64)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=2e-7)
    assert (np.diff(alpha) < 0).all() and (np.diff(sigma) >= 0).all()
    assert alpha[-1] > 0


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


# Prediction


@pytest.mark.parametrize("kind", KINDS)
def test_conversions_round_trip(kind):
    keys = jax.random.split(jax.random.key(0), 2)
    x0, eps = (jax.random.normal(key, (5, 3, 4, 2)) for key in keys)
    alpha = jnp.array([0.999, 0.9, 0.6, 0.3, 0.05])
    sigma = jnp.sqrt(1 - alpha**2)
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


@pytest.mark.parametrize(("kind", "alpha"), [("eps", 0.0), ("x0", 1.0), ("v", 0.0), ("v", 1.0)])
def test_ends_of_a_schedule_are_finite_with_finite_gradients(kind, alpha):
    x = jnp.full((1, 2, 2, 1), 1.5)
    levels = jnp.array([alpha]), jnp.array([(1 - alpha**2) ** 0.5])

    def total(output):
        return sum(part.sum() for part in to_prediction(kind, output, x, *levels))

    value, gradient = jax.value_and_grad(total)(0.5 * x)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_zero_terminal_schedule_samples_without_nan():
    schedule = levels([0.99, 0.7, 0.0])
    x, path = jax.random.normal(jax.random.key(0), (1, 2, 2, 1)), trailing_timesteps(3, 3)
    for kind in KINDS:
        denoise = make_denoiser(lambda p, x, t, c: p * x, 0.3, schedule, kind, CONTEXT[0], 1.0)
        assert np.isfinite(ddim(denoise, schedule, x, CONTEXT, timesteps=path)).all(), kind


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


# Guidance


def counting_network(calls):
    def network(x, timestep, context):
        calls.append(x.shape[0])
        return x * 0.1 + context.sum((1, 2))[:, None, None, None] + timestep[:, None, None, None]

    return network


def test_guidance_scale_one_is_the_network_itself():
    calls, x = [], jnp.ones((3, 2, 2, 1))
    network = counting_network(calls)
    assert guide(network, jnp.ones((1, 2)), 1.0) is network
    denoise = make_denoiser(
        lambda p, *xs: network(*xs), {}, levels([0.9, 0.5]), "x0", jnp.ones((1, 2)), 1.0
    )
    context = jnp.arange(6.0).reshape(3, 1, 2)
    x0 = denoise(x, jnp.ones(3), context).x0
    assert calls == [3]
    np.testing.assert_array_equal(x0, network(x, jnp.ones(3), context))


@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_guidance_extrapolates_in_one_doubled_batch(scale):
    calls, x, t = [], jnp.ones((3, 2, 2, 1)), jnp.arange(3.0)
    network, null = counting_network(calls), jnp.array([[0.5, -2.0]])
    context = jnp.arange(6.0).reshape(3, 1, 2)
    guided = guide(network, null, scale)(x, t, context)
    assert calls == [6]
    uncond = network(x, t, jnp.broadcast_to(null, context.shape))
    expected = uncond + scale * (network(x, t, context) - uncond)
    np.testing.assert_allclose(guided, expected, rtol=1e-6)


# Solvers


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


def exact_flow(schedule: Schedule, x: np.ndarray) -> np.ndarray:
    """Where the Gaussian's probability flow carries x from T-1 to the clean end: same quantile."""
    alpha, sigma = float(schedule.alpha[-1]), float(schedule.sigma[-1])
    return MEAN + STD * (x - alpha * MEAN) / np.sqrt(alpha**2 * STD**2 + sigma**2)


def test_ddim_converges_to_the_exact_flow_with_first_order():
    schedule = make_schedule("cosine")
    x = jnp.linspace(-2, 2, 16).reshape(1, 4, 4, 1)
    run = partial(ddim, gaussian_denoiser(schedule), schedule, x, CONTEXT)
    exact = exact_flow(schedule, x)
    paths = [trailing_timesteps(1000, steps) for steps in (10, 20, 40, 80, 160)]
    errors = [np.abs(run(timesteps=path) - exact).max() for path in paths]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert errors[-1] < 0.01  # of values that span 1.6
    np.testing.assert_allclose(orders, 0.96, atol=0.03)


def test_plms_converges_to_the_exact_flow_with_second_order():
    schedule = levels(np.cos(np.linspace(0.1, 1.3, 1281)))
    x = jnp.linspace(-2, 2, 16).reshape(1, 4, 4, 1)
    run = partial(plms, gaussian_denoiser(schedule), schedule, x, CONTEXT)
    # From the last noise level to the first, which is not clean: the same quantile of either.
    (end, end_spread), (start, start_spread) = (
        (alpha * MEAN, np.sqrt(alpha**2 * STD**2 + sigma**2))
        for alpha, sigma in np.stack([schedule.alpha, schedule.sigma], 1)[[0, -1]].astype(float)
    )
    exact = end + end_spread * (x - start) / start_spread
    paths = [np.linspace(1280, 0, steps + 1).astype(int) for steps in (20, 40, 80, 160)]
    errors = [np.abs(run(timesteps=path) - exact).max() for path in paths]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert errors[0] < 1e-3  # DDIM: 0.04
    np.testing.assert_allclose(orders, 2, atol=0.12)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_gives_the_moments_of_the_data(eta):
    schedule = make_schedule("cosine")
    x = jax.random.normal(jax.random.key(1), (4, 64, 64, 1))
    noise, path = keyed_noise(jax.random.split(jax.random.key(2), 4)), trailing_timesteps(1000, 500)
    denoise = gaussian_denoiser(schedule)
    out = ddim(denoise, schedule, x, CONTEXT, timesteps=path, eta=eta, noise=noise)
    # Standard errors of 16,384 values: 0.003 of the mean, 0.6 % of the deviation.
    np.testing.assert_allclose(out.mean(), MEAN, atol=0.01)
    np.testing.assert_allclose(out.std(), STD, rtol=0.02)


def test_eta_one_step_has_the_posterior_variance_of_ddpm():
    # Ho et al. 2020, eq. 7: beta~ = (1 - abar_s) / (1 - abar_t) beta_t, here between any two steps.
    schedule = levels([0.9, 0.5])
    known = Partial(lambda x, t, c: Prediction(0 * x, x / schedule.sigma[1]))
    noise = jax.random.normal(jax.random.key(0), (1, 8, 8, 1))
    step = partial(ddim_step, known, schedule)
    ends = jnp.array([1.0]), jnp.array([0.0]), CONTEXT, jnp.float32(1.0)
    moved = step(jnp.zeros_like(noise), *ends, noise) / noise
    expected = np.sqrt((1 - 0.81) / (1 - 0.25) * (1 - 0.25 / 0.81))
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


def test_ddpm_is_ancestral_sampling():
    """Against Ho et al. 2020, alg. 2 with eq. 7, in float64, with the very same noise."""
    schedule = make_schedule("ldm_linear", 50, beta_start=0.01, beta_end=0.3)
    noise = keyed_noise(jax.random.split(jax.random.key(2), 3))
    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 1))
    found = ddpm(gaussian_denoiser(schedule), schedule, x, CONTEXT, noise=noise)

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


def test_ddpm_gives_the_moments_of_the_data():
    schedule = make_schedule("cosine", 500)
    x = jax.random.normal(jax.random.key(1), (4, 64, 64, 1))
    noise = keyed_noise(jax.random.split(jax.random.key(2), 4))
    out = ddpm(gaussian_denoiser(schedule), schedule, x, CONTEXT, noise=noise)
    np.testing.assert_allclose(out.mean(), MEAN, atol=0.01)
    np.testing.assert_allclose(out.std(), STD, rtol=0.02)


def test_all_steps_share_one_compilation_and_the_start_noise_stays_valid():
    schedule, traces = make_schedule("cosine"), []

    def apply(params, x, timestep, context):
        traces.append(1)
        return params * x

    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    runs = [
        ddim(
            make_denoiser(apply, jnp.float32(p), schedule, "v", CONTEXT[0], w),
            schedule,
            x,
            jnp.zeros((2, 1, 2)),
            timesteps=trailing_timesteps(1000, steps),
        )
        for p, w, steps in [(0.1, 2.0, 9), (0.2, 3.0, 5)]
    ]
    assert len(traces) == 1  # other parameters, guidance and steps included
    assert np.isfinite(x).all() and np.abs(runs[0] - runs[1]).max() > 1e-3


def test_plms_compiles_the_network_once_and_calls_it_once_more_than_it_steps():
    schedule, traces, calls = make_schedule("cosine"), [], []

    def apply(params, x, timestep, context):
        traces.append(1)
        jax.debug.callback(lambda t: calls.append(int(t)), timestep[0])
        return params * x

    denoise = make_denoiser(apply, jnp.float32(0.1), schedule, "v", CONTEXT[0], 1.0)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    context, path = jnp.zeros((2, 1, 2)), leading_timesteps(1000, 5)
    assert np.isfinite(plms(denoise, schedule, x, context, timesteps=path)).all()
    jax.effects_barrier()
    assert len(traces) == 1 and calls == [801, 601, 601, 401, 201, 1]


def test_noise_of_an_example_does_not_depend_on_its_batch():
    schedule = make_schedule("cosine")
    denoise = gaussian_denoiser(schedule)
    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 1))
    keys = jax.random.split(jax.random.key(2), 3)
    path = trailing_timesteps(1000, 6)
    run = partial(ddim, denoise, schedule, context=CONTEXT, timesteps=path, eta=1.0)
    together, alone = run(x, noise=keyed_noise(keys)), run(x[1:2], noise=keyed_noise(keys[1:2]))
    np.testing.assert_allclose(together[1:2], alone, atol=1e-6)


def test_noise_is_drawn_for_every_step_but_one_to_the_clean_end():
    schedule, drawn = make_schedule("cosine"), []

    def noise(step, like):
        drawn.append(step)
        return jnp.ones_like(like)

    x = jnp.zeros((1, 2, 2, 1))
    run = partial(ddim, gaussian_denoiser(schedule), schedule, x, CONTEXT, eta=1.0, noise=noise)
    run(timesteps=trailing_timesteps(1000, 3))
    assert drawn == [0, 1]
    drawn.clear()
    run(timesteps=leading_timesteps(1000, 3))
    assert drawn == [0, 1, 2]


@pytest.mark.parametrize("solver", [ddim, plms])
def test_progress_sees_every_step(solver):
    seen, schedule = [], make_schedule("cosine")

    def progress(pairs):
        for pair in pairs:
            seen.append(tuple(int(t) for t in pair))
            yield pair

    x = jnp.zeros((1, 2, 2, 1))
    path = trailing_timesteps(1000, 3)
    solver(gaussian_denoiser(schedule), schedule, x, CONTEXT, timesteps=path, progress=progress)
    assert seen == [(999, 666), (666, 332), (332, -1)]


# Errors


def test_bad_input_is_named():
    schedule, x = make_schedule("cosine", 10), jnp.zeros((1, 2, 2, 1))
    denoise = gaussian_denoiser(schedule)
    with pytest.raises(InputError, match="unknown schedule 'sigmoid'.*ldm_linear"):
        make_schedule("sigmoid")
    with pytest.raises(InputError, match="0 steps"):
        make_schedule("cosine", 0)
    with pytest.raises(InputError, match="'velocity'.*eps, x0, v"):
        make_denoiser(lambda *a: x, {}, schedule, "velocity", CONTEXT[0], 1.0)
    for guidance in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="guidance"):
            make_denoiser(lambda *a: x, {}, schedule, "v", CONTEXT[0], guidance)
    for steps in (0, 11):
        with pytest.raises(InputError, match="expected 1 to 10"):
            trailing_timesteps(10, steps)
        with pytest.raises(InputError, match="expected 1 to 9"):
            leading_timesteps(10, max(0, steps - 1))
    for path in ([9], [], [9, 9], [3, 5], [10, 0], [5, -2]):
        for solver in (ddim, plms):
            with pytest.raises(InputError, match=r"timesteps \[.*from at most 9 to at least -1"):
                solver(denoise, schedule, x, CONTEXT, timesteps=np.array(path, int))
    run = partial(ddim, denoise, schedule, x, CONTEXT, timesteps=trailing_timesteps(10, 2))
    with pytest.raises(InputError, match="without noise"):
        run(eta=0.5)
    for eta in (1.5, np.array([0.5, -0.1]), np.array([0.5, 0.5, 0.5])):
        with pytest.raises(InputError, match=r"eta .*for all or each of 2 steps"):
            run(eta=eta, noise=keyed_noise(jax.random.split(jax.random.key(0), 1)))
    with pytest.raises(InputError, match="single step"):
        plms(denoise, schedule, x, CONTEXT, timesteps=trailing_timesteps(10, 1))
