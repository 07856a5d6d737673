"""Images through the autoencoder and back: the ceiling of every model that samples its latents."""

import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from ssl_diffusion.pixels import to_uint8
from ssl_diffusion.stitching.decode import decode_canvas, patch_tiling
from ssl_diffusion.stitching.windows import blend_weights, ramps, window_origins

BATCH = 32  # patches decoded at once


def reconstruct(
    encode: Callable, decode: Callable, patches: UInt8[np.ndarray, "n h w 3"]
) -> UInt8[np.ndarray, "n h w 3"]:
    """Patches through the autoencoder.

    Args:
      encode: uint8 images [n, h, w, 3] -> latents.
      decode: latents -> images in [-1, 1].
      patches: their sides are multiples of the latent's factor.
    """
    latents = encode(patches)
    starts = range(0, len(latents), BATCH)
    return np.concatenate([to_uint8(decode(latents[s : s + BATCH])) for s in starts])


def reconstruct_region(
    encode: Callable,
    decode: Callable,
    region: UInt8[np.ndarray, "h w 3"],
    factor: int,
    tile_px: int,
) -> UInt8[np.ndarray, "h w 3"]:
    """A large image through the autoencoder, decoded as the stitcher decodes its canvas.

    It is encoded in tiles that overlap by half, their latents blended by linear ramps: an encoder's
    memory is bounded, and what it makes of a tile's edge has no weight.

    Args:
      encode, decode: as for `reconstruct`.
      region: of any size; the edge is replicated up to whole latent pixels, and cropped again.
      factor: pixels per latent pixel.
      tile_px: side of a tile, an even multiple of `factor`.
    """
    height, width, _ = region.shape
    whole = np.pad(region, [(0, -height % factor), (0, -width % factor), (0, 0)], mode="edge")
    size, axes = tile_px // factor, []
    for length in whole.shape[:2]:
        side = min(size, length // factor)
        origins = window_origins(length // factor, side, max(1, side // 2))
        weights = blend_weights(origins, ramps(side, side // 2))
        axes.append(
            [
                (slice(origin, origin + side), weight)
                for origin, weight in zip(origins, weights, strict=True)
            ]
        )
    tiles = list(itertools.product(*axes))
    codes = encode(
        np.stack(
            [whole[_px(rows, factor), _px(columns, factor)] for (rows, _), (columns, _) in tiles]
        )
    )
    shape = whole.shape[0] // factor, whole.shape[1] // factor, codes.shape[-1]
    canvas = np.zeros(shape, np.float32)
    for ((rows, row_weight), (columns, column_weight)), code in zip(tiles, codes, strict=True):
        canvas[rows, columns] += np.outer(row_weight, column_weight)[..., None] * code
    image = decode_canvas(decode, canvas, factor, patch_tiling(size))
    return image[:height, :width]


def _px(latent: slice, factor: int) -> slice:
    return slice(latent.start * factor, latent.stop * factor)
