"""The numbers of solvers against the formulas of their papers."""

import numpy as np
import pytest

from ssl_diffusion.diffusion.plans import SOLVERS, make_plan
from ssl_diffusion.diffusion.schedule import make_schedule
from ssl_diffusion.diffusion.timesteps import trailing_timesteps
from ssl_diffusion.errors import InputError

LDM, FLOW = make_schedule("ldm_linear"), make_schedule("flow")


@pytest.mark.parametrize("schedule", [LDM, FLOW])
def test_ddim_moves_along_x0_and_eps_to_the_next_levels(schedule):
    path = trailing_timesteps(1000, 20)
    alpha, sigma = schedule.levels(path)
    eta = np.linspace(0, 1, 20)
    weights = make_plan("ddim", schedule, path, eta=eta).weights[:, 0]
    assert not weights[:, 0].any()  # of x itself
    np.testing.assert_array_equal(weights[:, 1], alpha[1:])
    # Song et al. 2021, eq. 16, its 1 - abar_t / abar_s the variance that leads from s to t.
    passed = sigma[:-1] ** 2 - (alpha[:-1] / alpha[1:]) ** 2 * sigma[1:] ** 2
    s = eta * sigma[1:] / sigma[:-1] * np.sqrt(passed)
    np.testing.assert_allclose(weights[:, 3], s, rtol=1e-7)
    np.testing.assert_allclose(weights[:, 2] ** 2 + s**2, sigma[1:] ** 2, rtol=1e-9)


def test_ancestral_noise_has_the_posterior_variance_of_ddpm():
    # Ho et al. 2020, eq. 7: beta~ = (1 - abar_s) / (1 - abar_t) beta_t, here between any two steps.
    plan = make_plan("ancestral", LDM, np.array([700, 300]))
    here, there = np.asarray(LDM.alpha, np.float64)[[700, 300]] ** 2
    expected = (1 - there) / (1 - here) * (1 - here / there)
    np.testing.assert_allclose(plan.weights[0, 0, -1] ** 2, expected, rtol=1e-6)
    assert plan.stochastic and not make_plan("ddim", LDM, np.array([700, 300])).stochastic


def test_dpmpp_is_that_of_lu_et_al():
    path = np.array([900.0, 700.0, 450.0])
    alpha, sigma = LDM.levels(path)
    h = np.diff(np.log(alpha / sigma))
    r = h[0] / h[1]
    plan = make_plan("dpmpp", LDM, path)
    gain = -alpha[2] * np.expm1(-h[1])
    x0, older = gain * (1 + 1 / (2 * r)), -gain / (2 * r)
    expected = [[sigma[2] / sigma[1], older, x0, 0, 0], [0, 0, 1, 0, 0]]
    np.testing.assert_allclose(plan.weights[1], expected, rtol=1e-12)


def test_unipc_predicts_like_dpmpp_and_corrects_exactly_for_a_parabola():
    """Zhao et al. 2023: UniP-2 with B_2, and UniC-2, whose two equations leave no freedom."""
    path = np.array([950.0, 700.0, 600.0, 300.0, 150.0, 40.0])
    alpha, sigma = LDM.levels(path)
    half = np.log(alpha / sigma)
    unipc, dpmpp = (make_plan(name, LDM, path).weights for name in ("unipc", "dpmpp"))

    def parabola(at):
        return 0.3 - 0.2 * at + 0.1 * at**2

    x, memory, corrected, older = 0.7, np.zeros(2), 0.7, 0.0
    for k in range(5):
        x0 = parabola(half[k])
        x, *memory = unipc[k] @ [x, *memory, x0, 0, 0]
        np.testing.assert_allclose(x, dpmpp[k, 0, :3] @ [corrected, older, x0], rtol=1e-7)
        older = x0
        if k == 0:  # UniC-1: the mean of both ends
            both = (x0 + parabola(half[1])) / 2
            corrected = dpmpp[0, 0, :3] @ [corrected, 0, both]
        else:  # x' = sigma' / sigma x + sigma' * integral of e^l x0(l) dl
            at = np.linspace(half[k], half[k + 1], 20001)
            integral = np.trapezoid(np.exp(at) * parabola(at), at)
            corrected = sigma[k + 1] * (corrected / sigma[k] + integral)


def test_plans_have_as_many_evaluations_as_their_solvers_say():
    for schedule, twice in ((LDM, 11), (FLOW, 10)):  # Heun: once onto clean, and from pure noise
        expected = {"ddim": 6, "ancestral": 6, "dpmpp": 6, "unipc": 6, "heun": twice}
        for solver, count in expected.items():
            assert len(make_plan(solver, schedule, trailing_timesteps(1000, 6)).timesteps) == count
    assert len(make_plan("plms", LDM, trailing_timesteps(1000, 6)).timesteps) == 7


@pytest.mark.parametrize("solver", [*SOLVERS])
def test_weights_are_finite_wherever_the_path_starts_and_ends(solver):
    for schedule in (LDM, FLOW):
        for path in ([999, 500, 1, -1], [999, 998, 0.5, -0.5], [700.5, 3, 0], [50, -0.9, -1]):
            plan = make_plan(solver, schedule, np.array(path))
            assert np.isfinite(plan.weights).all() and (np.diff(plan.timesteps) <= 0).all()


def test_bad_plans_are_named():
    schedule = make_schedule("cosine", 10)
    with pytest.raises(InputError, match="unknown solver 'euler'.*ddim, ancestral, plms"):
        make_plan("euler", schedule, np.array([9, -1]))
    for path in ([9], [], [9, 9], [3, 5], [10, 0], [5, -2], [9, float("nan"), 0]):
        for solver in SOLVERS:
            with pytest.raises(InputError, match=r"timesteps \[.*from at most 9 to at least -1"):
                make_plan(solver, schedule, np.array(path, float))
    path = trailing_timesteps(10, 2)
    for eta in (1.5, np.array([0.5, -0.1]), np.array([0.5, 0.5, 0.5])):
        with pytest.raises(InputError, match=r"eta .*for all or each of 2 steps"):
            make_plan("ddim", schedule, path, eta=eta)
    single = make_plan("plms", LDM, trailing_timesteps(1000, 1))
    np.testing.assert_array_equal(
        single.weights, make_plan("ddim", LDM, trailing_timesteps(1000, 1)).weights
    )
    flat = schedule.replace(alpha=schedule.alpha.at[8:].set(0.0))
    with pytest.raises(InputError, match="the noise does not fall"):
        make_plan("ddim", flat, np.array([9, 8, -1]))
