"""How well two patches agree where they overlap, over all shifts and symmetries of the square.

The normalised cross-correlation of the overlap: mean and variance are those of the pixels that both
have at a shift, so that neither stain nor brightness counts (Lewis 1995; the masked form of
Padfield 2012, eq. 5 to 7, whose masks are rectangles here). One FFT gives all shifts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int, UInt8

PAIRS = 16  # compared at a time: one compiled size
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
COMPARED_PX = 64  # larger patches are averaged down to it, by a whole factor
CEILING = 0.999  # of a correlation: an exact copy has no infinite evidence
FLAT = 4.0  # grey levels of 255, standard deviation: what glass, noise and JPEG leave


def best_correlation(
    first: UInt8[np.ndarray, "n p p 3"], second: UInt8[np.ndarray, "n p p 3"]
) -> Float[np.ndarray, " n"]:
    """Agreement, 0 to CEILING, of each pair: the largest over symmetries of the first and shifts.

    Shifts are up to half a patch along both axes, so that at least a quarter of it overlaps;
    overlaps that are nearly flat in either patch (`FLAT`) count as 0. A small overlap correlates
    by chance more easily: Fisher's z = artanh(r) of N pixels has the standard error 1 / sqrt(N), so
    the shift with the largest z sqrt(overlap / patch) is taken, and tanh of that is returned: the
    correlation of the whole patch that would tell as much.
    """
    found = []
    for start in range(0, len(first), PAIRS):
        a, b = first[start : start + PAIRS], second[start : start + PAIRS]
        filling = [(0, PAIRS - len(a)), (0, 0), (0, 0), (0, 0)]
        best = _best(*(jnp.asarray(np.pad(images, filling)) for images in (a, b)))
        found.append(np.asarray(best)[: len(a)])
    return np.concatenate(found) if found else np.zeros(0, np.float32)


@jax.jit
def _best(first: Array, second: Array) -> Float[Array, " n"]:
    first, second = _grey(first), _grey(second)
    turned = first.swapaxes(1, 2)
    variants = [
        variant[:, ::dy, ::dx] for variant in (first, turned) for dy in (1, -1) for dx in (1, -1)
    ]
    weight = jnp.sqrt(_overlap(first.shape[-1]))
    known = _side(second)

    def evidence(variant: Array) -> Array:
        found = jnp.minimum(_correlations(_side(variant), known), CEILING)
        return jnp.tanh((jnp.arctanh(found) * weight).max(axis=(1, 2)))

    return jax.lax.map(evidence, jnp.stack(variants)).max(axis=0)


def _grey(images: Array) -> Float[Array, "n q q"]:
    """Luminance, at COMPARED_PX or somewhat more."""
    n, size = images.shape[:2]
    factor = max(1, size // COMPARED_PX)
    small = size // factor
    grey = (images @ jnp.asarray(LUMINANCE))[:, : small * factor, : small * factor]
    return grey.reshape(n, small, factor, small, factor).mean(axis=(2, 4))


def _overlap(size: int) -> Float[Array, "s s"]:
    """Share of the patch that overlaps at each shift."""
    inside = 1 - abs(jnp.arange(-(size // 2), size // 2 + 1)) / size
    return inside[:, None] * inside


def correlations(
    first: Float[Array, "n p p"], second: Float[Array, "n p p"]
) -> Float[Array, "n s s"]:
    """Of pairs of grey patches, at each shift of the first against the second from -p//2 to p//2.

    Shift [p//2 + dy, p//2 + dx] lays first[y, x] on second[y + dy, x + dx].
    """
    return _correlations(_side(first), _side(second))


class _Side(NamedTuple):
    """What is known of patches before a partner is: of their own pixels, at each shift."""

    patches: Float[Array, "n p p"]
    spectrum: Complex[Array, "n f g"]
    mean: Float[Array, "n s s"]
    variance: Float[Array, "n s s"]


def _side(patches: Float[Array, "n p p"]) -> _Side:
    size = patches.shape[-1]
    shift, span = _shifts(size)
    patches = patches - patches.mean(axis=(1, 2), keepdims=True)  # squares lose less to rounding
    count = _overlap(size) * size**2
    mean = _overlap_sums(patches, shift) / count
    variance = _overlap_sums(patches**2, shift) / count - mean**2
    return _Side(patches, jnp.fft.rfft2(patches, (span, span)), mean, variance)


def _shifts(size: int) -> tuple[Int[Array, " s"], int]:
    """All shifts, and the side of an FFT in which none of them wraps around into another."""
    half = size // 2
    return jnp.arange(-half, half + 1), size + half + half % 2


def _correlations(first: _Side, second: _Side) -> Float[Array, "n s s"]:
    size = first.patches.shape[-1]
    shift, span = _shifts(size)
    spectrum = jnp.conj(first.spectrum) * second.spectrum
    products = jnp.fft.irfft2(spectrum, (span, span))[:, shift % span][:, :, shift % span]
    mean, variance = (of[:, ::-1, ::-1] for of in (first.mean, first.variance))
    covariance = products / (_overlap(size) * size**2) - mean * second.mean
    textured = (variance > FLAT**2) & (second.variance > FLAT**2)
    scale = jnp.sqrt(jnp.where(textured, variance * second.variance, 1))
    return jnp.where(textured, covariance / scale, 0)


def _overlap_sums(values: Float[Array, "n p p"], shift: Int[Array, " s"]) -> Float[Array, "n s s"]:
    """Sums over the pixels that a patch shares with another that lies at each shift from it."""
    size = values.shape[-1]
    table = jnp.pad(values.cumsum(axis=1).cumsum(axis=2), [(0, 0), (1, 0), (1, 0)])
    low, high = jnp.maximum(shift, 0), jnp.minimum(size + shift, size)
    rows = table[:, high] - table[:, low]
    return rows[:, :, high] - rows[:, :, low]
