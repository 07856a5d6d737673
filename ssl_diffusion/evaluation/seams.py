"""Seams of a stitched image: is the step across a border larger than a step elsewhere?

A slide stored as JPEG has steps of its own every 8 px, and a convolutional decoder has some at its
own stride, so on a regular grid of borders a real image does not score 1. A seam figure therefore
means something only beside the same figure of the real region at the same lines, and beside
the figure in phase, where the borders are compared only with other lines at multiples of 8 px.
"""

import numpy as np
from jaxtyping import Int, UInt8


def border_lines(size: int, *squares: tuple[Int[np.ndarray, " _"], int]) -> Int[np.ndarray, " k"]:
    """Every line along one axis where a stitched image could show a seam, ascending, px.

    Both ends of all `squares` (origins, side): the cells of the embedding grid, and the windows, at
    whose borders the set of averaged predictions changes. Line k lies between pixels k - 1 and k;
    the image's own borders are left out.
    """
    lines = np.concatenate(
        [ends for origins, side in squares for ends in (origins, origins + side)]
    )
    return np.unique(lines[(lines > 0) & (lines < size)])


def seam(
    image: UInt8[np.ndarray, "h w 3"],
    lines_y: Int[np.ndarray, " ny"],
    lines_x: Int[np.ndarray, " nx"],
    period: int = 1,
) -> float | None:
    """Mean absolute step across the lines over the mean absolute step elsewhere; 1 is no seam.

    Rows `lines_y` and columns `lines_x` (px) are crossed by vertical and by horizontal steps. With
    a `period`, elsewhere is only the other lines at its multiples. None where the ratio does not
    exist: no line, nothing elsewhere, or an image flat elsewhere.
    """
    pixels = image.astype(np.float32)
    total = {True: 0.0, False: 0.0}
    count = {True: 0, False: 0}
    for axis, lines in ((0, lines_y), (1, lines_x)):
        step = np.abs(np.diff(pixels, axis=axis)).mean(axis=(1 - axis, 2), dtype=np.float64)
        position = np.arange(1, len(step) + 1)
        border = np.isin(position, lines)
        across = image.shape[1 - axis]
        for on, chosen in ((True, border), (False, ~border & (position % period == 0))):
            total[on] += step[chosen].sum() * across
            count[on] += int(chosen.sum()) * across
    if not count[True] or not count[False] or not total[False]:
        return None
    return float((total[True] / count[True]) / (total[False] / count[False]))
