"""From units of work that are all done to a data set that can be trained on and looked at."""

import logging
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssl_diffusion.data.origins import SPLITS
from ssl_diffusion.data.records import FAILED, SOURCES
from ssl_diffusion.data.work import Done, Job
from ssl_diffusion.data.writer import assemble
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import replacing, sha256, write_json_lines
from ssl_diffusion.weights.encoder import is_function
from ssl_diffusion.weights.folder import copy_model

SHOWN = 20  # duplicates that are told one by one


class NothingToTrain(InputError):
    """No patch of any source is one to train on."""


def finish(job: Job, output: Path, recipe: Mapping[str, Any], split_file: Path) -> None:
    """Writes the data set to `output`, whole or not at all. Raises InputError if nothing trains."""
    numbers = range(len(job.plan.units))
    parts = [(job.path(number), job.read(number)) for number in numbers]
    counts = {
        split: sum(size for _, done in parts for size, _ in done.shards.get(split, ()))
        for split in SPLITS
    }
    failed = job.plan.failed | {i: why for _, done in parts for i, why in done.failed.items()}
    if not counts["train"]:
        reasons = "".join(f"; {reason}" for reason in list(failed.values())[:3])
        raise NothingToTrain(f"patches found: {counts}; training needs some in train{reasons}")
    if any(o.split is None for o in job.collection.origins):
        if sha256(split_file) != recipe["split_sha256"]:
            raise InputError(f"{split_file} has changed since the work began; put it back")
    asked = Counter(origin.split or "test" for origin in job.collection.origins)
    for split in sorted(asked):
        if not counts[split]:
            logging.warning(
                "no patch in %s: its %d sources failed or are empty", split, asked[split]
            )
    duplicates = find_duplicates(job, [path for path, _ in parts])
    metadata = {
        "recipe": dict(recipe),
        "patch_px": recipe["patch_px"],
        "mpp": job.mpp,
        "split_sha256": recipe["split_sha256"],
        "image": _image(recipe["jpeg_quality"]),
        "classes": list(job.collection.classes),
        "label_counts": _labels([done.labels for _, done in parts]),
        "layout": job.collection.layout,
        "duplicates": duplicates,
        **job.collection.settings,
        **job.encoding.metadata,
    }
    with replacing(output) as temporary:
        shards = [(path, done.shards) for path, done in parts]
        assemble(temporary, shards, SPLITS, job.encoding.layout, metadata)
        for name, model in (
            ("encoder", job.encoding.encoder),
            ("autoencoder", job.encoding.first_stage),
        ):
            if model and not is_function(recipe[name]):
                copy_model(recipe[name], temporary / name)
        if split_file.exists():
            shutil.copyfile(split_file, temporary / "split.json")
        write_json_lines(temporary / SOURCES, _sources(job, [done for _, done in parts]))
        if failed:
            origins = job.collection.origins
            lines = (
                {"source": origins[i].name, "path": origins[i].path, "reason": failed[i]}
                for i in sorted(failed)
            )
            write_json_lines(temporary / FAILED, lines)
    if duplicates["records"]:
        logging.warning(
            "%d records are a patch that another one is too, %d of them in another split; "
            "index.html shows some",
            duplicates["records"],
            duplicates["across_splits"],
        )
    logging.info("wrote %s to %s", counts, output)


def find_duplicates(job: Job, folders: list[Path]) -> dict[str, Any]:
    """`records`: how many patches are one that came before, `across_splits`: in another split.

    `examples` are some of those, [source, x, y, split] of both. Patches are compared by the 64-bit
    hash (BLAKE2b) of their pixels, or of their files where these become records as they are; that
    two of 15 M different ones share one has odds of 1 to 10^5.
    """
    names = ("digest", "origin", "x", "y", "split")
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for folder in folders:
        with np.load(folder / "patches.npz") as arrays:
            for name in names:
                columns[name].append(arrays[name])
    table = {name: np.concatenate(parts) for name, parts in columns.items()}
    order = np.argsort(table["digest"], kind="stable")
    digest, split = table["digest"][order], table["split"][order]
    starts = np.flatnonzero(np.r_[True, digest[1:] != digest[:-1]])
    first = np.repeat(starts, np.diff(np.r_[starts, len(digest)]))  # where its like came first
    later = np.flatnonzero(first != np.arange(len(digest)))
    elsewhere = split[later] != split[first[later]]

    def told(place: int) -> list[Any]:
        row = int(order[place])
        x, y = int(table["x"][row]), int(table["y"][row])
        name = job.collection.origins[table["origin"][row]].name
        return [name, x, y, SPLITS[table["split"][row]]]

    shown = [*later[elsewhere][:SHOWN], *later[~elsewhere][:SHOWN]][:SHOWN]
    return {
        "records": len(later),
        "across_splits": int(elsewhere.sum()),
        "examples": [[told(int(first[place])), told(int(place))] for place in shown],
    }


def _labels(parts: list[dict[str, list[int]]]) -> dict[str, list[int]]:
    """By split: how many records have each class, and at the end how many have none."""
    splits = [split for split in SPLITS if any(split in part for part in parts)]
    return {
        split: np.sum([part[split] for part in parts if split in part], axis=0).tolist()
        for split in splits
    }


def _sources(job: Job, done: list[Done]):
    patches = {index: counts for one in done for index, counts in one.patches.items()}
    for index in sorted(patches):
        origin, survey = job.collection.origins[index], job.plan.surveys[index]
        yield {
            "source": origin.name,
            "path": origin.path,
            "split": origin.split,
            "group": origin.group,
            "label": origin.label,
            "patches": patches[index],
        } | survey["about"]


def _image(jpeg_quality: int | None) -> dict[str, Any]:
    if jpeg_quality is None:
        return {"format": "PNG"}
    return {"format": "JPEG", "quality": jpeg_quality, "subsampling": "4:4:4"}
