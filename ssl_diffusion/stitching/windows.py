"""Where windows lie along one axis, and how much each counts over its pixels."""

import numpy as np
from jaxtyping import Float, Int

from ssl_diffusion.errors import InputError

GAUSSIAN_WIDTH = 0.25  # standard deviation of the weights of a window whose half side is 1


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


def shifted_origins(size: int, window: int, shift: int) -> Int[np.ndarray, " n"]:
    """First pixels of windows side by side, from `shift` - window on, the ends moved inside.

    Inside the axis no two overlap; the first and the last lie flush with its ends and overlap their
    neighbours, by one to two windows in all. There are ceil(size / window) + 1 of them whatever the
    shift, or one where the axis is a window long.
    """
    if size == window:
        return np.zeros(1, int)
    count = -(-size // window) + 1
    return np.clip(shift - window + window * np.arange(count), 0, size - window)


def cell_positions(
    origins: Int[np.ndarray, " n"], size: int, window: int, spacing: int
) -> Float[np.ndarray, " n"]:
    """Fractional grid positions of windows: position i is the embedding of cell i itself.

    A cell is as large as a window, so a window whose corner is on a cell's corner has its centre on
    that cell's centre too: corner and centre give the same position, origin / spacing. (The
    published sampler takes the corner.) Where cells do not end with the axis the last one lies
    flush with its end, as the last window does, and positions run linearly to it from the cell
    before.

    Args:
      origins: first pixels of the windows.
      size: length of the axis.
      window: length of a window and of a cell.
      spacing: from cell to cell: `window` in a grid of one cell a patch, less in a dense grid.
    """
    corners = window_origins(size, window, spacing)
    return np.interp(origins, corners, np.arange(len(corners))).astype(np.float32)


def ramps(tile: int, overlap: int) -> Float[np.ndarray, " tile"]:
    """A tile's weights along one axis: 1, falling linearly over `overlap` pixels at both ends.

    An overlap of none is a uniform average. Where two tiles overlap by just `overlap`, the
    normalised weights are linear.
    """
    from_end = np.minimum(np.arange(tile), np.arange(tile)[::-1]) + 0.5
    return np.minimum(1.0, from_end / max(overlap, 0.5))


def gaussian(size: int, width: float = GAUSSIAN_WIDTH) -> Float[np.ndarray, " size"]:
    """Weights exp(-r^2 / (2 width^2)) of pixels whose r runs from -1 to 1.

    With the demo's U-Net, windows half their side apart: a width of 0.25, 0.4 and uniform weights
    gave a similarity to the embeddings asked for of 0.544, 0.542 and 0.49, a Frechet distance to
    real crops of 16.6, 17.3 and 20.4, and a seam of 1.05, 1.08 and 1.37 (real: 1.36). Uniform ones
    average away what the windows do not agree on.
    """
    centres = (2 * np.arange(size) + 1) / size - 1
    return np.exp(-0.5 * (centres / width) ** 2)


def blend_weights(
    origins: Int[np.ndarray, " n"], profile: Float[np.ndarray, " tile"]
) -> Float[np.ndarray, "n tile"]:
    """The weights `profile` of each tile's pixels, normalised: those of all tiles over a pixel sum
    to one, at the ends of the axis and where the last tile overlaps more too."""
    total = np.zeros(origins[-1] + len(profile))
    for origin in origins:
        total[origin : origin + len(profile)] += profile
    return np.stack([profile / total[origin : origin + len(profile)] for origin in origins])
