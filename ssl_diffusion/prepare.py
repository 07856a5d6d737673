"""Slides, rasters, images and data sets that others cut -> records.

python -m ssl_diffusion.prepare --source=SLIDES --output=DIR [--patch_px=256 --mpp=0.5 ...]
python -m ssl_diffusion.prepare --config=configs/bracs.py [--output=DIR]

Cuts patches, embeds and encodes them, and writes a TFDS data set in ArrayRecord files, with a page
to look at (DIR/index.html). What is recognised as a source, and every setting, is in the README;
a flag goes before the config's `data` section. The data set appears whole or not at all; work that
was stopped goes on when the command is given again, and is shared by processes and hosts that see
the same folder with --shard=0/4 to --shard=3/4. Sources that cannot be used are listed in
DIR/failed.jsonl, and the exit code is then 3.
"""

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from ssl_diffusion import cli, demo
from ssl_diffusion.data import recipe as recipes
from ssl_diffusion.data.beam import share
from ssl_diffusion.data.collect import collect
from ssl_diffusion.data.cutting import Cutters
from ssl_diffusion.data.encoding import Encoding
from ssl_diffusion.data.finish import NothingToTrain, finish
from ssl_diffusion.data.job import begin, check_same, do, make_recipe
from ssl_diffusion.data.page import write_page
from ssl_diffusion.data.records import FAILED, open_records
from ssl_diffusion.data.work import Job
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json_lines, remove
from ssl_diffusion.locks import locked, only_one

MOST_WORKERS = 16  # by default; each holds some rows of a slide

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; its `data` section is the recipe.", flag_values=FLAGS
)
OUTPUT = flags.DEFINE_string(
    "output", None, "folder of the records; config.data.dir by default", flag_values=FLAGS
)
WORKERS = flags.DEFINE_integer(
    "workers",
    min(os.cpu_count() or 1, MOST_WORKERS) if (os.cpu_count() or 1) > 1 else 0,
    "processes that cut; 0 cuts in the one that embeds",
    lower_bound=0,
    flag_values=FLAGS,
)
SHARD = flags.DEFINE_string(
    "shard", "0/1", "which part of the work is this process's, from 0/n", flag_values=FLAGS
)
BEAM = flags.DEFINE_string(
    "beam",
    None,
    "share the work by Apache Beam, with these options of its pipeline, as --runner=DirectRunner",
    flag_values=FLAGS,
)
DEFINERS = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}
for _name, (_missing, _help) in recipes.RECIPE.items():
    _type = _missing if isinstance(_missing, type) else type(_missing)
    _define = flags.DEFINE_list if _type is tuple else DEFINERS.get(_type, flags.DEFINE_string)
    if _name in recipes.LENGTHS:
        _define = flags.DEFINE_string
    if isinstance(_missing, int | float | tuple) and _missing not in (False, ()):
        _help += f"; {_missing} without a config"
    _define(_name, None, _help, flag_values=FLAGS)


def main() -> None:
    """Reads the flags and prepares; exits with 3 if some sources could not be used."""
    data = _data()
    output = OUTPUT.value or data.get("dir")
    if not output:
        raise InputError("needs --output=DIR")
    mine, shards = cli.parse_numbers("shard", SHARD.value, "/", 2, "which of how many, as 0/4")
    if not 0 <= mine < shards:
        raise InputError(f"--shard={SHARD.value}; expected 0/{shards} to {shards - 1}/{shards}")
    beam = BEAM.value.split() if BEAM.value is not None else None
    try:
        failed = prepare(data, Path(output), workers=WORKERS.value, shard=(mine, shards), beam=beam)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is left", file=sys.stderr)
        sys.exit(130)
    if failed:
        told = "; ".join(f"{one['source']}: {one['reason']}" for one in failed[:10])
        more = f"; and {len(failed) - 10} more" if len(failed) > 10 else ""
        print(
            f"error: {len(failed)} sources could not be used, the others are prepared: {told}"
            f"{more}; all are in {Path(output) / FAILED}",
            file=sys.stderr,
        )
        sys.exit(3)


def _data() -> ConfigDict:
    """The config's `data` section, or one of defaults, with the flags' values in it."""
    if CONFIG.value is None and not FLAGS["source"].value:
        raise InputError("needs --source=PATH or --config=FILE.py")
    data = CONFIG.value.data if CONFIG.value else ConfigDict(recipes.section())
    values = {name: FLAGS[name].value for name in recipes.RECIPE}
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        if name in recipes.LENGTHS:
            given[name] = recipes.parse_mpp(value, name)
        elif isinstance(value, list):
            given[name] = recipes.parse_list(value, name)
    if "patch_px" in given and data.stride_px == data.patch_px:
        given.setdefault("stride_px", given["patch_px"])  # side by side, as they were
    with data.unlocked():
        data.update(given)
    return data


def prepare(
    data: ConfigDict,
    output: Path,
    *,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    beam: list[str] | None = None,
) -> list[dict[str, str]]:
    """Writes the records of one `data` section to `output`; the sources that could not be used.

    Records that are there, made by the same recipe, are kept as they are. With `shard` (i, n) this
    process does every n-th unit of work from i on, and whoever finds all done writes the records;
    with `beam`, options of its pipeline, Apache Beam shares the units out. The same records come of
    any number of processes. Raises InputError for what cannot be prepared.
    """
    recipes.check(data)
    if output.is_file():
        raise InputError(f"--output={output} is a file; give a folder")
    work = output.with_name(f"{output.name}.unfinished")
    if _is_there(output):
        return _there_already(data, output, work)
    with _one_begins(work):
        if _is_there(output):
            return _there_already(data, output, work)
        if not (work / "recipe.json").exists():
            remove(work / "split.json")  # of a run that got no further, maybe by another recipe
        split_file = _split_file(data, work)
        collection = collect(data, split_file)
        recipe = make_recipe(data, collection, split_file)
    encoding = Encoding(recipe, collection)
    encoding.warn_of_another_split(recipe["split_sha256"])
    mine = work / f"shard-{shard[0]}-of-{shard[1]}.lock"
    refusal = f"another process prepares part {shard[0]}/{shard[1]} of {output}; wait for its end"
    with only_one(mine, refusal), Cutters(workers) as cutters:
        with _one_begins(work):
            job = begin(recipe, collection, encoding, work, cutters)
        numbers = range(shard[0], len(job.plan.units), shard[1])
        if beam is not None:
            share(data, work, [n for n in numbers if not job.is_done(n)], beam)
        else:
            do(job, numbers, cutters)
    return _finish(job, output, recipe, split_file)


def _is_there(output: Path) -> bool:
    return output.exists() and any(output.iterdir())


def _there_already(data: ConfigDict, output: Path, work: Path) -> list[dict[str, str]]:
    """What a second run comes to; the page is made if the first was stopped before it."""
    found = open_records(output, "It is not empty: choose another --output.").metadata["recipe"]
    told = recipes.recipe_of(data)
    check_same(told, recipes.recipe_of(found), output)
    split_file = _split_file(data, output)
    check_same(make_recipe(data, collect(data, split_file), split_file), found, output)
    logging.info("records in %s are there already", output)
    if not (output / "index.html").exists():
        write_page(output)
    shutil.rmtree(work, ignore_errors=True)
    return read_json_lines(output / FAILED)


@contextmanager
def _one_begins(work: Path) -> Iterator[None]:
    """Inside is one process at a time: splits are drawn, and the work is planned, once.

    Where it is refused and nothing had been planned, nothing is left.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / "begin.lock").open("a") as file:
        locked(file, wait=True)
        try:
            yield
        except InputError:
            if not (work / "plan.json").exists():
                shutil.rmtree(work, ignore_errors=True)
            raise


def _finish(
    job: Job, output: Path, recipe: dict[str, Any], split_file: Path
) -> list[dict[str, str]]:
    """Writes the records if all units are done; where shards end at once, one of them does."""
    work = job.folder
    with _one_begins(work):
        if not _is_there(output):
            undone = sum(not job.is_done(number) for number in range(len(job.plan.units)))
            if undone:
                logging.info(
                    "this part is done; %d of %d units are left to the other shards: the last one "
                    "to end writes the records",
                    undone,
                    len(job.plan.units),
                )
                return []
            try:
                finish(job, output, recipe, split_file)
            except NothingToTrain:
                shutil.rmtree(work, ignore_errors=True)  # there is nothing in it to go on with
                raise
            write_page(output)
        shutil.rmtree(work, ignore_errors=True)
    return read_json_lines(output / FAILED)


def prepare_unit(data: ConfigDict, work: Path, number: int) -> None:
    """Does one unit of the work that `prepare` has begun in `work`, in any process that sees it."""
    with Cutters(0) as cutters:
        do(_begun(data.to_json(), work), [number], cutters)


@lru_cache(maxsize=1)
def _begun(section: str, work: Path) -> Job:
    data = ConfigDict(json.loads(section))
    split_file = _split_file(data, work)
    collection = collect(data, split_file)
    recipe = make_recipe(data, collection, split_file)
    with Cutters(0) as cutters:
        return begin(recipe, collection, Encoding(recipe, collection), work, cutters)


def _split_file(data: ConfigDict, work: Path) -> Path:
    """Where held-out blocks are kept: the file that is named, or one beside the work."""
    named = demo.resolve(data.get("split") or "")
    return named if named.suffix == ".json" else work / "split.json"


if __name__ == "__main__":
    cli.run(main, FLAGS)
