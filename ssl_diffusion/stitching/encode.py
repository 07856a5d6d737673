"""From pixels to a latent canvas, in tiles."""

import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

from ssl_diffusion.stitching.windows import blend_weights, ramps, window_origins

BATCH = 32  # tiles cut at once: bounds the memory, whatever the image


def encode_canvas(
    encode: Callable[[np.ndarray], np.ndarray],
    image: UInt8[np.ndarray, "height width 3"],
    factor: int,
    tile: int,
) -> Float[np.ndarray, "h w c"]:
    """The latent canvas of a large image.

    It is encoded in tiles that overlap by half, their latents blended by linear ramps: an encoder's
    memory is bounded, and what it makes of a tile's edge has no weight.

    Args:
      encode: uint8 images [n, H, W, 3] -> latents [n, H / factor, W / factor, c].
      image: of any size; the edge is replicated up to whole latent pixels.
      factor: pixels per latent pixel.
      tile: side of a tile, latent pixels, even.
    """
    height, width, _ = image.shape
    whole = np.pad(image, [(0, -height % factor), (0, -width % factor), (0, 0)], mode="edge")
    size = whole.shape[0] // factor, whole.shape[1] // factor
    tiles = list(itertools.product(*(_axis(length, tile) for length in size)))
    canvas = None
    for start in range(0, len(tiles), BATCH):
        batch = tiles[start : start + BATCH]
        codes = encode(
            np.stack([whole[_px(y, factor), _px(x, factor)] for (y, _), (x, _) in batch])
        )
        if canvas is None:
            canvas = np.zeros((*size, codes.shape[-1]), np.float32)
        for ((y, weight_y), (x, weight_x)), code in zip(batch, codes, strict=True):
            canvas[y, x] += np.outer(weight_y, weight_x)[..., None] * code
    return canvas


def _axis(size: int, tile: int) -> list[tuple[slice, np.ndarray]]:
    """Where the tiles along an axis lie, and the weights of their pixels."""
    side = min(tile, size)
    origins = window_origins(size, side, max(1, side // 2))
    weights = blend_weights(origins, ramps(side, side // 2))
    return [(slice(o, o + side), w) for o, w in zip(origins.tolist(), weights, strict=True)]


def _px(latent: slice, factor: int) -> slice:
    return slice(latent.start * factor, latent.stop * factor)
