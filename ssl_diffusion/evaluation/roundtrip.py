"""Images through the autoencoder and back: the ceiling of every model that samples its latents."""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from ssl_diffusion.pixels import to_uint8
from ssl_diffusion.stitching.decode import decode_canvas, patch_tiling
from ssl_diffusion.stitching.encode import encode_canvas

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

    Args:
      encode, decode: as for `reconstruct`.
      region: of any size; the edge is replicated up to whole latent pixels, and cropped again.
      factor: pixels per latent pixel.
      tile_px: side of a tile, an even multiple of `factor`.
    """
    height, width, _ = region.shape
    tile = tile_px // factor
    canvas = encode_canvas(encode, region, factor, tile)
    return decode_canvas(decode, canvas, factor, patch_tiling(tile))[:height, :width]
