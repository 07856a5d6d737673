"""Splits are of whole groups (patients, slides, regions), never of patches."""

import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ssl_diffusion import demo
from ssl_diffusion.data import ground
from ssl_diffusion.data.origins import Origin
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import sha256

# Names that say whose an image is: the patient of a TCGA barcode, the slide of a BRACS region.
_SUBJECT = re.compile(r"(TCGA-\w\w-\w{4})(?=\W|$)|(BRACS_\d+)(?=[_.]|$)")
FEWEST = 3  # groups from which train, val and test can be drawn


def group_of(name: str) -> str:
    """What an image of this name is a part of, as far as published names tell; itself else."""
    match = _SUBJECT.match(Path(name).name)
    return match[0] if match else name


def by_ground(origins: Sequence[Origin]) -> list[Origin]:
    """The origins, those that show the same ground in one group, and what overlaps these too.

    Such a group has the first of its groups' names, so that others are drawn as without it.
    """
    prints = ground.footprints(origins)
    group_of = {origin.name: origin.group for origin in origins}
    head = {origin.group: origin.group for origin in origins}

    def find(group: str) -> str:
        while head[group] != group:
            head[group] = group = head[head[group]]
        return group

    for one, other in ground.near(prints):
        first, second = sorted((find(group_of[one]), find(group_of[other])))
        if first != second and ground.share(prints[one], prints[other]):
            head[second] = first
    joined = [replace(origin, group=find(origin.group)) for origin in origins]
    if changed := sum(a.group != b.group for a, b in zip(joined, origins, strict=True)):
        logging.info("%d scenes are drawn with others that show the same ground", changed)
    return joined


def warn_of_ground(origins: Sequence[Origin]) -> None:
    """Logs the first two scenes that show the same ground, unless both are of one split."""
    prints = ground.footprints(origins)
    split_of = {origin.name: origin.split for origin in origins}
    for one, other in ground.near(prints):
        # Blocks (no split) are held out of each scene, whatever the others show.
        apart = split_of[one] is None or split_of[one] != split_of[other]
        if apart and ground.share(prints[one], prints[other]):
            logging.warning(
                "%s (%s) and %s (%s) show the same ground, of which some is trained on and "
                "held out: measures of how well unseen ground is made will be too good",
                *(one, split_of[one] or "blocks", other, split_of[other] or "blocks"),
            )
            return


def draw(origins: Sequence[Origin], held_out: tuple[float, float]) -> list[Origin]:
    """The origins with a split each: whole groups, drawn by the hash of their name.

    `held_out` are the parts of the groups in val and in test, at least one group each where the
    part is not 0. The order of the origins does not matter, and which groups there are besides
    hardly does. Raises InputError for fewer than FEWEST groups.
    """
    groups = sorted({origin.group for origin in origins}, key=_lot)
    if len(groups) < FEWEST:
        raise InputError(
            f"{len(groups)} sources are too few to draw whole ones into train, val and test"
            f"{_joined(len(origins), len(groups))}; give their splits in a manifest, or hold out "
            "blocks of them: --split=blocks"
        )
    val, test = (max(1, round(part * len(groups))) if part else 0 for part in held_out)
    split_of = dict.fromkeys(groups, "train")
    split_of |= dict.fromkeys(groups[:test], "test")
    split_of |= dict.fromkeys(groups[test : test + val], "val")
    return [replace(origin, split=split_of[origin.group]) for origin in origins]


def check(origins: Sequence[Origin]) -> None:
    """Raises InputError if a group, or a file of the same content, is in two splits."""
    first: dict[str, Origin] = {}
    for origin in origins:
        other = first.setdefault(origin.group, origin)
        if other.split != origin.split:
            raise InputError(
                f"{origin.group} is in two splits: {other.name} in {other.split}, {origin.name} in "
                f"{origin.split}; splits are by source, not by patch: give it one"
            )
    alike: dict[int, dict[str, Origin]] = {}  # by size, then by path
    for origin in origins:
        file = demo.resolve(origin.path)
        if file.is_file():
            alike.setdefault(file.stat().st_size, {})[origin.path] = origin
    for files in alike.values():
        if len({origin.split for origin in files.values()}) > 1:
            _check_content(files.values())


def _joined(origins: int, groups: int) -> str:
    if origins == groups:
        return ""
    return f" ({origins} files, of which those of one patient, slide or ground are one)"


def _lot(group: str) -> bytes:
    return hashlib.sha256(group.encode()).digest()


def _check_content(origins: Iterable[Origin]) -> None:
    first: dict[str, Origin] = {}
    for origin in origins:
        other = first.setdefault(sha256(demo.resolve(origin.path)), origin)
        if other.split != origin.split:
            raise InputError(
                f"{other.name} ({other.split}) and {origin.name} ({origin.split}) are the same "
                "image; splits are by source: leave one out"
            )
