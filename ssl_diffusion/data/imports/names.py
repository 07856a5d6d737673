"""Which slide a patch is of and where in it, as its file name says it."""

import re
from pathlib import PurePosixPath

TILE = re.compile(r"(?:^|(?<=[_-]))(\d{1,5})_(\d{1,5})$")  # no dates


def slide_of(name: str) -> str:
    """The slide of a patch: its path without the parts that say where in the slide it lies.

    DSMIL's tiler names patches SLIDE/COLUMN_ROW.jpeg, and those of a finer level
    SLIDE/COLUMN_ROW/COLUMN_ROW.jpeg; others write SLIDE_COLUMN_ROW.png. A name without such an
    ending belongs to its folder, and to itself where it has none. "." is the folder asked for.
    """
    path = PurePosixPath(name)
    stem, *above = path.stem, *reversed(path.parts[:-1])
    if TILE.sub("", stem) not in ("", stem):
        return str(path.parent / TILE.sub("", stem).rstrip("_-"))
    while above and TILE.fullmatch(above[0]):
        above.pop(0)
    return "/".join(reversed(above)) or ("." if TILE.fullmatch(stem) else stem)


def tile_of(name: str) -> tuple[int, int]:
    """(column, row) of a patch in the raster of its slide; (0, 0) if its name does not say it."""
    found = TILE.search(PurePosixPath(name).stem)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def origin_name(slide: str, split: str | None, part: int) -> str:
    """The name of a part of a slide's patches, the same however many others there are.

    `split` is None where it is drawn: a slide is in one then.
    """
    name = f"{split}-{part}" if split else f"{part}"
    return name if slide == "." else f"{slide}/{name}"
