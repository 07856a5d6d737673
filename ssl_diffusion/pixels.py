"""Pixels out of the models: rounding to uint8, and contact sheets."""

import numpy as np
from jaxtyping import Array, Float, UInt8

GAP_PX = 4


def to_uint8(image: Float[Array | np.ndarray, "*n 3"]) -> UInt8[np.ndarray, "*n 3"]:
    """[-1, 1] -> 0..255, rounded; values outside are clipped."""
    return np.clip(np.rint((np.asarray(image) + 1) * 127.5), 0, 255).astype(np.uint8)


def pair_sheet(
    left: UInt8[np.ndarray, "n h w 3"], right: UInt8[np.ndarray, "n h w 3"], columns: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Pairs side by side, `columns` pairs to a row, on white."""
    pairs = np.concatenate([left, right], axis=2)
    count, height, width, _ = pairs.shape
    rows = -(-count // columns)
    step_y, step_x = height + GAP_PX, width + GAP_PX
    sheet = np.full((rows * step_y + GAP_PX, columns * step_x + GAP_PX, 3), 255, np.uint8)
    for index, pair in enumerate(pairs):
        y = GAP_PX + index // columns * step_y
        x = GAP_PX + index % columns * step_x
        sheet[y : y + height, x : x + width] = pair
    return sheet
