"""What pictures are of: classes told by their folders, or by what somebody drew on them."""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ssl_diffusion.data.annotations import SUFFIX, read_annotations
from ssl_diffusion.data.images import ImageOrigin
from ssl_diffusion.data.imports.patch_files import walk
from ssl_diffusion.data.origins import SPLITS, Origin
from ssl_diffusion.errors import InputError

BRACS = ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC")  # as its folders 0_N to 6_IC number them


def labelled(origins: Sequence[ImageOrigin]) -> list[ImageOrigin]:
    """Labels from names as train/CLASS/image.png, where a class lies in more than one split.

    BRACS has its classes as 0_N to 6_IC there, and for slides as Group_BT/Type_N.
    """
    found: dict[str, set[str]] = {}
    for origin in origins:
        split, *between = origin.name.split("/")[:-1] or ("",)
        if split not in SPLITS or not between:
            return list(origins)
        found.setdefault(between[-1], set()).add(split)
    if not all(len(splits) > 1 or _bracs(name) for name, splits in found.items()):
        return list(origins)
    return [
        replace(origin, label=_bracs(folder) or folder)
        for origin in origins
        for folder in (origin.name.split("/")[-2],)
    ]


def _bracs(folder: str) -> str:
    """The class that a folder of BRACS is named after; "" for other folders."""
    for index, name in enumerate(BRACS):
        if folder in (f"{index}_{name}", f"Type_{name}"):
            return name
    return ""


def annotated(origins: Sequence[ImageOrigin], folder: Path) -> list[ImageOrigin]:
    """The pictures that somebody drew on; how many are left out is logged.

    The annotations of a/s0.tif are a/s0.geojson, else the one s0.geojson that is no other slide's.
    Raises InputError where these are several, or would be of several slides.
    """
    files = {name: str(folder / name) for name in walk(folder, (SUFFIX,))}
    beside = _grouped(files, lambda name: name[: -len(SUFFIX)])
    slides = _grouped([origin.name for origin in origins], _without_suffix)
    drawn = {key: _the_one(beside[key], names) for key, names in slides.items() if key in beside}
    left = _grouped(files.keys() - drawn.values(), lambda name: Path(name).stem)
    namesakes = _grouped([origin.name for origin in origins], lambda name: Path(name).stem)
    for key in slides:
        if key not in drawn and (stem := Path(key).name) in left:
            drawn[key] = _the_one(left[stem], namesakes[stem])
    found = [
        replace(origin, annotations=files[drawn[key]])
        for origin in origins
        for key in (_without_suffix(origin.name),)
        if key in drawn
    ]
    if not found:
        raise InputError(
            f"config.data.annotations={folder} holds no SLIDE{SUFFIX} for any of {len(origins)} "
            "slides; export the annotations from QuPath under the slides' names"
        )
    if left := len(origins) - len(found):
        logging.info("%d of %d slides have no annotations and are left out", left, len(origins))
    return found


def _grouped(names: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(key(name), []).append(name)
    return found


def _without_suffix(name: str) -> str:
    return Path(name).with_suffix("").as_posix()


def _the_one(files: Sequence[str], slides: Sequence[str]) -> str:
    if len(files) > 1 or len(slides) > 1:
        raise InputError(
            f"annotations {', '.join(sorted(files)[:5])} are for {', '.join(sorted(slides)[:5])}, "
            "expected one for one; give each the folder and name of its slide, as a/s0.geojson for "
            "a/s0.tif"
        )
    return files[0]


def classes_of(origins: Sequence[Origin]) -> tuple[str, ...]:
    """The classes of the labels, sorted; BRACS's seven in their order where there are no others."""
    found = {origin.label for origin in origins} - {""}
    drawn = {origin.annotations for origin in origins if getattr(origin, "annotations", "")}
    for path in drawn:
        with suppress(InputError):  # the slide fails, and tells why, when it is opened
            found |= read_annotations(path).labels
    return BRACS if found and found <= {*BRACS} else tuple(sorted(found))
