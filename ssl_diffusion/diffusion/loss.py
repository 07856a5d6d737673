"""The training objective: one loss per example, for callers to weight, mask and report."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_diffusion.diffusion.prediction import over_pixels, target
from ssl_diffusion.diffusion.schedule import Schedule


def add_noise(
    x0: Float[Array, "b h w c"],
    eps: Float[Array, "b h w c"],
    alpha: Float[Array, " b"],
    sigma: Float[Array, " b"],
) -> Float[Array, "b h w c"]:
    """x_t = alpha x0 + sigma eps (Ho et al. 2020, eq. 4)."""
    return over_pixels(alpha) * x0 + over_pixels(sigma) * eps


def denoising_loss(
    network: Callable[[Array, Array, Array], Array],
    schedule: Schedule,
    kind: str,
    x0: Float[Array, "b h w c"],
    context: Float[Array, "b tokens width"],
    key: Key[Array, ""],
) -> Float[Array, " b"]:
    """Mean squared error of what the network predicts (Ho et al. 2020, eq. 14), per example.

    Args:
      network: (x, timestep, context) -> output.
      schedule: the noise table.
      kind: what the output means, one of prediction.KINDS.
      x0: scaled latents.
      context: what the network attends to, condition dropout already applied.
      key: gives each example its timestep, uniform over the table, and its noise.

    Raises:
      InputError: unknown kind.
    """
    timestep_key, noise_key = jax.random.split(key)
    timestep = jax.random.randint(timestep_key, x0.shape[:1], 0, schedule.steps).astype(jnp.float32)
    eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
    alpha, sigma = schedule.at(timestep)
    output = network(add_noise(x0, eps, alpha, sigma), timestep, context)
    return jnp.mean((output - target(kind, x0, eps, alpha, sigma)) ** 2, axis=(1, 2, 3))
