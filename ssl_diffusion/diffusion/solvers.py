"""Solvers: from noise to a clean latent with any denoiser."""

from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ssl_diffusion.diffusion.denoiser import Denoiser
from ssl_diffusion.diffusion.prediction import over_pixels
from ssl_diffusion.diffusion.schedule import Schedule
from ssl_diffusion.errors import InputError


def ddim_timesteps(total: int, steps: int) -> Int[np.ndarray, " steps"]:
    """Descending timesteps with trailing spacing (Lin et al. 2024, table 2): T - 1 comes first.

    Starting below T - 1 would hand the network pure noise and tell it that some signal is left.

    Args:
      total: T, the length of the noise table.
      steps: how many to take, 1 to T.

    Raises:
      InputError: steps outside 1..T.
    """
    if not 1 <= steps <= total:
        raise InputError(f"{steps} sampling steps; expected 1 to {total}, the schedule's length")
    return np.round(total - np.arange(steps) * (total / steps)).astype(np.int32) - 1


@partial(jax.jit, donate_argnames="x")
def ddim_step(
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "b h w c"],
    timestep: Float[Array, " b"],
    next_timestep: Float[Array, " b"],
    context: Float[Array, "n tokens width"],
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
    context: Float[Array, "n tokens width"],
    *,
    steps: int,
    eta: float = 0.0,
    key: Key[Array, " b"] | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Float[Array, "b h w c"]:
    """Runs DDIM from noise to a clean latent: a host loop over `ddim_step`; no trajectory is kept.

    Args:
      denoise: a Denoiser.
      schedule: the noise table.
      x: standard normal start noise; stays valid: it is copied once, since the steps donate.
      context: what `denoise` expects.
      steps: network evaluations, 1 to T.
      eta: 0 (deterministic) to 1 (the noise of DDPM).
      key: one key per example, needed when eta > 0: an example's noise is its own in any batch.
      progress: wraps the iterable of steps, e.g. `partial(tqdm, desc="sample", unit="step")`.

    Raises:
      InputError: steps outside 1..T, eta outside 0..1, or eta > 0 without keys.
    """
    timesteps = ddim_timesteps(schedule.steps, steps)
    if not 0 <= eta <= 1:
        raise InputError(f"eta {eta}; expected 0 (deterministic) to 1 (the noise of DDPM)")
    if eta > 0 and key is None:
        raise InputError(f"eta {eta} without keys; pass one key per example")

    x = jnp.array(x, copy=True)
    batch = x.shape[0]
    pairs = list(zip(timesteps, [*timesteps[1:], -1], strict=True))
    for timestep, next_timestep in progress(pairs) if progress else pairs:
        noise = _noise(key, timestep, x) if eta > 0 else None
        now = jnp.full((batch,), timestep, jnp.float32)
        then = jnp.full((batch,), next_timestep, jnp.float32)
        x = ddim_step(denoise, schedule, x, now, then, context, jnp.float32(eta), noise)
        if progress:
            x.block_until_ready()  # dispatch is asynchronous: without this the bar runs ahead
    return x


@jax.jit
def _noise(key: Key[Array, " b"], timestep: Int[Array, ""], like: Array) -> Array:
    """Fresh noise for one step, keyed per example and timestep."""

    def one(key: Array, like: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(key, timestep), like.shape, like.dtype)

    return jax.vmap(one)(key, like)
