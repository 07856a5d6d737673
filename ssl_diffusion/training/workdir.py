"""Whose a workdir is: one config's, and one run's at a time."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json, write_json
from ssl_diffusion.locks import locked

# What of a config may change between two starts of a run: where things lie, how they are shared,
# and when something is written. A rate that does not decay also lets the run be made longer.
MAY_CHANGE = {
    "": (
        "mesh",
        "accumulation",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "sample_every",
    ),
    "data": ("dir", "workers", "instructions"),
    "ema": ("snapshot_every",),
    "model": ("remat",),
}
PATIENCE = 600.0  # seconds; as long as a pod that is taken away has to save


@contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """Inside, no other run writes to `workdir`; the lock ends with this process, however it ends.

    Waits for one that does, since a scheduler may start a run again while it still saves; raises
    InputError if that one goes on. Of several processes of one run the first holds the lock.
    """
    if jax.process_index():
        yield
        return
    made = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("a") as file:
        _wait_for_lock(file, workdir)
        try:
            yield
        finally:
            if made and [path.name for path in workdir.iterdir()] == [".lock"]:  # it was refused
                (workdir / ".lock").unlink()
                workdir.rmdir()


def _wait_for_lock(file: Any, workdir: Path) -> None:
    if locked(file):
        return
    logging.info("another process trains in %s: waiting for its end", workdir)
    until = time.monotonic() + PATIENCE
    while not locked(file):
        if time.monotonic() > until:
            raise InputError(
                f"another process trains in {workdir}; stop it, or choose another --workdir"
            )
        time.sleep(1)


def claim_workdir(
    workdir: Path, config: ConfigDict, recipes: list[dict[str, Any]], started: bool
) -> None:
    """Marks `workdir` as this config's, on records of these recipes, wherever they lie.

    Raises InputError, naming what differs, if it is another's that has `started`: one that never
    saved anything loses nothing.
    """
    file = workdir / "config.json"
    mine = json.loads(config.to_json()) | {"records": recipes}
    if started and file.exists():
        theirs = read_json(file, "run config")
        changed = _differences(_fixed(theirs), _fixed(mine))
        if changed:
            raise InputError(
                f"{workdir} belongs to another config ({'; '.join(changed[:4])}); choose another "
                "--workdir"
            )
    if jax.process_index() == 0:
        write_json(file, mine)


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    fixed = {name: config[name] for name in config if name not in MAY_CHANGE[""]}
    if config["optimizer"]["decay"] == "constant":
        del fixed["steps"]
    for section in ("data", "ema", "model"):
        entries = config.get(section, {})
        kept = {name: entries[name] for name in entries if name not in MAY_CHANGE[section]}
        fixed[section] = kept
    # Mixed records are known by their recipes; of the mixture the weights are left to compare.
    fixed["data"]["mix"] = [weight for _, weight in fixed["data"].get("mix", ())]
    return fixed


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [
            line
            for name in names
            for line in _differences(
                old.get(name), new.get(name), f"{path}.{name}" if path else name
            )
        ]
    return [] if old == new else [f"{path} is {old!r} there, {new!r} here"]
