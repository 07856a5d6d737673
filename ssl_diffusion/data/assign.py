"""Which picture is in which split, or which blocks of it are held out."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from ssl_diffusion import demo
from ssl_diffusion.data import groups
from ssl_diffusion.data.cutting import check_usable, survey
from ssl_diffusion.data.images import ImageOrigin
from ssl_diffusion.data.manifest import Row
from ssl_diffusion.data.origins import SPLITS
from ssl_diffusion.data.recipe import recipe_of
from ssl_diffusion.data.split import Split, draw_split, read_split
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import write_json


def told(origins: Sequence[ImageOrigin], rows: dict[str, Row]) -> str:
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
    check_told([origin.name for origin in origins if not origin.split], len(origins))
    return list(origins)


def check_told(lacking: Sequence[str], count: int) -> None:
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
    check_usable(found)
    pairs = list(zip(origins, found, strict=True))
    broken = {o.name: replace(o, split="train") for o, told in pairs if "reason" in told}
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


def assigned(
    origins: Sequence[ImageOrigin], data: ConfigDict, rows: dict[str, Row], split_file: Path
) -> tuple[list[ImageOrigin], str]:
    """The pictures with a split or held-out blocks each, and what said so: a key of SPLITTERS, or
    the split file that `data.split` names.

    Raises InputError for a split that there is not, and as each way of splitting does.
    """
    how = recipe_of(data)["split"] or told(origins, rows)
    if how not in SPLITTERS and not how.endswith(".json"):
        raise InputError(
            f"config.data.split is {how!r}, expected {', '.join(SPLITTERS)}, or a .json file"
        )
    return SPLITTERS.get(how, _by_blocks)(origins, data, split_file), how


SPLITTERS: dict[str, Callable[..., list[ImageOrigin]]] = {
    "manifest": _by_manifest,
    "folders": _by_folders,
    "sources": _by_sources,
    "blocks": _by_blocks,
}
