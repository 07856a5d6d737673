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


def cover_count(origins: Int[np.ndarray, " n"], window: int) -> Int[np.ndarray, " size"]:
    """How many windows cover each pixel of the axis; at least 1 everywhere."""
    count = np.zeros(origins[-1] + window, int)
    for origin in origins:
        count[origin : origin + window] += 1
    return count
