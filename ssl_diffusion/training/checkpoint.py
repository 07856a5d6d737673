"""Checkpoints: the training state and the data iterator's place, together, by Orbax."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from ssl_diffusion.errors import InputError, disk_is_full
from ssl_diffusion.files import read_json, write_json
from ssl_diffusion.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run in `folder`. A save that was cut off is never taken for whole."""

    def __init__(self, folder: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        self._folder = folder

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, iterator_state: dict[str, Any]) -> None:
        """Starts saving in the background; errors of the save before surface here, or in `wait`."""
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state), iterator=ocp.args.JsonSave(iterator_state)
        )
        with self._clear_when_full():
            self._manager.save(int(state.step), args=arguments)

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint, shaped and sharded as `like`; InputError if it is damaged."""
        step = self._manager.latest_step()
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), iterator=ocp.args.JsonRestore()
        )
        try:
            restored = self._manager.restore(step, args=arguments)
        except Exception as error:  # the layers below raise many kinds for a damaged file
            others = [other for other in self._manager.all_steps() if other != step]
            remedy = f"go on from step {max(others)}" if others else "start again"
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise InputError(
                f"checkpoint {self._folder / str(step)} cannot be restored ({reason}): it is "
                f"damaged, or of another version of the program; move it away to {remedy}"
            ) from None
        return restored["state"], restored["iterator"]

    def wait(self) -> None:
        """Blocks until what was started is saved."""
        with self._clear_when_full():
            self._manager.wait_until_finished()

    @contextmanager
    def _clear_when_full(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not disk_is_full(error):
                raise
            step = self._manager.latest_step()
            kept = (
                f"the checkpoint of step {step} is whole"
                if step is not None
                else "there is none yet"
            )
            raise InputError(
                f"no space left to save a checkpoint in {self._folder}; {kept}; free some space "
                "and run the same command again"
            ) from None


def claim_workdir(workdir: Path, config: ConfigDict, recipe: dict[str, Any]) -> None:
    """Marks `workdir` as this config's, on records of this recipe, wherever they lie.

    Raises InputError, naming what differs, if it is another's.
    """
    file = workdir / "config.json"
    mine = json.loads(config.to_json()) | {"records": recipe}
    del mine["data"]["dir"]
    if not file.exists():
        write_json(file, mine)
        return
    theirs = read_json(file, "run config")
    changed = _differences(theirs, mine)
    if changed:
        raise InputError(
            f"{workdir} belongs to another config ({'; '.join(changed[:4])}); choose another "
            "--workdir"
        )


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
