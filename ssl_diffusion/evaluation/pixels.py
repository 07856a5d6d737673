"""Measures that look at pixels only: reconstruction error and sharpness."""

import numpy as np
from jaxtyping import Float64, UInt8


def colour_statistics(images: UInt8[np.ndarray, "n h w 3"]) -> Float64[np.ndarray, "n 6"]:
    """Mean and standard deviation of each channel over the pixels, grey levels of 255."""
    pixels = images.reshape(len(images), -1, 3).astype(np.float64)
    return np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)


def psnr(
    real: UInt8[np.ndarray, "n h w 3"], other: UInt8[np.ndarray, "n h w 3"]
) -> Float64[np.ndarray, " n"]:
    """Peak signal-to-noise ratio of each image in dB, for a peak of 255.

    At most 100 dB, which identical images get: one of them must not make a mean infinite.
    """
    error = ((real.astype(np.float64) / 255 - other / 255) ** 2).mean(axis=(1, 2, 3))
    return -10 * np.log10(np.maximum(error, 1e-10))


def mean_gradient(image: UInt8[np.ndarray, "h w 3"]) -> float:
    """Mean absolute step between neighbouring pixels, both directions, in grey levels of 255."""
    pixels = image.astype(np.float32)
    steps = [np.abs(np.diff(pixels, axis=axis)) for axis in (0, 1)]
    return float(
        sum(step.sum(dtype=np.float64) for step in steps) / sum(step.size for step in steps)
    )


def sharpness(image: UInt8[np.ndarray, "h w 3"], real: UInt8[np.ndarray, "h w 3"]) -> float | None:
    """Mean gradient of an image over the real one's; below 1 is blurred. None if real is flat."""
    reference = mean_gradient(real)
    return mean_gradient(image) / reference if reference else None
