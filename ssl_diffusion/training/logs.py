"""What a run tells: JSON lines, TensorBoard, a progress bar."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm

from ssl_diffusion.errors import InputError
from ssl_diffusion.files import replacing


class RunLog:
    """Metrics of a run, maybe a resumed one: what was logged after `start` is forgotten."""

    def __init__(self, workdir: Path, start: int, steps: int, batch_size: int):
        self._workdir, self._batch_size = workdir, batch_size
        _forget_after(workdir, start)
        self._stream = (workdir / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)
        self._bar = tqdm(
            total=steps * batch_size,
            initial=start * batch_size,
            unit="image",
            desc="train",
            mininterval=1.0,
            dynamic_ncols=True,
        )
        self._pending: tuple[int, dict[str, Any], int, float] | None = None
        self._running: dict[str, Any] = {}
        self._since: float | None = None
        self._images = 0

    def advance(self, metrics: dict[str, Any]) -> None:
        """One step dispatched. The clock starts after the first, which compiles.

        Waits for the step before, so that the host is never more than one step ahead of the bar.
        """
        jax.block_until_ready(self._running)
        self._running = metrics
        self._bar.update(self._batch_size)
        if self._since is None:
            jax.block_until_ready(metrics)
            self._since = time.perf_counter()
        else:
            self._images += self._batch_size

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """Takes the metrics of a step and writes those it took before.

        Reading a device value waits for it: one log later it has long been there.
        """
        self.flush()
        now = time.perf_counter()
        self._pending = (step, values, self._images, now - self._since)
        self._since, self._images = now, 0

    def flush(self) -> None:
        """Writes what is pending. Raises InputError if the loss is not finite."""
        if self._pending is None:
            return
        step, values, images, seconds = self._pending
        self._pending = None
        line = {name: float(value) for name, value in values.items()}
        if not math.isfinite(line["loss"]):
            raise InputError(
                f"the loss is {line['loss']} at step {step}; checkpoints saved before are intact: "
                "train in another workdir with a lower learning rate"
            )
        line |= {"images_per_second": images / seconds if images else None, "seconds": seconds}
        self._stream.write(json.dumps({"step": step} | line) + "\n")
        self._stream.flush()
        for name, value in line.items():
            if value is not None:
                self._board.add_scalar(name, value, step)
        self._bar.set_postfix(loss=f"{line['loss']:.4f}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count as training time."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def picture(self, step: int, pixels: np.ndarray | None) -> None:
        """Saves a sheet (uint8 [h, w, 3]) as PNG and for TensorBoard."""
        if pixels is None:
            return
        with replacing(self._workdir / "samples" / f"{step:08d}.png") as temporary:
            Image.fromarray(pixels).save(temporary)
        self._board.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is pending and ends bar and files."""
        try:
            self.flush()
        finally:
            self._bar.close()
            self._stream.close()
            self._board.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The logged lines, oldest first; a line that a kill cut short is left out.

    Raises InputError for lines that are not as `RunLog` writes them.
    """
    file = workdir / "metrics.jsonl"
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    try:
        metrics = [json.loads(line) for line in lines if line.endswith("\n")]
        return [line for line in metrics if {"step", "loss"} <= line.keys()]
    except (json.JSONDecodeError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({error}); train in a new workdir") from None


def _forget_after(workdir: Path, step: int) -> None:
    kept = [json.dumps(line) + "\n" for line in read_metrics(workdir) if line["step"] <= step]
    with replacing(workdir / "metrics.jsonl") as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
