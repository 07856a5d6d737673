"""A patch model small enough to stitch in a test, and large images of it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_diffusion.diffusion.denoiser import make_denoiser
from ssl_diffusion.diffusion.sampling import Sampling
from ssl_diffusion.diffusion.schedule import make_schedule
from ssl_diffusion.stitching.large_image import LargeImage
from ssl_diffusion.stitching.settings import Settings

SCHEDULE = make_schedule("cosine")
SETTINGS = Settings(Sampling(3, 2.0), "overlap", 3, "gaussian", 16, 0)


def network(params, x, timestep, context):
    """Every output pixel sees the whole window, its own place in it, and the context."""
    mixed = jnp.tanh(jnp.einsum("bhwc,hwcd->bd", x, params["mix"]))
    place = params["mix"][None, ..., 0]
    return x * 0.3 + place + mixed[:, None, None] + context.mean((1, 2))[:, None, None, None]


@dataclasses.dataclass(frozen=True)
class Toy:
    """A patch model of 16 px patches, 8 latent px, whose decoder repeats the first channel."""

    params: Any
    spec = {"embedding": {"tokens": 1, "dim": 3}, "sampling": {}}
    patch_px, factor, latent_channels, schedule = 16, 2, 2, SCHEDULE

    def denoiser(self, guidance):
        return make_denoiser(network, self.params, SCHEDULE, "v", jnp.zeros((1, 3)), guidance)

    def context(self, embedding):
        return embedding

    def decode(self, latent):
        image = jnp.repeat(jnp.repeat(latent[..., :1], 2, axis=1), 2, axis=2)
        return jnp.tanh(jnp.tile(image, 3))


def make_toy() -> Toy:
    """The toy model, the same every time."""
    return Toy({"mix": jax.random.normal(jax.random.key(1), (8, 8, 2, 2)) / 10})


def random_grid(rows: int, cols: int) -> np.ndarray:
    """Embeddings [rows, cols, 1, 3] for the toy model."""
    return np.random.default_rng(0).normal(size=(rows, cols, 1, 3)).astype(np.float32)


def large_image(
    toy: Toy, height_px: int, width_px: int, window_batch: int = 5, grid=None, **change
) -> LargeImage:
    """A large image of the toy, SETTINGS but for what is changed: of these, or of `Sampling`."""
    fields = [field.name for field in dataclasses.fields(Sampling)]
    sampling = {name: change.pop(name) for name in fields if name in change}
    sampling = dataclasses.replace(SETTINGS.sampling, **sampling)
    settings = SETTINGS._replace(sampling=sampling, **change)
    if grid is None:
        spacing = settings.grid_stride_px
        grid = random_grid(*(-(-(n - 16) // spacing) + 1 for n in (height_px, width_px)))
    return LargeImage(toy, grid, height_px, width_px, settings, window_batch)
