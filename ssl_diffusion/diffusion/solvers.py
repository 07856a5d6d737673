"""Running a plan: from noise to a latent with any denoiser, along any path of timesteps."""

from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from ssl_diffusion.diffusion.denoiser import Denoiser
from ssl_diffusion.diffusion.plans import NOISE, Plan
from ssl_diffusion.diffusion.prediction import Prediction
from ssl_diffusion.errors import InputError

Noise = Callable[[int, Array], Array]
"""noise(k, like) -> standard normal of the shape of `like`, for evaluation k of a plan."""


def keyed_noise(keys: Key[Array, " b"]) -> Noise:
    """Noise from one key per example: an example's noise is its own in any batch."""
    return partial(_keyed_noise, keys)


@jax.jit
def _keyed_noise(keys: Key[Array, " b"], step: Int[Array, ""], like: Array) -> Array:
    def one(key: Array, like: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(key, step), like.shape, like.dtype)

    return jax.vmap(one)(keys, like)


def advance(
    weights: Float[Array, "rows terms"],
    state: Float[Array, "rows *canvas"],
    prediction: Prediction,
    noise: Float[Array, "*canvas"] | None,
) -> Float[Array, "rows *canvas"]:
    """The next (x, *memory): each row of `weights` times the terms, see `plans.Plan`.

    Sums of products, not a matrix product: accelerators would take that in bfloat16 or TF32.

    Args:
      weights: of this evaluation.
      state: x and the memory.
      prediction: what the denoiser says of x.
      noise: standard normal; None leaves its term out.
    """
    terms = [*state, *prediction, *([] if noise is None else [noise])]

    def combine(row: Float[Array, " terms"]) -> Array:
        return sum(row[column] * term for column, term in enumerate(terms))

    return jnp.stack([combine(row) for row in weights])


@partial(jax.jit, donate_argnames="state")
def step(
    denoise: Denoiser,
    weights: Float[Array, "rows terms"],
    state: Float[Array, "rows b h w c"],
    timestep: Float[Array, ""],
    context: PyTree,
    noise: Float[Array, "b h w c"] | None,
) -> Float[Array, "rows b h w c"]:
    """One evaluation of the network and the step that follows, compiled. `state` is donated."""
    x = state[0]
    prediction = denoise(x, jnp.broadcast_to(timestep, x.shape[:1]), context)
    return advance(weights, state, prediction, noise)


@partial(jax.jit, static_argnames="memory")
def _start(x: Float[Array, "b h w c"], memory: int) -> Float[Array, "rows b h w c"]:
    return jnp.stack([x, *[jnp.zeros_like(x)] * memory])


def solve(
    plan: Plan,
    at: Callable[[int], tuple[Denoiser, PyTree]],
    x: Float[Array, "b h w c"],
    *,
    noise: Noise | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Float[Array, "b h w c"]:
    """Runs a plan: a host loop over one jitted step; no trajectory is kept.

    Timesteps and weights are traced: all paths, and all solvers of the same memory, share one
    compilation.

    Args:
      plan: from `make_plan`.
      at: k -> (denoiser, context) of evaluation k: `lambda k: (denoise, context)`, unless windows
        or guidance change on the way. Denoisers are pytrees, so their parameters are arguments of
        the compiled step.
      x: latents at the path's first timestep, standard normal noise at T - 1; stays valid.
      noise: where each step's noise comes from, e.g. `keyed_noise(keys)`; needed if the plan is
        stochastic. It is asked only where the plan adds some.
      progress: wraps the iterable of evaluations, e.g. `partial(tqdm, unit="step")`.

    Raises:
      InputError: a stochastic plan without noise.
    """
    if plan.stochastic and noise is None:
        raise InputError("a stochastic solver without noise; pass keyed_noise, one key per example")
    timesteps, weights = plan.timesteps.astype(np.float32), plan.weights.astype(np.float32)
    evaluations = range(len(timesteps))
    state = _start(x, plan.memory)
    for k in progress(evaluations) if progress else evaluations:
        fresh = None
        if plan.stochastic:  # zeros where there is none: leaving it out would compile anew
            noisy = weights[k, :, NOISE].any()
            fresh = noise(k, state[0]) if noisy else jnp.zeros_like(x)
        denoise, context = at(k)
        state = step(denoise, weights[k], state, timesteps[k], context, fresh)
        if progress:
            state.block_until_ready()  # dispatch is asynchronous: without this the bar runs ahead
    return state[0]
