"""What a config has to say, and the records that it names: checked before anything compiles."""

import math
from typing import Any

from ml_collections import ConfigDict

from ssl_diffusion.data.recipe import NEEDED, recipe_of
from ssl_diffusion.data.records import Records, open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.training.averages import profile_name
from ssl_diffusion.training.optimizer import learning_rate
from ssl_diffusion.training.tasks.build import TASKS

POSITIVE = (
    "steps",
    "batch_size",
    "accumulation",
    "log_every",
    "checkpoint_every",
    "sample_every",
    "keep_checkpoints",
)
SECTIONS = ("mesh", "data", "model", "optimizer", "ema")
SAME_IN_A_MIX = ("patch_px", "mpp", "encoder_sha256", "autoencoder_sha256")


def check_config(config: ConfigDict, devices: int) -> None:
    """Raises InputError for what is missing from a config or cannot be, on so many devices."""
    if missing := [n for n in ("task", "seed", *POSITIVE, *SECTIONS) if n not in config]:
        raise InputError(f"the config lacks {', '.join(missing)}; see configs/demo.py")
    if config.task not in TASKS:
        raise InputError(f"config.task is {config.task!r}, expected one of {', '.join(TASKS)}")
    for name in POSITIVE:
        if config[name] < 1:
            raise InputError(f"config.{name} is {config[name]}, expected 1 or more")
    for section, name in (("ema", "snapshot_every"), ("data", "workers")):
        if config[section][name] < 0:
            raise InputError(
                f"config.{section}.{name} is {config[section][name]}, expected 0 or more"
            )
    names = [profile_name(sigma_rel) for sigma_rel in config.ema.sigma_rel]
    if len({*names}) < len(names):
        raise InputError(f"config.ema.sigma_rel holds a length twice: {', '.join(names)}")
    if config.ema.used not in config.ema.sigma_rel:
        raise InputError(
            f"config.ema.used is {config.ema.used}, expected one of config.ema.sigma_rel, "
            f"{tuple(config.ema.sigma_rel)}"
        )
    learning_rate(config)
    shares = devices * config.accumulation
    if config.batch_size % shares:
        parts = f" in {config.accumulation} parts" if config.accumulation > 1 else ""
        raise InputError(
            f"batch size {config.batch_size} does not divide among {devices} devices{parts}; take "
            "a number of devices that divides it, or in a new run a batch size of "
            f"{-(-config.batch_size // shares) * shares}"
        )


def open_record_sets(config: ConfigDict) -> tuple[Records, list[tuple[Records, float]]]:
    """(the records that are evaluated, those that are trained on with their weights).

    The first are those of `data.dir`; the others `data.mix`, or the same where it is empty. Raises
    InputError if they were not made as the config tells, or by different models.
    """
    data = config.data
    records = open_records(data.dir, data.get("instructions", ""))
    _check_recipe(config, records)
    mixed = []
    for folder, weight in _pairs(data.mix):
        each = open_records(folder)
        for name in SAME_IN_A_MIX:
            theirs, ours = (_made_by(one, name) for one in (each, records))
            if theirs != ours:
                raise InputError(
                    f"records in {folder} have {name} {theirs!r}, those in {records.folder} "
                    f"{ours!r}; mix records of the same patches, encoder and autoencoder"
                )
        mixed.append((each, float(weight)))
    return records, mixed or [(records, 1.0)]


def _made_by(records: Records, name: str) -> Any:
    """An entry of the recipe; of a model that is a function and has no hash, its name."""
    recipe = records.metadata["recipe"]
    return recipe.get(name, recipe.get(name.removesuffix("_sha256")))


def _pairs(mix: Any) -> tuple[tuple[str, float], ...]:
    """`data.mix` as it has to be; InputError if it is not."""
    entries = mix if isinstance(mix, tuple | list) else (mix,)
    for entry in entries:
        pair = entry if isinstance(entry, tuple | list) and len(entry) == 2 else (entry, None)
        folder, weight = pair
        number = isinstance(weight, int | float) and math.isfinite(weight) and weight > 0
        if not isinstance(folder, str) or not number:
            raise InputError(
                f"config.data.mix holds {entry!r}, expected pairs of a folder and a weight above "
                "0, as (('data/a', 2.0), ('data/b', 1.0)); one pair ends with a comma: "
                "(('data/a', 1.0),)"
            )
    return tuple(entries)


def _check_recipe(config: ConfigDict, records: Records) -> None:
    """InputError if the records were not made by the recipe that the config tells."""
    theirs, ours = recipe_of(records.metadata["recipe"]), recipe_of(config.data)
    for name in NEEDED:
        if name in ("encoder", "autoencoder") and not ours[name]:
            continue  # a task that reads images alone does not mind how they were encoded
        if theirs[name] != ours[name]:
            raise InputError(
                f"records in {records.folder} have {name} {theirs[name]!r}, the config "
                f"{ours[name]!r}; prepare them with this config, in another folder"
            )
