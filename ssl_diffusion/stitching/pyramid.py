"""An image at half its size, again and again: the levels that viewers zoom through."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ssl_diffusion.stitching.mapped import mapped, read_rows, release

SMALLEST = 512  # px: the last level is the first with no side above it
BAND_PX = 2**20  # pixels of a level made at once: bounds the memory, whatever the width


def level_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """(width, height) of every level, the image itself first; halves are rounded up."""
    sizes = [(width, height)]
    while max(sizes[-1]) > SMALLEST:
        width, height = sizes[-1]
        sizes.append((math.ceil(width / 2), math.ceil(height / 2)))
    return sizes


def build_levels(
    base: UInt8[np.ndarray, "h w 3"],
    folder: Path | None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> list[np.ndarray]:
    """The levels of `level_sizes`, each the average of 2x2 pixels of the one before, rounded.

    Where a side is odd, the last row or column averages the pixels that there are.

    Args:
      base: the image, given back as the first level; often a memory-mapped file.
      folder: where the others are kept as memory-mapped level-1.npy and so on; None: in memory.
      progress: wraps the iterable of bands of rows.
    """
    sizes = level_sizes(base.shape[1], base.shape[0])
    levels, bands = [base], []
    for index, (width, height) in enumerate(sizes[1:], start=1):
        levels.append(_empty(folder, index, (height, width, 3)))
        rows = max(1, BAND_PX // width)
        bands += [(index, slice(y, y + rows)) for y in range(0, height, rows)]
    for index, rows in progress(bands) if progress else bands:
        finer = read_rows(levels[index - 1], 2 * rows.start, 2 * rows.stop)
        levels[index][rows] = _halved(finer)
        release(levels[index])
    return levels


def _halved(rows: UInt8[np.ndarray, "h w 3"]) -> np.ndarray:
    height, width, _ = rows.shape
    # A last row or column taken twice averages, and rounds, as it does alone.
    rows = np.pad(rows, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    sums = rows[0::2].astype(np.uint16) + rows[1::2]
    return ((sums[:, 0::2] + sums[:, 1::2] + 2) >> 2).astype(np.uint8)


def _empty(folder: Path | None, index: int, shape: tuple[int, int, int]) -> np.ndarray:
    if folder is None:
        return np.empty(shape, np.uint8)
    return mapped(folder / f"level-{index}.npy", shape, np.uint8)
