"""What is painted for a grid: a label for each cell, or the part that is to be made anew."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from ssl_diffusion.errors import InputError
from ssl_diffusion.prior.asked import NOT_SAID
from ssl_diffusion.stitching.windows import window_origins

OPAQUE, WHITE = 128, 128  # of a mask, from here on


def painted_size(path: str | Path) -> tuple[int, int]:
    """(rows, cols) of pixels of a PNG, of which only the head is read; InputError if it is none."""
    with _opened(Path(path)) as image:
        return image.height, image.width


def read_label_map(
    path: str | Path, classes: Sequence[str], colours: Sequence[str]
) -> Int[np.ndarray, "rows cols"]:
    """Labels from a PNG of one pixel a cell: the class by its number, NOT_SAID where transparent.

    Raises InputError for a file that is none, and for a colour that is not exactly a class's.

    Args:
      path: the PNG, RGB, RGBA or with a palette.
      classes: their names.
      colours: of the classes, "#rrggbb".
    """
    pixels = _read(Path(path))
    codes = pixels[..., :3].astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    labels = np.full(codes.shape, NOT_SAID, np.int32)
    for number, colour in enumerate(colours):
        labels[codes == int(colour.removeprefix("#"), 16)] = number
    said = pixels[..., 3] > 0
    wrong = np.argwhere(said & (labels == NOT_SAID))
    if len(wrong):
        row, col = wrong[0]
        palette = ", ".join(f"{c} {name}" for c, name in zip(colours, classes, strict=True))
        raise InputError(
            f"{path} has #{codes[row, col]:06x} at x={col}, y={row}, the colour of no class "
            f"({len(wrong)} pixels in all); expected, without smoothing, {palette}, or transparent "
            "where a cell may be any"
        )
    return np.where(said, labels, np.int32(NOT_SAID))


def read_mask(
    path: str | Path, width_px: int, height_px: int, patch_px: int, stride_px: int
) -> Bool[np.ndarray, "rows cols"]:
    """Which cells of an image are to be made anew: those with a white pixel in their patch.

    Args:
      path: a PNG with a pixel for each cell, or of any size with the image's aspect; white, at
        least half opaque, is made anew.
      width_px, height_px: of the image.
      patch_px, stride_px: of a cell, and from cell to cell.

    Raises:
      InputError: no such file, another aspect, or nothing white.
    """
    pixels = _read(Path(path))
    white = (pixels[..., :3].mean(axis=-1) >= WHITE) & (pixels[..., 3] >= OPAQUE)
    rows, cols = (window_origins(size, patch_px, stride_px) for size in (height_px, width_px))
    height, width = white.shape
    if white.shape != (len(rows), len(cols)):
        # Of a size rounded to whole pixels, along either axis.
        if abs(width * height_px - height * width_px) > max(height_px, width_px):
            raise InputError(
                f"mask {path} of {width}x{height} px for an image of {width_px}x{height_px} px; "
                f"expected one of its aspect, or {len(cols)}x{len(rows)} px, one for each cell"
            )
        white = _any(_any(white, rows, patch_px, height_px).T, cols, patch_px, width_px).T
    if not white.any():
        raise InputError(f"mask {path} has no white pixel; paint white what is to be made anew")
    return white


def _any(
    white: Bool[np.ndarray, "h w"], origins: Int[np.ndarray, " n"], patch_px: int, size_px: int
) -> Bool[np.ndarray, "n w"]:
    """Whether any row is white of those that lie in the patches, of an axis of `size_px`."""
    starts = origins * len(white) // size_px
    ends = -(-(origins + patch_px) * len(white) // size_px)
    return np.stack([white[a:b].any(axis=0) for a, b in zip(starts, ends, strict=True)])


def _read(path: Path) -> UInt8[np.ndarray, "h w 4"]:
    with _opened(path) as image:
        if image.mode.startswith(("I", "F")):
            raise InputError(f"{path} has samples of more than 8 bits; save it with 8")
        try:
            return np.asarray(image.convert("RGBA"))
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); save it again") from None


def _opened(path: Path) -> Image.Image:
    if not path.is_file():
        raise InputError(f"no image at {path}; give an existing .png")
    try:
        return Image.open(path, formats=("PNG",))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is no PNG that can be read ({error}); save it as one") from None
