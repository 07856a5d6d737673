"""Cutting an image into tissue patches, one strip of rows in memory at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ssl_diffusion.data.picture import Picture


@dataclass(frozen=True)
class Patch:
    """`pixels` uint8 [patch, patch, 3]; (x, y) its corner in the pixels of its picture."""

    pixels: np.ndarray
    x: int
    y: int


def symmetry(pixels: np.ndarray, variant: int) -> np.ndarray:
    """One of the square's eight symmetries of pixels [size, size, 3].

    The bits of `variant`: 1 flips left and right, 2 up and down, and 4 swaps rows and columns
    before. So 0 is the identity, 3 the half turn, 5 and 6 are the quarter turns; the first 1, 2, 4
    and 8 are closed under composition.
    """
    if variant & 4:
        pixels = pixels.swapaxes(0, 1)
    if variant & 2:
        pixels = pixels[::-1]
    if variant & 1:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def saturation(pixels: np.ndarray) -> np.ndarray:
    """HSV saturation (0 to 1) of uint8 pixels [h, w, 3]: float32 [h, w]."""
    high = np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
    low = np.minimum(np.minimum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
    return (high - low).astype(np.float32) / np.maximum(high, 1)


def rows_of(image: Picture, patch_px: int, stride_px: int) -> range:
    """The upper edges of the rows of patches on the regular grid of `stride_px`."""
    return range(0, image.height - patch_px + 1, stride_px)


def tissue_row(
    image: Picture,
    y: int,
    patch_px: int,
    stride_px: int,
    min_saturation: float,
    max_nodata: float = 0.0,
) -> Iterator[Patch]:
    """The tissue patches of one row of the grid.

    Their mean saturation is above the least (with 0 as the least, all are), and at most
    `max_nodata` of each is without data.
    """
    strip, valid = image.read_with_mask(0, y, image.width, patch_px)
    corners = np.arange(0, image.width - patch_px + 1, stride_px)

    def mean(pixels: np.ndarray) -> np.ndarray:
        """Of every patch: sums of columns are shared by those that overlap."""
        sums = np.concatenate([[0.0], np.cumsum(pixels.sum(0, dtype=np.float64))])
        return (sums[corners + patch_px] - sums[corners]) / patch_px**2

    kept = mean(valid) >= 1 - max_nodata - 1e-9  # of sums of whole numbers
    if min_saturation > 0:
        kept &= mean(saturation(strip)) > min_saturation
    for x in corners[kept].tolist():
        yield Patch(strip[:, x : x + patch_px], x, y)


def tissue_patches(
    image: Picture, patch_px: int, stride_px: int, min_saturation: float, max_nodata: float = 0.0
) -> Iterator[Patch]:
    """All tissue patches on the regular grid of `stride_px`, row by row."""
    for y in rows_of(image, patch_px, stride_px):
        yield from tissue_row(image, y, patch_px, stride_px, min_saturation, max_nodata)
