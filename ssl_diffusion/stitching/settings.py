"""What decides a large image beside its model, and whether model, grid and size fit together."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, PyTree

from ssl_diffusion.diffusion.denoiser import Denoiser
from ssl_diffusion.diffusion.sampling import Sampling, read_sampling
from ssl_diffusion.diffusion.schedule import Schedule
from ssl_diffusion.errors import InputError

LARGEST = 1e17  # of an embedding's numbers
SEEDS = 2**32  # a key has no more


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

    def context(self, embedding: Array) -> PyTree:
        """Embeddings [n, tokens, dim] -> contexts, a tree of [n, ...]."""

    def decode(self, latent: Array) -> Array:
        """Scaled latents [n, h, w, c] -> images [n, h * factor, w * factor, 3] in [-1, 1]."""


class Settings(NamedTuple):
    """What decides a large image beside model, grid and size.

    Attributes:
      sampling: solver, steps, guidance.
      scheme: "overlap" or "shifted", see `schemes`.
      stride: step between overlapping windows, latent pixels, 1 to patch_px / factor.
      weights: of an overlapping window's pixels, "gaussian" or "uniform".
      grid_stride_px: from cell to cell of the grid, pixels, a multiple of the factor; the patch's
        size, or less for a dense grid.
      seed: of the start noise, of a stochastic solver's noise and of shifts.
    """

    sampling: Sampling
    scheme: str
    stride: int
    weights: str
    grid_stride_px: int
    seed: int


def default_settings(model: PatchModel) -> Settings:
    """How a model is stitched unless one asks for something else: "sampling" of its model.json."""
    own = model.spec["sampling"]
    scheme, weights = own.get("scheme", "overlap"), own.get("weights", "gaussian")
    return Settings(read_sampling(own), scheme, own["stride"], weights, model.patch_px, seed=0)


def default_window_batch() -> int:
    """Windows denoised at once on each device: accelerators need many to be busy."""
    return 4 if jax.devices()[0].platform == "cpu" else 64


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
    # Not NaN, and small enough that their squares can be added up in float32.
    if bad := int((~(np.abs(grid) < LARGEST)).any(axis=(2, 3)).sum()):
        raise InputError(
            f"a grid with NaN, infinity or numbers above {LARGEST:g} in {bad} cells; embed the "
            "reference again"
        )


def grid_cells(size_px: int, patch_px: int, stride_px: int) -> int:
    """How many cells a grid needs along an axis: a patch every `stride_px`, the last one flush."""
    return math.ceil((size_px - patch_px) / stride_px) + 1


def grid_size(cells: tuple[int, int], patch_px: int, stride_px: int) -> tuple[int, int]:
    """(width, height) in pixels of a grid of (rows, cols) cells."""
    height, width = ((count - 1) * stride_px + patch_px for count in cells)
    return width, height


def check_size(
    cells: tuple[int, int],
    height_px: int,
    width_px: int,
    patch_px: int,
    grid_stride_px: int,
    factor: int,
) -> None:
    """Raises InputError unless the image holds a patch and needs just these (rows, cols) cells."""
    if min(height_px, width_px) < patch_px:
        raise InputError(
            f"an image of {width_px}x{height_px} px; expected at least one patch, "
            f"{patch_px}x{patch_px} px"
        )
    if not 0 < grid_stride_px <= patch_px or grid_stride_px % factor:
        raise InputError(
            f"cells of the grid every {grid_stride_px} px; expected a multiple of {factor} px up "
            f"to the patch, {patch_px} px"
        )
    rows, cols = (grid_cells(size, patch_px, grid_stride_px) for size in (height_px, width_px))
    if cells != (rows, cols):
        raise InputError(
            f"a grid of {cells[0]} rows and {cells[1]} columns for an image of "
            f"{width_px}x{height_px} px; expected {rows} rows and {cols} columns, a cell every "
            f"{grid_stride_px} px: change the size, the grid or its stride"
        )
