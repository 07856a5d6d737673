"""The picture that tells with which colours a label map is painted, and what they stand for."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont

SHOWN = 6  # patches of a class
ROW_PX, NAME_PX, TEXT_PX, GAP_PX = 64, 220, 15, 4
INK, PAPER = (38, 34, 32), (255, 255, 255)


def spread_over(cells: Int[np.ndarray, " n"], count: int) -> list[Int[np.ndarray, " k"]]:
    """Of each class at most `SHOWN` of its patches, spread over all."""
    found = []
    for number in range(count):
        own = np.flatnonzero(cells == number)
        picks = np.linspace(0, len(own) - 1, min(SHOWN, len(own))).astype(int)
        found.append(own[picks])
    return found


def legend(
    classes: Sequence[str],
    colours: Sequence[str],
    patches: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]],
) -> UInt8[np.ndarray, "H W 3"]:
    """A row for each class: a square of its colour, its name and code, some of its patches."""
    height, width = ROW_PX + GAP_PX, ROW_PX + GAP_PX
    size = NAME_PX + (SHOWN + 1) * width + GAP_PX, len(classes) * height + GAP_PX
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_PX)
    for row, (name, colour, own) in enumerate(zip(classes, colours, patches, strict=True)):
        top = GAP_PX + row * height
        draw.rectangle((GAP_PX, top, GAP_PX + ROW_PX - 1, top + ROW_PX - 1), fill=colour)
        draw.text((width + 2 * GAP_PX, top + TEXT_PX // 2), name, INK, font)
        draw.text((width + 2 * GAP_PX, top + 2 * TEXT_PX), colour, INK, font)
        for column, patch in enumerate(own):
            shown = Image.fromarray(patch).resize((ROW_PX, ROW_PX), Image.Resampling.LANCZOS)
            sheet.paste(shown, (NAME_PX + (column + 1) * width, top))
    return np.asarray(sheet)
