"""Patches as the bytes that records hold."""

import io

import imagecodecs
import numpy as np
from PIL import Image

from ssl_diffusion.errors import InputError

# The one filter for every row: twice as fast as trying all of them (371 against 218 patches/s of
# 256 px), and of the same size on tissue.
PAETH = 128


def encode(pixels: np.ndarray, jpeg_quality: int | None = None) -> bytes:
    """uint8 [h, w, 3] -> PNG bytes, or JPEG bytes of that quality with colour at full size."""
    if jpeg_quality is None:
        return imagecodecs.png_encode(np.ascontiguousarray(pixels), level=1, filter=PAETH)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=jpeg_quality, subsampling=0)
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """PNG or JPEG bytes -> uint8 [h, w, 3]; InputError if they are neither."""
    try:
        return np.asarray(Image.open(io.BytesIO(data), formats=("PNG", "JPEG")).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"image bytes cannot be decoded ({error})") from None
