"""What the page of a data set draws: a source with the patches that were kept, and embeddings."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image


def fit(width: int, height: int, longest: int) -> tuple[int, int]:
    """(width, height) px of the same proportion, no larger than given, `longest` at most."""
    factor = min(1.0, longest / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def patch_mask(
    size: tuple[int, int],
    corners: Shaped[np.ndarray, "n 2"],
    kinds: Int[np.ndarray, " n"],
    patch_px: int,
    scale: tuple[float, float],
) -> UInt8[np.ndarray, "h w"]:
    """Which pixels of a picture lie in a patch: 0 in none, 1 + its kind in one.

    A pixel belongs to the patch that its centre lies in, so that neighbouring patches leave no gap
    and do not overlap; a patch that is smaller than a pixel has one. Where patches of two kinds
    lie, the higher kind is seen.

    Args:
      size: (width, height) px of the picture.
      corners: x, y of the patches in px of the records.
      kinds: 0, 1, ... of each patch.
      patch_px: side of a patch, in px of the records.
      scale: px of the picture per px of the records, along x and y.
    """
    mask = np.zeros((size[1], size[0]), np.uint8)
    limit = np.array(size) - 1
    first = np.minimum(np.floor(corners * np.array(scale) + 0.5).astype(int), limit)
    after = np.floor((corners + patch_px) * np.array(scale) + 0.5).astype(int)
    after = np.maximum(after, first + 1)
    for kind in np.unique(kinds):
        for (left, top), (right, bottom) in zip(
            first[kinds == kind], after[kinds == kind], strict=True
        ):
            mask[top:bottom, left:right] = 1 + kind
    return mask


def tint_png(mask: UInt8[np.ndarray, "h w"], colours: Sequence[str], opacity: float) -> bytes:
    """PNG to lay over a picture: clear where `mask` is 0, else colour `mask` - 1 ("#rrggbb")."""
    image = Image.fromarray(mask, "P")
    image.putpalette(bytes(3) + b"".join(bytes.fromhex(colour[1:]) for colour in colours))
    buffer = io.BytesIO()
    alpha = bytes([0]) + bytes([round(255 * opacity)]) * len(colours)
    image.save(buffer, "PNG", transparency=alpha)
    return buffer.getvalue()


def jpeg_bytes(pixels: UInt8[np.ndarray, "h w 3"], longest: int) -> tuple[bytes, int, int]:
    """(JPEG, width, height) of a picture, at most `longest` px on its long side.

    A page of hundreds of pictures would be several times as large with PNG.
    """
    image = Image.fromarray(pixels)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue(), *image.size


def principal_components(
    vectors: Float[np.ndarray, "n d"],
) -> tuple[Float[np.ndarray, "n 2"], tuple[float, float]]:
    """Unit vectors seen along their two principal axes, and the share of the variance on each.

    An axis points to where its largest entry is positive: which of its two directions an SVD gives
    is chance.
    """
    vectors = np.asarray(vectors, np.float32)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    centred = unit - unit.mean(axis=0)
    _, deviations, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2]
    largest = np.abs(axes).argmax(axis=1)
    axes = axes * np.sign(axes[np.arange(2), largest])[:, None]
    share = deviations**2 / max(float((deviations**2).sum()), 1e-12)
    return centred @ axes.T, (float(share[0]), float(share[1]))
