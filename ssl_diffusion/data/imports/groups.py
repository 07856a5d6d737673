"""Which slide a patch is of, as its file name says it, and which split a slide falls into."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from ml_collections import ConfigDict

from ssl_diffusion.data.origins import SPLITS
from ssl_diffusion.errors import InputError

FRACTIONS = (0.8, 0.1, 0.1)
TILE = re.compile(r"(?:^|(?<=[_-]))(\d{1,5})_(\d{1,5})$")  # no dates
PATIENT = re.compile(r"TCGA-\w\w-\w{4}(?=-|$)")


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


def patient_of(slide: str) -> str:
    """What must not lie in two splits: the patient of a TCGA barcode, or else the slide."""
    found = PATIENT.search(PurePosixPath(slide).name)
    return found[0] if found else slide


def origin_name(slide: str, split: str, part: int) -> str:
    """The name of a part of a slide's patches, the same however many others there are."""
    return f"{split}-{part}" if slide == "." else f"{slide}/{split}-{part}"


def fractions_of(data: ConfigDict) -> tuple[float, ...]:
    """`data.fractions`, or FRACTIONS: shares of train, val and test; InputError if they are none.

    Training needs patches to train on and patches to test on.
    """
    given = tuple(data.get("fractions") or FRACTIONS)
    if (
        len(given) != 3
        or min(given) < 0
        or not (given[0] and given[2])
        or abs(sum(given) - 1) > 0.01
    ):
        raise InputError(
            f"config.data.fractions is {given}, expected shares of train, val and test that add up "
            "to 1, such as (0.8, 0.1, 0.1)"
        )
    return given


def draw(groups: Iterable[str], data: ConfigDict) -> dict[str, str]:
    """The split of every group: whole groups, the same ones whenever it is drawn.

    Groups are ranked by a hash of their name, and the last so many are held out. Raises InputError
    where one group is all there is.
    """
    _, val, test = fractions_of(data)
    ranked = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    count = len(ranked)
    if count < 2:
        raise InputError(
            f"{data.source} holds patches of {count} slide or patient ({', '.join(ranked)}), "
            "expected two at least, one to train on and one to test on; add another"
        )
    tested = min(max(1, round(test * count)), count - 1)
    validated = min(round(val * count), count - 1 - tested)
    counts = (count - tested - validated, validated, tested)
    splits = [split for split, n in zip(SPLITS, counts, strict=True) for _ in range(n)]
    return dict(zip(ranked, splits, strict=True))
