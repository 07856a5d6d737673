"""Making a part anew: what is known comes through, and what is made belongs to it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_diffusion.diffusion.denoiser import make_denoiser
from ssl_diffusion.diffusion.inpainting import keep_known, repainting_plan
from ssl_diffusion.diffusion.prediction import over_pixels
from ssl_diffusion.diffusion.sampling import Sampling
from ssl_diffusion.diffusion.schedule import make_schedule
from ssl_diffusion.diffusion.solvers import keyed_noise, solve
from ssl_diffusion.diffusion.timesteps import trailing_timesteps
from ssl_diffusion.errors import InputError

SCHEDULE = make_schedule("cosine")
CONTEXT = jnp.zeros((1, 2))
PATH = trailing_timesteps(SCHEDULE.steps, 50)


def shifting(params, x, timestep, context):
    """A network whose pixels look at their neighbours."""
    return jnp.roll(x, 1, axis=2) * 0.5


@dataclasses.dataclass(frozen=True)
class Pair:
    """E[x0 | x] of two pixels side by side, each N(0, 1), with this correlation."""

    correlation: float

    def __call__(self, schedule, x, timestep, context):
        alpha, sigma = schedule.at(timestep)

        def denoised(part, variance):
            gain = alpha * variance / (alpha**2 * variance + sigma**2)
            return over_pixels(gain) * part

        # Half the sum and half the difference are independent: variances (1 + r) / 2, (1 - r) / 2,
        # of noise a half.
        left, right = x[:, :, :1], x[:, :, 1:]
        both = denoised((left + right) / 2, 1 + self.correlation)
        apart = denoised((left - right) / 2, 1 - self.correlation)
        return jnp.concatenate([both + apart, both - apart], axis=2)


def inpaint(network, plan, known, mask, shape):
    """Samples of this shape around what is known, [h, w, c] where the mask [h, w] is False."""
    denoise = make_denoiser(network, SCHEDULE, SCHEDULE, "x0", CONTEXT, 1.0)
    denoise = keep_known(
        denoise, SCHEDULE, jnp.asarray(known[None]), jnp.asarray(mask[None, ..., None])
    )
    keys = jax.random.split(jax.random.key(7), shape[0])
    noise, context = (
        jax.random.normal(jax.random.key(1), shape),
        jnp.zeros((shape[0], *CONTEXT.shape)),
    )
    made = solve(plan, lambda k: (denoise, context), noise, noise=keyed_noise(keys))
    return np.asarray(made)


def other_of_pair(correlation, plan):
    """What is made beside a pixel known to be 1.5."""
    known, mask = np.full((1, 2, 1), 1.5, np.float32), np.array([[False, True]])
    return inpaint(Pair(correlation), plan, known, mask, (4000, 1, 2, 1))[:, 0, 1, 0]


@pytest.mark.parametrize("solver", ["ddim", "ancestral", "dpmpp", "unipc", "plms", "heun"])
def test_what_is_known_comes_out_as_it_was(solver):
    rng = np.random.default_rng(0)
    known = rng.normal(size=(6, 8, 3)).astype(np.float32)
    mask = rng.random((6, 8)) < 0.5
    plan = Sampling(10, 1.0, solver).plan(SCHEDULE)
    made = inpaint(shifting, plan, known, mask, (4, 6, 8, 3))
    # PLMS steps along eps, in which rounding stays: a few units in the last place.
    np.testing.assert_allclose(made[:, ~mask], np.tile(known[~mask], (4, 1, 1)), atol=4e-6)
    if solver != "plms":
        np.testing.assert_array_equal(made[:, ~mask], np.tile(known[~mask], (4, 1, 1)))
    assert np.abs(made[:, mask] - known[mask]).mean() > 0.1


def test_nothing_kept_is_the_denoiser_itself():
    denoise = make_denoiser(shifting, SCHEDULE, SCHEDULE, "x0", CONTEXT, 1.0)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    kept = keep_known(denoise, SCHEDULE, jnp.zeros((1, 4, 4, 3)), jnp.ones((1, 4, 4, 1), bool))
    arguments = x, jnp.array([10.0, 700.0]), jnp.zeros((2, *CONTEXT.shape))
    jax.tree.map(np.testing.assert_array_equal, kept(*arguments), denoise(*arguments))


@pytest.mark.parametrize("correlation", [0.9, 0.0, -0.9])
def test_what_is_made_follows_what_is_known_nearly_as_the_conditional_distribution(correlation):
    made = other_of_pair(correlation, repainting_plan(SCHEDULE, PATH, 10))
    assert made.mean() == pytest.approx(1.5 * correlation, abs=0.08)
    assert made.std() == pytest.approx(np.sqrt(1 - correlation**2), abs=0.04)


def test_more_passes_come_nearer():
    means = [other_of_pair(0.9, repainting_plan(SCHEDULE, PATH, n)).mean() for n in (1, 2, 4, 10)]
    assert 0.6 < means[0] < means[1] < means[2] < means[3] < 1.35
    once = Sampling(50, 1.0, "ddim").plan(SCHEDULE)
    assert means[0] == other_of_pair(0.9, once).mean()


def test_a_step_back_keeps_the_level_of_noise():
    """A known pixel is alpha known + sigma noise at every evaluation, however often it is there."""
    plan = repainting_plan(SCHEDULE, PATH, 3)
    assert len(plan.timesteps) == 150 and plan.memory == 0
    alpha, sigma = SCHEDULE.levels(plan.timesteps)
    x, x0, eps, noise = plan.weights[:-1, 0].T
    np.testing.assert_allclose(x, 0, atol=0)
    np.testing.assert_allclose(x0, alpha[1:], rtol=1e-9)
    np.testing.assert_allclose(eps**2 + noise**2, sigma[1:] ** 2, rtol=1e-9)


def test_no_pass_is_refused():
    with pytest.raises(InputError, match="0 passes of every step; expected at least 1"):
        repainting_plan(SCHEDULE, PATH, 0)
