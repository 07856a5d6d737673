"""Checkpoints: the training state, the place in the data and the config, together, by Orbax."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from ssl_diffusion.errors import InputError, disk_is_full
from ssl_diffusion.training.state import TrainState

# The best checkpoint is the lowest of the first that is measured: with REPA the loss holds more.
BEST = "held_out_denoising", "held_out_loss"


class Checkpoints:
    """The checkpoints of one run in `folder`: the last `keep` and the best by held-out loss.

    A save that was cut off is never taken for whole. Every process of the run makes the same calls.
    """

    def __init__(self, folder: Path, keep: int):
        best = BestN(
            get_metric_fn=lambda metrics: next(metrics[name] for name in BEST if name in metrics),
            reverse=True,  # the last of this order is kept: the lowest
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(n=keep), best]),
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        self._folder = folder

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: TrainState,
        iterator: dict[str, Any],
        config: ConfigDict,
        metrics: dict[str, float] | None,
    ) -> None:
        """Starts saving in the background; errors of the save before surface here or in `close`."""
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            iterator=ocp.args.JsonSave(iterator),
            config=ocp.args.JsonSave(json.loads(config.to_json())),
        )
        self._manager.save(step, args=arguments, metrics=metrics)

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint and its place in the data, shaped and sharded as `like` describes.

        The run that saved it may have had another mesh and another number of processes. Raises
        InputError if it is damaged.
        """
        step = self._manager.latest_step()
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(like), iterator=ocp.args.JsonRestore()
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

    def close(self) -> None:
        """Waits, and ends the threads that save."""
        self._manager.close()

    @contextmanager
    def safe_when_full(self) -> Iterator[None]:
        """Of a disk that is full, whoever wrote inside: InputError that says what is safe."""
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
                f"no space left to save in {self._folder.parent}; {kept}; free some space and run "
                "the same command again"
            ) from None
