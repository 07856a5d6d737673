"""From a config's `data` section to everything that records are to be made of."""

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from ssl_diffusion import demo
from ssl_diffusion.data import groups
from ssl_diffusion.data.annotations import SUFFIX, read_annotations
from ssl_diffusion.data.cutting import survey
from ssl_diffusion.data.images import ImageOrigin, cutting_of
from ssl_diffusion.data.imports import layouts
from ssl_diffusion.data.imports.patch_files import check_utf8, walk
from ssl_diffusion.data.manifest import Row, read_manifest
from ssl_diffusion.data.origins import SPLITS, Collection, Origin
from ssl_diffusion.data.picture import COLOUR, RESAMPLING
from ssl_diffusion.data.recipe import recipe_of
from ssl_diffusion.data.split import Split, draw_split, read_split
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import write_json

IMAGE_SUFFIXES = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide"),
    *(".qptiff", ".dcm", ".czi", ".png", ".jpg", ".jpeg", ".bmp", ".webp", ".jp2", ".vrt"),
    *(".img", ".ntf"),
)
HAMAMATSU = (".vms", ".vmu")  # indices of slides whose pixels are in .jpg files beside them
# Study and series of a DICOM file, which follow each other: a series that others are referred to by
# stands alone, or before its study. Values have their length in front, with or without their type.
_SERIES = re.compile(
    rb"\x20\x00\x0d\x00(?:UI..|..\0\0)[0-9.]*[\0 ]?\x20\x00\x0e\x00(?:UI..|..\0\0)([0-9.]+)",
    re.DOTALL,
)
_DICOM_HEAD = 2**18  # bytes in which it stands; pixels and colour profiles come later
BRACS = ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC")  # as its folders 0_N to 6_IC number them


def collect_images(data: ConfigDict, split_file: Path) -> Collection:
    """The pictures of `data.source`: one file, or a folder searched recursively, sorted by name.

    Labels are the manifest's, else the folders below those of the splits. Who is in which split,
    the first of these says that there is: `data.split`; a manifest's column; the folders train, val
    and test; with three sources or more they are drawn whole; else blocks of each are held out,
    drawn into `split_file`. Raises InputError with `data.instructions` (how to get the data set)
    when there is nothing, for a manifest's file that is not there, a folder that cannot be read, a
    name that is not UTF-8, and a source in two splits.
    """
    recipe = recipe_of(data)
    root = demo.resolve(data.source)
    rows = read_manifest(recipe["manifest"]) if recipe["manifest"] else {}
    files = _files(data, root, rows)
    cutting = cutting_of(recipe)
    origins = [
        ImageOrigin(
            name,
            path,
            cutting,
            group=row.group or groups.group_of(name),
            split=row.split,
            label=row.label,
            text=row.text,
            mpp=row.mpp or recipe["source_mpp"],
        )
        for name, path in files.items()
        for row in (rows.get(name, Row(name)),)
    ]
    if not rows:
        origins = _labelled(origins)
    if recipe["annotations"]:
        origins = _annotated(origins, Path(recipe["annotations"]))
    how = recipe["split"] or _told(origins, rows)
    if how not in _SPLITTERS and not how.endswith(".json"):
        raise InputError(
            f"config.data.split is {how!r}, expected {', '.join(_SPLITTERS)}, or a .json file"
        )
    origins = _SPLITTERS.get(how, _by_blocks)(origins, data, split_file)
    return Collection(
        origins,
        "images",
        _classes(origins),
        settings={"resampling": RESAMPLING, "colour": COLOUR, "split_by": how},
    )


def _files(data: ConfigDict, root: Path, rows: dict[str, Row]) -> dict[str, str]:
    """{name: path} of the pictures; those of the manifest, if there is one."""
    if root.is_file():
        return {check_utf8(root.name, root.parent): str(data.source)}
    if rows:
        missing = [name for name in rows if not (root / name).is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} of the manifest's {len(rows)} files are not in {data.source}: "
                f"{', '.join(missing[:5])}{', ...' * (len(missing) > 5)}"
            )
        return {name: str(root / name) for name in rows}
    found = _slides(sorted(root / name for name in walk(root, IMAGE_SUFFIXES)))
    if not found:
        missing = "" if root.exists() else " (it does not exist)"
        raise InputError(f"no images in {data.source}{missing}. {data.get('instructions', '')}")
    return {path.relative_to(root).as_posix(): str(path) for path in found}


def _slides(files: Sequence[Path]) -> list[Path]:
    """The files, in order, that stand for a picture: of a slide in several files, the first."""
    indexed = {path.parent for path in files if path.suffix.lower() in HAMAMATSU}
    series: set[tuple[Path, bytes]] = set()
    found = []
    for path in files:
        suffix = path.suffix.lower()
        if suffix == ".jpg" and path.parent in indexed:
            continue
        if suffix == ".dcm" and (uid := _series(path)):
            if (path.parent, uid) in series:
                continue
            series.add((path.parent, uid))
        found.append(path)
    return found


def _series(path: Path) -> bytes | None:
    """What the files of a DICOM slide have in common; None if the file does not say it."""
    try:
        with path.open("rb") as stream:
            match = _SERIES.search(stream.read(_DICOM_HEAD))
    except OSError:
        return None  # told when it is opened as a slide
    return match and match[1]


def _labelled(origins: Sequence[ImageOrigin]) -> list[ImageOrigin]:
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


def _annotated(origins: Sequence[ImageOrigin], folder: Path) -> list[ImageOrigin]:
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


def _classes(origins: Sequence[Origin]) -> tuple[str, ...]:
    found = {origin.label for origin in origins} - {""}
    drawn = {origin.annotations for origin in origins if getattr(origin, "annotations", "")}
    for path in drawn:
        with suppress(InputError):  # the slide fails, and tells why, when it is opened
            found |= read_annotations(path).labels
    return BRACS if found and found <= {*BRACS} else tuple(sorted(found))


def _told(origins: Sequence[ImageOrigin], rows: dict[str, Row]) -> str:
    """What says the splits, where the config does not."""
    if any(row.split for row in rows.values()):
        return "manifest"
    if all(origin.name.split("/")[0] in SPLITS and "/" in origin.name for origin in origins):
        return "folders"
    many = len({origin.group for origin in origins}) >= groups.FEWEST
    how = "sources" if many else "blocks"
    logging.info(
        "nothing says the splits: %s",
        "whole sources are drawn" if many else "blocks of each source are held out",
    )
    return how


def _by_manifest(origins: Sequence[ImageOrigin], *_) -> list[ImageOrigin]:
    _check_told([origin.name for origin in origins if not origin.split], len(origins))
    return list(origins)


def _check_told(lacking: Sequence[str], count: int) -> None:
    if lacking:
        raise InputError(
            f"the manifest gives no split to {len(lacking)} of {count} files "
            f"({', '.join(lacking[:5])}); give one to all, or to none"
        )


def _by_folders(origins: Sequence[ImageOrigin], data: ConfigDict, _: Path) -> list[ImageOrigin]:
    for origin in origins:
        if origin.name.split("/")[0] not in SPLITS or "/" not in origin.name:
            raise InputError(
                f"{origin.path}: with config.data.split='folders', images lie in train/, val/ and "
                f"test/ below {data.source}; sort them so, or split by a manifest or a split file"
            )
    return [replace(origin, split=origin.name.split("/")[0]) for origin in origins]


def _by_sources(origins: Sequence[ImageOrigin], data: ConfigDict, _: Path) -> list[ImageOrigin]:
    usable, broken = _usable(origins)
    parts = tuple(recipe_of(data)["held_out"])
    drawn = {o.name: o for o in groups.draw(groups.by_ground(usable), parts)}
    return [drawn.get(origin.name, broken.get(origin.name)) for origin in origins]


def _usable(
    origins: Sequence[ImageOrigin],
) -> tuple[list[ImageOrigin], dict[str, ImageOrigin]]:
    """Those that open, to draw from, and by name those that do not, which fail in their turn."""
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(survey, range(len(origins)), origins))
    pairs = list(zip(origins, found, strict=True))
    broken = {o.name: replace(o, split="train") for o, told in pairs if "reason" in told}
    if len(broken) == len(origins):
        reasons = [told["reason"] for told in found[:3]]
        raise InputError(f"none of {len(origins)} sources can be used: {'; '.join(reasons)}")
    return [origin for origin in origins if origin.name not in broken], broken


def _by_blocks(
    origins: Sequence[ImageOrigin], data: ConfigDict, split_file: Path
) -> list[ImageOrigin]:
    """The split file, drawn and written first if it does not exist."""
    origins, broken = _usable(origins)
    names = [Path(origin.path).name for origin in origins]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"{data.source} holds several images called {', '.join(twice)}; a split file knows "
            "images by name: rename them"
        )
    size = data.patch_px
    if size % data.stride_px:
        raise InputError(
            f"stride {data.stride_px} and patches of {size} px with held-out blocks; expected the "
            "one to divide the other"
        )
    if not demo.resolve(split_file).exists():
        # One after the other: a plain image is in memory whole while it is looked at.
        drawn = draw_split(
            (origin.cutting.open(origin.path, origin.mpp) for origin in origins),
            seed=0,
            mpp=data.mpp,
            patch_px=size,
            min_saturation=origins[0].cutting.min_saturation,
            max_nodata=origins[0].cutting.max_nodata,
            block_px=4 * size,
        )
        write_json(split_file, drawn)
        logging.info("drew the split %s: %s", split_file, drawn["drawn"])
    split = read_split(split_file)
    _check_mpp(split, data, split_file)
    for origin in origins:
        split.check_image(origin.path)
    held = [replace(origin, blocks=split.blocks(origin.path)) for origin in origins]
    return [*held, *broken.values()]


def _check_mpp(split: Split, data: ConfigDict, split_file: Path) -> None:
    if split.mpp not in (None, data.mpp):
        raise InputError(
            f"the blocks of split {split_file} count at {split.mpp:g} µm per pixel, but "
            f"config.data.mpp is {data.mpp:g}; use another split file"
        )
    if split.block_px % data.patch_px:
        raise InputError(
            f"patches of {data.patch_px} px with held-out blocks of {split.block_px} px; expected "
            "the one to divide the other"
        )


_SPLITTERS: dict[str, Callable[..., list[ImageOrigin]]] = {
    "manifest": _by_manifest,
    "folders": _by_folders,
    "sources": _by_sources,
    "blocks": _by_blocks,
}


def collect(data: ConfigDict, split_file: Path) -> Collection:
    """Everything at `data.source`, by the layout that is recognised there.

    A manifest beside a layout that is no folder of pictures says what the files are that patches
    or embeddings are read from. Raises InputError as the layouts' own functions do, and for a
    source in two splits.
    """
    found = layouts.find(data)
    if found is None:
        found = collect_images(data, split_file)
    elif data.get("annotations") or data.get("split") not in (None, "", "records", "manifest"):
        raise InputError(
            f"{data.source} is of the layout {found.layout}, which has splits of its own or draws "
            "whole sources, and no annotations; leave split and annotations out"
        )
    elif data.get("manifest"):
        found = _by_rows(found, read_manifest(data.manifest), demo.resolve(data.source))
    if all(origin.split for origin in found.origins):
        groups.check(found.origins)
    if not any(origin.split in (None, "train") for origin in found.origins):
        raise InputError(f"no source in {data.source} is in train, of which models learn")
    if found.settings.get("split_by") != "sources":  # those are drawn by ground
        groups.warn_of_ground(found.origins)
    return found


def _by_rows(found: Collection, rows: dict[str, Row], root: Path) -> Collection:
    origins, used, lacking = [], set(), []
    for origin in found.origins:
        path = Path(origin.path)
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        row = rows.get(name, Row(name))
        used.add(name)
        if not row.split:
            lacking.append(name)
        origins.append(
            replace(
                origin,
                split=row.split or origin.split,
                group=row.group or origin.group,
                label=row.label or origin.label,
                text=row.text or origin.text,
            )
        )
    if missing := sorted(rows.keys() - used):
        raise InputError(
            f"{len(missing)} of the manifest's {len(rows)} files are none of {root}: "
            f"{', '.join(missing[:5])}{', ...' * (len(missing) > 5)}"
        )
    if any(row.split for row in rows.values()):
        _check_told(lacking, len(origins))
    return replace(found, origins=origins, classes=found.classes or _classes(origins))
