"""Patches as the bytes that records hold."""

import io

import numpy as np
from PIL import Image

from ssl_diffusion.errors import InputError


def encode(pixels: np.ndarray, jpeg_quality: int | None = None) -> bytes:
    """uint8 [h, w, 3] -> PNG bytes, or JPEG bytes of that quality with colour at full size."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if jpeg_quality is None:
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, "JPEG", quality=jpeg_quality, subsampling=0)
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """PNG or JPEG bytes -> uint8 [h, w, 3]; InputError if they are neither."""
    try:
        return np.asarray(Image.open(io.BytesIO(data), formats=("PNG", "JPEG")).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"image bytes cannot be decoded ({error})") from None
