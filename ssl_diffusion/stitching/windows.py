"""Where windows lie along one axis."""

import numpy as np
from jaxtyping import Float, Int

from ssl_diffusion.errors import InputError


def window_origins(size: int, window: int, stride: int) -> Int[np.ndarray, " n"]:
    """First pixels of windows that cover [0, size), ascending, the last one flush with the end.

    With stride == window these are the corners of a grid's cells, ceil(size / window) of them.

    Args:
      size: length of the axis, in the unit of the other two (latent pixels for a canvas).
      window: length of a window.
      stride: step between windows, 1 to window: more would leave gaps.

    Raises:
      InputError: an axis shorter than a window, or a stride outside 1..window.
    """
    if size < window:
        raise InputError(f"{size} px is smaller than one window of {window} px; ask for more")
    if not 1 <= stride <= window:
        raise InputError(f"stride {stride}; expected 1 to {window}, the window: more leaves gaps")
    origins = np.arange(0, size - window + 1, stride)
    if origins[-1] != size - window:
        origins = np.append(origins, size - window)
    return origins


def cell_positions(
    origins: Int[np.ndarray, " n"], size: int, window: int
) -> Float[np.ndarray, " n"]:
    """Fractional grid positions of windows: position i is the embedding of cell i itself.

    A cell is as large as a window, so a window whose corner is on a cell's corner has its centre on
    that cell's centre too: the position is origin / window. Where the size is no multiple of the
    window, the last cell lies flush with the end, as the last window does, and positions run
    linearly to it from the cell before.
    """
    corners = window_origins(size, window, window)
    return np.interp(origins, corners, np.arange(len(corners))).astype(np.float32)


def ramps(tile: int, overlap: int) -> Float[np.ndarray, " tile"]:
    """A tile's weights along one axis: 1, falling linearly over `overlap` pixels at both ends.

    An overlap of half the tile is a pyramid, of none a uniform average. Where two tiles overlap by
    just `overlap`, the normalised weights are linear.
    """
    from_end = np.minimum(np.arange(tile), np.arange(tile)[::-1]) + 0.5
    return np.minimum(1.0, from_end / max(overlap, 0.5))


def blend_weights(
    origins: Int[np.ndarray, " n"], profile: Float[np.ndarray, " tile"]
) -> Float[np.ndarray, "n tile"]:
    """The weights `profile` of each tile's pixels, normalised: those of all tiles over a pixel sum
    to one, at the ends of the axis and where the last tile overlaps more too."""
    total = np.zeros(origins[-1] + len(profile))
    for origin in origins:
        total[origin : origin + len(profile)] += profile
    return np.stack([profile / total[origin : origin + len(profile)] for origin in origins])
