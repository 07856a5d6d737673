"""A large image from a grid of embeddings: the whole method in order."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8

from ssl_diffusion.diffusion.denoiser import Denoiser
from ssl_diffusion.diffusion.schedule import Schedule
from ssl_diffusion.diffusion.solvers import ddim, trailing_timesteps
from ssl_diffusion.errors import InputError
from ssl_diffusion.stitching.consensus import stitched_denoiser
from ssl_diffusion.stitching.decode import decode_canvas
from ssl_diffusion.stitching.grid import interpolate_grid
from ssl_diffusion.stitching.windows import cell_positions, window_origins

# Latent pixels. The scores of a decoder's attention grow as tile^4: 1 GiB at 128.
DECODE_TILE, DECODE_OVERLAP = 128, 32


@runtime_checkable
class PatchModel(Protocol):
    """What stitching needs of a model; `weights.model.load_model` gives one."""

    spec: Mapping[str, Any]
    patch_px: int
    factor: int
    latent_channels: int
    schedule: Schedule

    def denoiser(self, guidance: float) -> Denoiser:
        """The denoiser of one patch at this guidance scale."""

    def context(self, embedding: Array) -> Array:
        """Embeddings [n, tokens, dim] -> contexts [n, tokens, width]."""

    def decode(self, latent: Array) -> Array:
        """Scaled latents [n, h, w, c] -> images [n, h * factor, w * factor, 3] in [-1, 1]."""


def stitch(
    model: PatchModel,
    grid: np.ndarray,
    height_px: int,
    width_px: int,
    *,
    steps: int,
    guidance: float,
    stride: int,
    window_batch: int,
    key: Key[Array, ""],
    progress: Callable[[Iterable], Iterable] | None = None,
) -> UInt8[np.ndarray, "height_px width_px 3"]:
    """Generates a large image (Graikos et al. 2024, section 3.3): slerp, consensus, DDIM, decoding.

    Args:
      model: the patch model.
      grid: float [rows, cols, tokens, dim] embeddings, unnormalised, one cell a patch. The last row
        and column lie flush with the image's end where its size is no multiple of the patch.
      height_px, width_px: any size of at least one patch. The canvas is rounded up to whole latent
        pixels and the image cropped.
      steps: of DDIM, deterministic (eta 0).
      guidance: scale w, 1 is none.
      stride: step between windows, latent pixels, 1 to patch_px / factor.
      window_batch: windows denoised at once.
      key: gives the start noise of the canvas, the only randomness.
      progress: wraps the iterable of steps.

    Raises:
      InputError: a grid that is not finite, does not fit the model or does not cover the image; an
        image smaller than a patch; steps, guidance, stride or window_batch out of range. All before
        anything is compiled.
    """
    check_grid(grid, model)
    check_size(grid.shape[:2], height_px, width_px, model.patch_px)
    check_settings(model, steps=steps, guidance=guidance, stride=stride)
    window = model.patch_px // model.factor
    height, width = math.ceil(height_px / model.factor), math.ceil(width_px / model.factor)
    origins_y = window_origins(height, window, stride)
    origins_x = window_origins(width, window, stride)
    denoise = stitched_denoiser(
        model.denoiser(guidance), model.schedule, origins_y, origins_x, window, window_batch
    )

    embeddings = interpolate_grid(
        jnp.asarray(grid, jnp.float32),
        jnp.asarray(cell_positions(origins_y, height, window)),
        jnp.asarray(cell_positions(origins_x, width, window)),
    )
    context = model.context(embeddings.reshape(-1, *embeddings.shape[2:]))
    noise = jax.random.normal(key, (1, height, width, model.latent_channels))
    timesteps = trailing_timesteps(model.schedule.steps, steps)
    canvas = ddim(denoise, model.schedule, noise, context, timesteps=timesteps, progress=progress)
    image = decode_canvas(model.decode, canvas[0], model.factor, DECODE_TILE, DECODE_OVERLAP)
    return image[:height_px, :width_px]


def check_settings(model: PatchModel, *, steps: int, guidance: float, stride: int) -> None:
    """Raises InputError unless the model can be sampled like this; see `stitch`."""
    window = model.patch_px // model.factor
    trailing_timesteps(model.schedule.steps, steps)
    window_origins(window, window, stride)
    model.denoiser(guidance)


def check_grid(grid: np.ndarray, model: PatchModel) -> None:
    """Raises InputError unless `grid` is finite float [rows, cols, tokens, dim] of this model."""
    tokens, dim = model.spec["embedding"]["tokens"], model.spec["embedding"]["dim"]
    if grid.ndim != 4 or grid.shape[2:] != (tokens, dim) or 0 in grid.shape:
        raise InputError(
            f"a grid of shape {list(grid.shape)}; expected [rows, cols, {tokens}, {dim}], the "
            "embeddings this model was trained with: use its own encoder"
        )
    if not np.issubdtype(grid.dtype, np.floating):
        raise InputError(f"a grid of {grid.dtype}; expected floating point embeddings")
    if bad := int((~np.isfinite(grid)).any(axis=(2, 3)).sum()):
        raise InputError(f"a grid with NaN or infinity in {bad} cells; embed the reference again")


def check_size(cells: tuple[int, int], height_px: int, width_px: int, patch_px: int) -> None:
    """Raises InputError unless the image holds a patch and needs just these (rows, cols) cells."""
    if min(height_px, width_px) < patch_px:
        raise InputError(
            f"an image of {width_px}x{height_px} px; expected at least one patch, "
            f"{patch_px}x{patch_px} px"
        )
    rows, cols = math.ceil(height_px / patch_px), math.ceil(width_px / patch_px)
    if cells != (rows, cols):
        raise InputError(
            f"a grid of {cells[0]} rows and {cells[1]} columns for an image of "
            f"{width_px}x{height_px} px; expected {rows} rows and {cols} columns of {patch_px} px: "
            "change the size or the grid"
        )
