"""From a config's `data` section to everything that records are to be made of."""

from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from ssl_diffusion import demo
from ssl_diffusion.data import groups
from ssl_diffusion.data.assign import assigned, check_told
from ssl_diffusion.data.find import find_pictures
from ssl_diffusion.data.images import ImageOrigin, cutting_of
from ssl_diffusion.data.imports import layouts
from ssl_diffusion.data.labels import annotated, classes_of, labelled
from ssl_diffusion.data.manifest import Row, read_manifest
from ssl_diffusion.data.origins import Collection
from ssl_diffusion.data.picture import COLOUR, RESAMPLING
from ssl_diffusion.data.recipe import recipe_of
from ssl_diffusion.errors import InputError


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
    files = find_pictures(data, root, rows)
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
        origins = labelled(origins)
    if recipe["annotations"]:
        origins = annotated(origins, Path(recipe["annotations"]))
    origins, how = assigned(origins, data, rows, split_file)
    return Collection(
        origins,
        "images",
        classes_of(origins),
        settings={"resampling": RESAMPLING, "colour": COLOUR, "split_by": how},
    )


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
        check_told(lacking, len(origins))
    return replace(found, origins=origins, classes=found.classes or classes_of(origins))
