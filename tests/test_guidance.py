"""Guidance: its formula, and the evaluations it is given to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import CONTEXT

from ssl_diffusion.diffusion.denoiser import make_denoiser
from ssl_diffusion.diffusion.guidance import guide, guided_evaluations
from ssl_diffusion.diffusion.sampling import Sampling
from ssl_diffusion.diffusion.schedule import make_schedule
from ssl_diffusion.diffusion.solvers import solve
from ssl_diffusion.errors import InputError


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
        lambda p, *xs: network(*xs), {}, make_schedule("flow", 2), "x0", jnp.ones((1, 2)), 1.0
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


# Intervals of noise levels


def sample(interval, calls, guidance=3.0):
    """Six Heun steps along the flow schedule, t = 1, 5/6, ..., 1/6 and clean."""
    schedule = make_schedule("flow", 6)

    def apply(params, x, timestep, context):
        jax.debug.callback(lambda: calls.append(x.shape[0]), ordered=True)
        return params * x + context.sum((1, 2))[:, None, None, None]

    sampling = Sampling(6, guidance, "heun", interval)
    plan = sampling.plan(schedule)

    def make(scale):
        return make_denoiser(apply, jnp.float32(0.1), schedule, "v", CONTEXT[0], scale)

    denoisers = sampling.denoisers(schedule, plan, make)
    x = jax.random.normal(jax.random.key(0), (2, 2, 2, 1))
    context = jnp.ones((2, 1, 2))
    found = solve(plan, lambda k: (denoisers[k], context), x)
    jax.effects_barrier()
    return np.asarray(found)


def test_outside_the_interval_the_unconditional_half_is_not_computed():
    calls = []
    sample((0.4, 2.5), calls)
    # sigma / alpha: infinite and 5; 2, 1 and 1/2, each twice; 1/5 twice.
    assert calls == [2] * 2 + [4] * 6 + [2] * 2
    calls.clear()
    everywhere = sample(None, calls)
    assert calls == [4] * 10
    inside = sample((0.01, 1e6), calls)  # all but pure noise
    assert np.abs(inside - everywhere).max() > 1e-3


def test_an_interval_without_steps_is_no_guidance():
    calls = []
    np.testing.assert_array_equal(sample((3.0, 4.0), calls), sample(None, calls, guidance=1.0))
    assert calls == [2] * 20


def test_the_interval_is_open_below_and_closed_above():
    schedule = make_schedule("flow", 4)  # sigma / alpha: 1/3, 1, 3, infinite
    timesteps = np.arange(4.0)
    np.testing.assert_array_equal(guided_evaluations(schedule, timesteps, (1.0, 3.0)), [0, 0, 1, 0])
    np.testing.assert_array_equal(guided_evaluations(schedule, timesteps, (0.0, 1.0)), [1, 1, 0, 0])
    assert guided_evaluations(schedule, timesteps, None).all()


def test_bad_guidance_is_named():
    schedule = make_schedule("cosine", 10)
    for guidance in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="guidance"):
            make_denoiser(lambda *a: a, {}, schedule, "v", CONTEXT[0], guidance)
        with pytest.raises(InputError, match="guidance"):
            Sampling(5, guidance)
    for interval in ((2.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(InputError, match="guidance interval .*0 <= low < high"):
            guided_evaluations(schedule, np.arange(3.0), interval)
        with pytest.raises(InputError, match="guidance interval"):
            Sampling(5, 2.0, guidance_interval=interval)
