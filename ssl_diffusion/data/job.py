"""What is to be made of what, and the work on it: begun, or gone on with."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssl_diffusion import demo
from ssl_diffusion.data import recipe as recipes
from ssl_diffusion.data.annotations import SUFFIX
from ssl_diffusion.data.cutting import Cutters, Form
from ssl_diffusion.data.encoding import Encoding
from ssl_diffusion.data.origins import Collection, Origin
from ssl_diffusion.data.plan import expected, make_plan, read_plan, write_plan
from ssl_diffusion.data.work import Job, Progress
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json, sha256, write_json
from ssl_diffusion.weights.encoder import is_function
from ssl_diffusion.weights.folder import SPEC, WEIGHTS


def make_recipe(data: ConfigDict, collection: Collection, split_file: Path) -> dict[str, Any]:
    """What the records depend on: the `data` section, and hashes of files, split and models."""
    recipe = recipes.recipe_of(data)
    origins = collection.origins
    files = sorted({path for origin in origins for path in _files_of(origin)})
    told = [
        # Of lists of files, their names or which they are; of pictures, what a manifest says.
        (o.name, o.label, o.text, getattr(o, "names", ()), getattr(o, "mpp", None))
        + (np.asarray(getattr(o, "indices", ())).tolist(),)
        for o in origins
    ]
    recipe["files_sha256"] = _digest([[_state(path) for path in files], told])
    recipe["split_sha256"] = _digest([(o.name, o.split, o.group) for o in origins])
    if any(origin.split is None for origin in origins):
        recipe["split_sha256"] = sha256(demo.resolve(split_file))
    for name in ("encoder", "autoencoder"):
        if data[name] and not is_function(data[name]):
            folder = demo.resolve(data[name])
            if not (folder / WEIGHTS).is_file():
                raise InputError(f"no {name} in {data[name]}. {data.get('instructions', '')}")
            recipe[f"{name}_sha256"] = [sha256(folder / file) for file in (SPEC, WEIGHTS)]
    return recipe


def _files_of(origin: Origin) -> Iterator[str]:
    """Everything that an origin is read from."""
    for name in ("path", "annotations", "slides", "beside", "features"):
        value = getattr(origin, name, ())
        yield from (value,) if isinstance(value, str) and value else value


def _state(path: str) -> tuple[str, str | int, int]:
    """What tells whether a file has changed.

    What ships, and what is small, is told by its content, as it may be copied about; reading all
    slides for it would take hours, so that of these it is size and time.
    """
    file = demo.resolve(path)
    if not file.exists():
        return path, "missing", 0  # it fails, and is told, when it is opened
    about = file.stat()
    if path.startswith(demo.PREFIX) or file.suffix == SUFFIX:
        return path, sha256(file), about.st_size
    return path, int(about.st_mtime), about.st_size


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_same(recipe: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    """InputError if what lies in `folder` was made by another recipe than this."""
    found = recipes.recipe_of(found) | found  # older ones lack the newer entries
    changed = [name for name in sorted(recipe | found) if recipe.get(name) != found.get(name)]
    if changed:
        raise InputError(
            f"{folder} holds records made otherwise ({', '.join(changed)} differ); choose another "
            "--output or delete it"
        )


def begin(
    recipe: dict[str, Any],
    collection: Collection,
    encoding: Encoding,
    work: Path,
    cutters: Cutters,
) -> Job:
    """The plan, and room for it; both are kept in `work` for who goes on or shares.

    Raises InputError for work of another recipe, and if the disk has no room for what is expected.
    """
    form = Form(
        recipe["variants"], recipe["jpeg_quality"], encoding.needs_pixels, recipe["patch_px"]
    )
    kept = work / "plan.json"
    if kept.exists():
        check_same(recipe, read_json(work / "recipe.json", "recipe"), work)
        plan = read_plan(kept)
    else:
        plan = make_plan(collection, cutters)
        records, size = expected(plan, collection, cutters, form)
        need = size + records * encoding.layout.array_bytes
        parent = next(path for path in (work, *work.absolute().parents) if path.exists())
        free = shutil.disk_usage(parent).free
        room = f"about {records:,} records, {need / 1e9:.3g} GB; {free / 1e9:.3g} GB are free"
        if need > free:
            raise InputError(
                f"{work.parent} has too little room: {room}; free some, or give another --output"
            )
        logging.info("%d sources in %d units: %s", len(collection.origins), len(plan.units), room)
        write_json(work / "recipe.json", recipe)
        write_plan(kept, plan)
    return Job(collection, plan, encoding, form, recipe["mpp"], work)


def do(job: Job, numbers: Sequence[int], cutters: Cutters) -> None:
    """Does these units of a job, one after the other, if nobody else did."""
    progress = Progress(sum(job.plan.most(job.plan.units[number]) for number in numbers))
    try:
        for number in numbers:
            if not (job.folder / "plan.json").exists():
                return  # others were quicker and have written the records
            if not job.is_done(number):
                job.do(number, cutters, progress)
    finally:
        progress.close()
