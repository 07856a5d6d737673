"""A Gaussian whose optimal denoiser and whose path from noise to data are known in closed form."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from ssl_diffusion.diffusion.denoiser import make_denoiser
from ssl_diffusion.diffusion.prediction import over_pixels, target
from ssl_diffusion.diffusion.schedule import Schedule

MEAN, STD = 0.7, 0.4
CONTEXT = jnp.zeros((1, 1, 2))


@dataclasses.dataclass(frozen=True)
class Optimal:
    """E[x0 | x] for x0 ~ N(MEAN, STD^2), a linear function of x, as a network of any kind."""

    kind: str

    def __call__(self, schedule, x, timestep, context):
        alpha, sigma = schedule.at(timestep)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x0 = MEAN + over_pixels(gain) * (x - over_pixels(alpha) * MEAN)
        eps = (x - over_pixels(alpha) * x0) / over_pixels(sigma)
        return target(self.kind, x0, eps, alpha, sigma)


def gaussian_denoiser(schedule: Schedule, kind: str = "x0"):
    """The optimal denoiser, through the conversions of its kind."""
    return make_denoiser(Optimal(kind), schedule, schedule, kind, CONTEXT[0], 1.0)


def exact(schedule: Schedule, x, start: float, end: float) -> np.ndarray:
    """Where the probability flow carries x between two timesteps: to the same quantile."""
    alpha, sigma = schedule.levels(np.array([start, end]))
    spread = np.sqrt(alpha**2 * STD**2 + sigma**2)
    return alpha[1] * MEAN + spread[1] * (np.asarray(x, float) - alpha[0] * MEAN) / spread[0]
