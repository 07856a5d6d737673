"""From a latent canvas to pixels, in tiles that fit the memory."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ssl_diffusion.errors import InputError
from ssl_diffusion.pixels import to_uint8
from ssl_diffusion.stitching.windows import blend_weights, ramps, window_origins


def decode_canvas(
    decode: Callable[[Array], Array],
    latent: Float[Array, "h w c"],
    factor: int,
    tile: int,
    overlap: int,
    profile: Callable[[int], np.ndarray] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes a canvas: at once when it fits one tile, else in tiles blended where they overlap.

    A decoder with global statistics (GroupNorm, attention) sees only its tile, so tiling is not
    exact; for a decoder that acts pixel by pixel it is, since the weights sum to one.

    Args:
      decode: scaled latents [n, h, w, c] -> images [n, h * factor, w * factor, 3] in [-1, 1].
      latent: the scaled canvas.
      factor: pixels per latent pixel.
      tile: side of a tile, latent pixels; all tiles share one shape.
      overlap: least overlap of neighbouring tiles, latent pixels, below `tile`.
      profile: weights of a tile's pixels along an axis, given how many image pixels it has there;
        by default they fall linearly over the overlap.

    Raises:
      InputError: overlap outside 0..tile - 1.
    """
    if not 0 <= overlap < tile:
        raise InputError(f"overlap {overlap} of decoded tiles; expected 0 to {tile - 1}")
    latent = np.asarray(latent)  # sliced on the host: on the device every corner would compile anew
    height, width, _ = latent.shape
    tile_y, tile_x = min(tile, height), min(tile, width)
    origins_y = window_origins(height, tile_y, max(1, tile_y - overlap))
    origins_x = window_origins(width, tile_x, max(1, tile_x - overlap))
    profile = profile or partial(ramps, overlap=overlap * factor)
    weights_y = blend_weights(origins_y * factor, profile(tile_y * factor))
    weights_x = blend_weights(origins_x * factor, profile(tile_x * factor))

    image = np.zeros((height * factor, width * factor, 3), np.float32)
    for y, weight_y in zip(origins_y, weights_y, strict=True):
        for x, weight_x in zip(origins_x, weights_x, strict=True):
            codes = jnp.asarray(latent[None, y : y + tile_y, x : x + tile_x])
            pixels = np.asarray(decode(codes))[0]
            rows = slice(y * factor, (y + tile_y) * factor)
            cols = slice(x * factor, (x + tile_x) * factor)
            image[rows, cols] += np.outer(weight_y, weight_x)[..., None] * pixels
    return to_uint8(image)
