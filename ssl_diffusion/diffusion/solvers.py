"""Solvers: from noise to a clean latent with any denoiser, along any path of timesteps."""

from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from ssl_diffusion.diffusion.denoiser import Denoiser
from ssl_diffusion.diffusion.prediction import over_pixels, to_prediction
from ssl_diffusion.diffusion.schedule import Schedule
from ssl_diffusion.errors import InputError

Noise = Callable[[int, Array], Array]
"""noise(step, like) -> standard normal of the shape of `like`; steps count from 0 along a path."""

# Adams-Bashforth weights of the newest eps and of older ones, by how many there are. The first
# step has eps at both of its ends instead (improved Euler).
IMPROVED_EULER = (1 / 2, 1 / 2)
ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def trailing_timesteps(total: int, steps: int) -> Int[np.ndarray, "{steps}+1"]:
    """From T - 1 down to the clean end, -1: trailing spacing (Lin et al. 2024, table 2).

    Starting below T - 1 would hand the network pure noise and tell it that some signal is left.
    The published large images are sampled along this path.

    Args:
      total: T, the length of the noise table.
      steps: how many to take, 1 to T.

    Raises:
      InputError: steps outside 1..T.
    """
    if not 1 <= steps <= total:
        raise InputError(f"{steps} sampling steps; expected 1 to {total}, the schedule's length")
    timesteps = np.round(total - np.arange(steps) * (total / steps)).astype(np.int32) - 1
    return np.append(timesteps, np.int32(-1))


def leading_timesteps(total: int, steps: int) -> Int[np.ndarray, "{steps}+1"]:
    """(steps - 1) c + 1, ..., c + 1, 1 and then 0, with c = T // steps: leading spacing.

    Rombach et al. 2022 sample patches along this path (981, 961, ..., 1, 0 for 50 of 1000 steps).
    It ends at the noise level of timestep 0, not clean.

    Args:
      total: T, the length of the noise table.
      steps: how many to take, 1 to T - 1.

    Raises:
      InputError: steps outside 1..T - 1.
    """
    if not 1 <= steps < total:
        raise InputError(f"{steps} sampling steps with leading spacing; expected 1 to {total - 1}")
    timesteps = np.arange(steps)[::-1] * (total // steps) + 1
    return np.append(timesteps, 0).astype(np.int32)


def keyed_noise(keys: Key[Array, " b"]) -> Noise:
    """Noise from one key per example: an example's noise is its own in any batch."""
    return partial(_keyed_noise, keys)


@jax.jit
def _keyed_noise(keys: Key[Array, " b"], step: Int[Array, ""], like: Array) -> Array:
    def one(key: Array, like: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(key, step), like.shape, like.dtype)

    return jax.vmap(one)(keys, like)


@partial(jax.jit, donate_argnames="x")
def ddim_step(
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "b h w c"],
    timestep: Float[Array, " b"],
    next_timestep: Float[Array, " b"],
    context: PyTree,
    eta: Float[Array, ""],
    noise: Float[Array, "b h w c"] | None,
) -> Float[Array, "b h w c"]:
    """One step of DDIM (Song et al. 2021, eq. 12, its sigma from eq. 16). `x` is donated.

    Timesteps and eta are traced: all steps of a run share one compilation.

    Args:
      denoise: a Denoiser; a pytree, so its parameters are arguments of the compiled step.
      schedule: the noise table.
      x: noisy latents at `timestep`.
      timestep: where `x` is.
      next_timestep: where to go; -1 is the clean end.
      context: what `denoise` expects for these `x` (n = b, except for a stitched denoiser).
      eta: 0 is deterministic, 1 has the noise of DDPM.
      noise: standard normal, or None, which means eta 0.
    """
    alpha, sigma = schedule.at(timestep)
    next_alpha, next_sigma = schedule.at(next_timestep)
    x0, eps = denoise(x, timestep, context)
    if noise is None:
        return over_pixels(next_alpha) * x0 + over_pixels(next_sigma) * eps
    # alpha_s^2 - alpha_t^2, s the next timestep, from whichever of alpha and sigma is not near one,
    # where float32 would cancel.
    lost = jnp.where(
        alpha > sigma,
        (sigma - next_sigma) * (sigma + next_sigma),
        (next_alpha - alpha) * (next_alpha + alpha),
    )
    fresh = eta * next_sigma / sigma * jnp.sqrt(lost) / next_alpha
    kept = jnp.sqrt(jnp.maximum(next_sigma**2 - fresh**2, 0.0))
    return over_pixels(next_alpha) * x0 + over_pixels(kept) * eps + over_pixels(fresh) * noise


def ddim(
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "b h w c"],
    context: PyTree,
    *,
    timesteps: Int[np.ndarray, " path"],
    eta: float | Float[np.ndarray, " steps"] = 0.0,
    noise: Noise | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Float[Array, "b h w c"]:
    """Runs DDIM from noise to a clean latent: a host loop over `ddim_step`; no trajectory is kept.

    Args:
      denoise: a Denoiser.
      schedule: the noise table.
      x: latents at the first timestep, standard normal noise at T - 1; stays valid: it is copied
        once, since the steps donate.
      context: what `denoise` expects.
      timesteps: the path with both its ends, e.g. `trailing_timesteps(schedule.steps, 50)`.
      eta: 0 (deterministic) to 1 (the noise of DDPM), for all steps or one for each.
      noise: where each step's noise comes from, e.g. `keyed_noise(keys)`; needed when eta > 0. A
        step to the clean end takes none.
      progress: wraps the iterable of steps, e.g. `partial(tqdm, desc="sample", unit="step")`.

    Raises:
      InputError: a path that does not descend within the schedule, eta outside 0..1, or eta > 0
        without noise.
    """
    pairs = _pairs(timesteps, schedule)
    etas = np.asarray(eta, np.float32)
    if etas.shape not in ((), (len(pairs),)) or not ((etas >= 0) & (etas <= 1)).all():
        raise InputError(
            f"eta {eta}; expected 0 (deterministic) to 1 (the noise of DDPM), for all or each of "
            f"{len(pairs)} steps"
        )
    noisy = bool(etas.any())
    if noisy and noise is None:
        raise InputError(f"eta {eta} without noise; pass keyed_noise(keys), one key per example")

    etas = jnp.asarray(np.broadcast_to(etas, len(pairs)))
    x = jnp.array(x, copy=True)
    for step, (timestep, next_timestep) in enumerate(progress(pairs) if progress else pairs):
        fresh = None
        if noisy:  # zeros at the clean end, which has none: leaving it out would compile anew
            fresh = noise(step, x) if next_timestep >= 0 else jnp.zeros_like(x)
        ends = (_each(timestep, x), _each(next_timestep, x))
        x = ddim_step(denoise, schedule, x, *ends, context, etas[step], fresh)
        if progress:
            x.block_until_ready()  # dispatch is asynchronous: without this the bar runs ahead
    return x


def ddpm(
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "b h w c"],
    context: PyTree,
    *,
    noise: Noise,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Float[Array, "b h w c"]:
    """Ancestral sampling (Ho et al. 2020, alg. 2) over all T timesteps, variance beta~ (eq. 7).

    It is DDIM with eta 1 (Song et al. 2021, section 4.1): see `ddim` for the arguments.
    """
    timesteps = trailing_timesteps(schedule.steps, schedule.steps)
    run = partial(ddim, timesteps=timesteps, eta=1.0, noise=noise, progress=progress)
    return run(denoise, schedule, x, context)


def plms(
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "b h w c"],
    context: PyTree,
    *,
    timesteps: Int[np.ndarray, " path"],
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Float[Array, "b h w c"]:
    """Runs PLMS, pseudo linear multistep (Liu et al. 2022, arXiv 2202.09778, section 3).

    Each step is one of DDIM along an eps combined from the last four, as many as
    there are. The first takes eps at both its ends, so n steps evaluate the network n + 1 times;
    the paper starts with three Runge-Kutta steps instead, the published LDM sampler as here.

    Deterministic. The network's x0 counts only through its eps, so the first timestep must hold
    some signal (alpha > 0). Arguments as those of `ddim`.

    Raises:
      InputError: a path that does not descend within the schedule, or of a single step.
    """
    pairs = _pairs(timesteps, schedule)
    if len(pairs) < 2:  # its far end would be the clean one, which no network was trained on
        raise InputError("PLMS with a single step; expected 2 or more, or use DDIM")
    history: tuple[Array, ...] = ()
    for timestep, next_timestep in progress(pairs) if progress else pairs:
        ends = _each(timestep, x), _each(next_timestep, x)
        history = (_eps(denoise, x, ends[0], context), *history[:3])
        if len(history) == 1:
            there = _follow(schedule, x, history, jnp.ones(1), *ends)
            both = (*history, _eps(denoise, there, ends[1], context))
            x = _follow(schedule, x, both, jnp.float32(IMPROVED_EULER), *ends)
        else:
            x = _follow(schedule, x, history, jnp.float32(ADAMS_BASHFORTH[len(history)]), *ends)
        if progress:
            x.block_until_ready()
    return x


@jax.jit
def _eps(denoise: Denoiser, x: Array, timestep: Array, context: PyTree) -> Array:
    return denoise(x, timestep, context).eps


@jax.jit
def _follow(
    schedule: Schedule,
    x: Float[Array, "b h w c"],
    history: tuple[Array, ...],
    weights: Float[Array, " k"],
    timestep: Float[Array, " b"],
    next_timestep: Float[Array, " b"],
) -> Float[Array, "b h w c"]:
    """A DDIM step along the weighted sum of several eps."""
    eps = sum(weight * eps for weight, eps in zip(weights, history, strict=True))
    x0 = to_prediction("eps", eps, x, *schedule.at(timestep)).x0
    next_alpha, next_sigma = schedule.at(next_timestep)
    return over_pixels(next_alpha) * x0 + over_pixels(next_sigma) * eps


def _pairs(timesteps: Int[np.ndarray, " path"], schedule: Schedule) -> list[tuple[int, int]]:
    """(from, to) of each step; InputError unless the path descends within -1..T - 1."""
    path = [int(timestep) for timestep in timesteps]
    pairs = list(zip(path[:-1], path[1:], strict=True))
    inside = pairs and path[0] < schedule.steps and path[-1] >= -1
    if not inside or any(here <= there for here, there in pairs):
        raise InputError(
            f"timesteps {path}; expected two or more that descend from at most "
            f"{schedule.steps - 1} to at least -1, the clean end"
        )
    return pairs


def _each(timestep: int, x: Array) -> Float[Array, " b"]:
    return jnp.full(x.shape[:1], timestep, jnp.float32)
