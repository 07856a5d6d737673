"""A part of a reference made anew from an edited grid; the rest stays, bit for bit.

What masked cells cover of the canvas is generated, from their embeddings and from the latents
around it, which are the reference's and are kept (`inpainting.keep_known`). Decoded, those are not
quite the reference's pixels any more. So around the masked cells the image goes over linearly, from
what was decoded to the reference's own pixels, within half a patch: the mask's reach. Beyond it no
pixel changes. The step across the border of a masked cell of the demo's slide (64 px, 30 places in
tissue, 30 in glass), over the real image's step there, with the autoencoder alone. "Other" is
harder than any denoiser will have it: latents of other tissue, put there as they are. Of glass that
autoencoder never saw any, and real glass is flat.

| px of going over      | 0    | 8    | 16   | 32   | 64   |
| --------------------- | ---- | ---- | ---- | ---- | ---- |
| own latents           | 0.84 | 0.64 | 0.63 | 0.63 | 0.63 |
| other latents         | 2.03 | 1.24 | 1.21 | 1.19 | 1.18 |
| own latents, in glass | 346  | 40   | 25   | 18   | 17   |

Only windows that touch the mask have a say in it. They lie within a patch of it, and no more than
that part of the canvas is made.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from ssl_diffusion.errors import InputError
from ssl_diffusion.stitching.encode import encode_canvas
from ssl_diffusion.stitching.large_image import Kept, LargeImage, Progress
from ssl_diffusion.stitching.windows import window_origins


def edit_image(
    image: LargeImage,
    reference: UInt8[np.ndarray, "height width 3"],
    mask: Bool[np.ndarray, "rows cols"],
    encode: Callable[[np.ndarray], np.ndarray],
    progress: Progress | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """The reference with its masked cells made anew.

    Args:
      image: the image to be made, of the edited grid.
      reference: the pixels that the grid was embedded from, but for its masked cells.
      mask: True is made anew; at least one cell.
      encode: uint8 images [n, H, W, 3] -> scaled latents, as `Model.encode`.
      progress: wraps the evaluations of the network.

    Raises:
      InputError: a reference or a mask of another size than the image's, before anything compiles.
    """
    if reference.shape[:2] != (image.height_px, image.width_px):
        raise InputError(
            f"a reference of {reference.shape[1]}x{reference.shape[0]} px for an edited image of "
            f"{image.width_px}x{image.height_px} px; expected one of the same size"
        )
    if mask.shape != image.grid.shape[:2] or not mask.any():
        raise InputError(
            f"a mask of {list(mask.shape)} cells, {mask.sum()} of them to be made anew; expected "
            f"some of {list(image.grid.shape[:2])}, the grid's"
        )
    model, factor = image.model, image.model.factor
    spacing = image.settings.grid_stride_px // factor
    down, right = (
        _around(masked, window_origins(size, image.window, spacing), image.window)
        for masked, size in ((mask.any(axis=1), image.height), (mask.any(axis=0), image.width))
    )
    mask = mask[down.cells, right.cells]
    pixels = down.pixels(factor), right.pixels(factor)
    known = reference[pixels]
    cells = down.origins, right.origins
    made = dataclasses.replace(
        image,
        grid=image.grid[down.cells, right.cells],
        height_px=known.shape[0],
        width_px=known.shape[1],
        kept=Kept(
            encode_canvas(encode, known, factor, image.window),
            reach(mask, *cells, image.window, 0, (down.size, right.size)) > 0,
        ),
    ).pixels(progress)
    weight = reach(
        mask, *(factor * o for o in cells), model.patch_px, model.patch_px // 2, known.shape[:2]
    )
    edited = reference.copy()
    for row, part in enumerate(edited[pixels]):  # row by row: floats are four times as large
        mixed = known[row] + weight[row, :, None] * (made[row].astype(np.float32) - known[row])
        part[:] = np.rint(mixed)
    return edited


def reach(
    mask: Bool[np.ndarray, "rows cols"],
    origins_y: Int[np.ndarray, " rows"],
    origins_x: Int[np.ndarray, " cols"],
    side: int,
    margin: int,
    size: tuple[int, int],
) -> Float[np.ndarray, "h w"]:
    """1 inside masked cells, falling linearly to 0 over `margin` pixels around them, 0 beyond.

    Distance is the larger of those along the axes.

    Args:
      mask: of the cells.
      origins_y, origins_x: first pixels of the cells' rows and columns.
      side: of a cell, pixels.
      margin: pixels outside that are still above 0.
      size: (height, width), pixels.
    """
    ys, xs = (
        _trapezoids(o, side, margin, n) for o, n in zip((origins_y, origins_x), size, strict=True)
    )
    weight = np.zeros(size, np.float32)
    for row, down in zip(mask, ys, strict=True):
        if row.any():
            rows = np.flatnonzero(down)
            part = weight[rows[0] : rows[-1] + 1]
            np.maximum(part, np.minimum.outer(down[rows], xs[row].max(axis=0)), out=part)
    return weight


def _trapezoids(
    origins: Int[np.ndarray, " n"], side: int, margin: int, size: int
) -> Float[np.ndarray, "n size"]:
    pixels = np.arange(size)
    outside = np.maximum(origins[:, None] - pixels, pixels - (origins[:, None] + side - 1))
    return np.clip(1 - np.maximum(outside, 0) / (margin + 1), 0, 1).astype(np.float32)


class _Part(NamedTuple):
    """Cells of an axis in a row, from the first latent pixel of the first on."""

    cells: slice
    start: int  # latent pixels of the whole canvas, as is the size
    size: int
    origins: Int[np.ndarray, " n"]  # of the cells, from the start on

    def pixels(self, factor: int) -> slice:
        return slice(self.start * factor, (self.start + self.size) * factor)


def _around(masked: Bool[np.ndarray, " n"], origins: Int[np.ndarray, " n"], window: int) -> _Part:
    """All cells within a window of the masked ones: what the windows that touch these can see."""
    first, last = origins[np.flatnonzero(masked)[[0, -1]]]
    low = max(0, int(np.searchsorted(origins, first - window, "right")) - 1)
    high = min(len(origins), int(np.searchsorted(origins, last + window)) + 1)
    start, end = int(origins[low]), int(origins[high - 1]) + window
    return _Part(slice(low, high), start, end - start, origins[low:high] - start)
