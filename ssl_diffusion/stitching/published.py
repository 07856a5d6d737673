"""The large image as Graikos et al. 2024 (section 3.3) and their released sampler make it.

Where it differs from `large_image.generate_image` with uniform weights: DDIM is given noise, and
the canvas is decoded window by window. Where it differs from their sampler: a canvas of any size,
windows in bounded batches, and a network that is given the timesteps it was trained on.
"""

import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from ssl_diffusion.diffusion.denoiser import Denoiser
from ssl_diffusion.diffusion.loss import add_noise
from ssl_diffusion.diffusion.plans import make_plan
from ssl_diffusion.diffusion.schedule import Schedule
from ssl_diffusion.diffusion.solvers import solve
from ssl_diffusion.diffusion.timesteps import trailing_timesteps
from ssl_diffusion.errors import InputError
from ssl_diffusion.stitching.consensus import stitched_denoiser, tile_shape, tiled
from ssl_diffusion.stitching.decode import Tiling, decode_canvas
from ssl_diffusion.stitching.grid import window_contexts
from ssl_diffusion.stitching.schemes import Overlap
from ssl_diffusion.stitching.settings import PatchModel, check_grid, check_size
from ssl_diffusion.stitching.windows import cell_positions

STEPS, GUIDANCE = 50, 4.0  # guidance 3 in the convention of the published code, 1 + g
WINDOW = 64  # latent pixels
STRIDES = 4  # of a window: 16 latent pixels
DECODE_WIDTH = 0.8  # of the Gaussian weights of a decoded window, whose side is 2

Draw = Callable[[int], Array]
"""draw(k) -> the k-th standard normal canvas [1, h, w, c]: 0 and 1 make the start, k + 2 step k."""


def published_image(
    model: PatchModel,
    grid: np.ndarray,
    height_px: int,
    width_px: int,
    key: Key[Array, ""],
    *,
    window_batch: int = 16,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> UInt8[np.ndarray, "height_px width_px 3"]:
    """A large image with the published settings; see `large_image.LargeImage` for the arguments.

    Raises:
      InputError: a grid that is not finite, does not fit the model or does not cover the image; an
        image smaller than a patch. Before anything is compiled.
    """
    check_grid(grid, model)
    check_size(grid.shape[:2], height_px, width_px, model.patch_px, model.patch_px, model.factor)
    window = model.patch_px // model.factor
    height, width = math.ceil(height_px / model.factor), math.ceil(width_px / model.factor)
    latent = published_latent(
        model.denoiser(GUIDANCE),
        model.schedule,
        model.context,
        jnp.asarray(grid, jnp.float32),
        keyed_draws(key, (1, height, width, model.latent_channels)),
        window=window,
        window_batch=window_batch,
        progress=progress,
    )
    return decode_windows(model.decode, latent[0], model.factor, window)[:height_px, :width_px]


def published_latent(
    denoise: Denoiser,
    schedule: Schedule,
    condition: Callable[[Array], Array],
    grid: Float[Array, "rows cols tokens dim"],
    draw: Draw,
    *,
    timesteps: Int[np.ndarray, " path"] | None = None,
    window: int = WINDOW,
    window_batch: int = 16,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Float[Array, "1 h w c"]:
    """The scaled latent canvas of a grid of embeddings.

    Args:
      denoise: the Denoiser of one window, its guidance (4) included.
      schedule: the noise table.
      condition: embeddings [n, tokens, dim] -> contexts [n, tokens, width].
      grid: unnormalised embeddings, one cell a window's size.
      draw: where all noise comes from, e.g. `keyed_draws(key, shape)`; its shape is the canvas's.
      timesteps: the path; by default the published one, 50 steps down to the clean end.
      window: side of a window, latent pixels.
      window_batch: windows denoised at once.
      progress: wraps the iterable of steps.

    Raises:
      InputError: a grid that does not cover the canvas, a canvas smaller than a window, a path that
        does not descend within the schedule, window_batch below 1.
    """
    timesteps = trailing_timesteps(schedule.steps, STEPS) if timesteps is None else timesteps
    noise = draw(0)
    _, height, width, _ = noise.shape
    if grid.shape[:2] != (math.ceil(height / window), math.ceil(width / window)):
        raise InputError(
            f"a grid of {grid.shape[0]} rows and {grid.shape[1]} columns for a canvas of "
            f"{width}x{height} latent pixels; expected one cell for every {window} of them"
        )
    layout = Overlap(height, width, window, window // STRIDES, "uniform").layout(0)
    shape = tile_shape(len(layout.origins_y), len(layout.origins_x), window_batch)
    tiles = tiled(layout, shape)
    rows, cols = tiles.origins_y.reshape(-1), tiles.origins_x.reshape(-1)
    context = window_contexts(
        condition,
        grid,
        cell_positions(rows, height, window, window),
        cell_positions(cols, width, window, window),
    )
    stitched = stitched_denoiser(denoise, schedule, tiles, layout.step)
    # Noise taken for a clean image and noised again: standard normal like its parts.
    start = add_noise(noise, draw(1), *schedule.at(jnp.float32(timesteps[:1])))
    return solve(
        make_plan("ddim", schedule, timesteps, eta=published_eta(schedule, timesteps)),
        lambda step: (stitched, context),
        start,
        noise=lambda step, like: draw(step + 2),
        progress=progress,
    )


def published_eta(
    schedule: Schedule, timesteps: Int[np.ndarray, " path"]
) -> Float[np.ndarray, " steps"]:
    """The eta of each step of the published sampler, which is far below the 1 that it is given.

    Its variance is beta_t (1 - abar_s) / (1 - abar_t), from t to s: beta~ of Ho et al. 2020, eq. 7,
    but with the beta of one entry of the table, whatever the stride. Eta 1 would take that of all
    the entries that the step passes over, 1 - abar_t / abar_s.
    """
    abar = np.append(np.asarray(schedule.alpha, np.float64) ** 2, 1.0)  # the clean end is at -1
    here, there = timesteps[:-1], timesteps[1:]
    return np.sqrt((1 - abar[here] / abar[here - 1]) / (1 - abar[here] / abar[there]))


def decode_windows(
    decode: Callable[[Array], Array],
    latent: Float[Array, "h w c"],
    factor: int,
    window: int = WINDOW,
) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes window by window, blended with weights exp(-r^2 / 0.8^2) over [-1, 1]^2.

    Slower than large tiles by the overlap: every pixel is decoded up to 16 times.
    """
    # r^2 = x^2 + y^2: the weights are a product of one along each axis.
    overlap = window - window // STRIDES
    return decode_canvas(decode, latent, factor, Tiling(window, overlap), profile=_gaussian)


def keyed_draws(key: Key[Array, ""], shape: tuple[int, int, int, int]) -> Draw:
    """Draws from one key, each by its own number."""
    return lambda k: jax.random.normal(jax.random.fold_in(key, k), shape)


def _gaussian(size: int) -> Float[np.ndarray, " size"]:
    return np.exp(-((np.linspace(-1, 1, size) / DECODE_WIDTH) ** 2))
