"""What a run tells: JSON lines, TensorBoard, pictures, a progress line."""

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
from ssl_diffusion.training.state import NEVER, Totals, means


class NonFinite(Exception):
    """The loss or its gradient was not finite at this step, the first one."""

    def __init__(self, step: int):
        super().__init__(f"the loss is not finite at step {step}")
        self.step = step


class RunLog:
    """Metrics of a run, maybe a resumed one: what was logged after `start` is forgotten.

    Only the first process writes and shows; the others take part in what needs all of them.

    Args:
      workdir: where `metrics.jsonl`, `tensorboard/` and `samples/` are.
      start: steps done before.
      steps: of the whole run.
      batch_size: examples of a step, over all devices.
      flop: of one step, forward and backward, what is computed twice counted twice.
      peak: TFLOP/s that all devices together are built for.
    """

    def __init__(
        self, workdir: Path, start: int, steps: int, batch_size: int, flop: int, peak: float
    ):
        self._workdir, self._batch_size, self._flop, self._peak = workdir, batch_size, flop, peak
        self._speaks = jax.process_index() == 0
        self._pending: tuple[int, Totals, dict[str, float | None]] | None = None
        self._watch = ThreadPoolExecutor(1)
        self._running: Future[float] | None = None  # when the step under way will have ended
        self._timed = False  # whether a first step, which compiles, has been taken
        self._since: float | None = None
        self._images, self._waited = 0, 0.0
        if not self._speaks:
            return
        _forget_after(workdir, start)
        self._stream = (workdir / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)
        self._bar = tqdm(
            total=steps * batch_size,
            initial=start * batch_size,
            unit="image",
            unit_scale=True,
            desc="train",
            mininterval=1.0,
            dynamic_ncols=True,
        )

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, the next batch is waited for: that counts once the devices have nothing to do."""
        began = time.perf_counter()
        yield
        if self._running and self._running.done():
            self._waited += time.perf_counter() - max(began, self._running.result())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count as training time."""
        began = time.perf_counter()
        yield
        if self._since is not None:
            self._since += time.perf_counter() - began

    def advance(self, totals: Totals) -> None:
        """One step dispatched. The clock starts after the first, which compiles.

        Waits for the step before, so that the host is never more than one step ahead of the bar,
        and counts it.
        """
        if self._since is None:
            jax.block_until_ready(totals)
            self._since = time.perf_counter()
        elif self._running:
            self._running.result()
            self._images += self._batch_size
        if self._timed:
            # A number of its own is waited for: the totals are donated to the next step.
            self._running = self._watch.submit(_end_of, totals["bad_step"] + 0)
        self._timed = True
        if self._speaks:
            self._bar.update(self._batch_size)

    def metrics(self, step: int, totals: Totals) -> None:
        """Takes the totals since the last call, and writes those it took then.

        Reading a device value waits for it: one log later it has long been there.
        """
        self.flush()
        now = time.perf_counter()
        seconds = now - self._since
        rate = self._images / seconds if self._images else None
        speed = {
            "images_per_second": rate,
            "images_per_second_per_device": rate and rate / jax.device_count(),
            "of_peak": rate and rate / self._batch_size * self._flop / 1e12 / self._peak,
            "data_wait": self._waited / seconds if self._images else None,
            "seconds": seconds,
        }
        self._pending = step, totals, speed
        self._since, self._images, self._waited = now, 0, 0.0

    def flush(self) -> None:
        """Writes what is pending. Raises NonFinite if a loss in it was not finite."""
        if self._pending is None:
            return
        step, totals, speed = self._pending
        self._pending = None
        totals = jax.device_get(totals)
        if totals["bad_step"] != NEVER:
            raise NonFinite(int(totals["bad_step"]))
        line = means(totals) | speed
        self._write(step, line)
        if self._speaks:
            shown = {"loss": f"{line['loss']:.4f}"}
            if line["images_per_second"]:
                shown |= {
                    "images/s/device": f"{line['images_per_second_per_device']:.3g}",
                    "of peak": f"{line['of_peak']:.0%}",
                    "data wait": f"{line['data_wait']:.0%}",
                }
            self._bar.set_postfix(shown, refresh=False)

    def held_out(self, step: int, values: dict[str, float]) -> None:
        """Writes what the averaged weights reach on held-out examples; NonFinite as `flush`."""
        if not all(math.isfinite(value) for value in values.values()):
            raise NonFinite(step)
        self._write(step, values)

    def picture(self, step: int, pixels: np.ndarray | None) -> None:
        """Saves a sheet (uint8 [h, w, 3]), if the task has one, as PNG and for TensorBoard."""
        if pixels is None:
            return
        with replacing(self._workdir / "samples" / f"{step:08d}.png") as temporary:
            Image.fromarray(pixels).save(temporary)
        self._board.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Ends bar and files."""
        self._watch.shutdown()
        if self._speaks:
            self._bar.close()
            self._stream.close()
            self._board.close()

    def _write(self, step: int, line: dict[str, float | None]) -> None:
        if not self._speaks:
            return
        images = {"step": step, "images_seen": step * self._batch_size}
        self._stream.write(json.dumps(images | line) + "\n")
        self._stream.flush()
        for name, value in line.items():
            if value is not None:
                self._board.add_scalar(name, value, step)


def _end_of(step: jax.Array) -> float:
    jax.block_until_ready(step)
    return time.perf_counter()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The logged lines of training, oldest first; a line that a kill cut short is left out.

    Raises InputError for lines that are not as `RunLog` writes them.
    """
    return [line for line in _read_lines(workdir) if "loss" in line]


def _read_lines(workdir: Path) -> list[dict[str, Any]]:
    file = workdir / "metrics.jsonl"
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    try:
        metrics = [json.loads(line) for line in lines if line.endswith("\n")]
        return [line for line in metrics if "step" in line.keys()]
    except (json.JSONDecodeError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({error}); train in a new workdir") from None


def _forget_after(workdir: Path, step: int) -> None:
    kept = [json.dumps(line) + "\n" for line in _read_lines(workdir) if line["step"] <= step]
    with replacing(workdir / "metrics.jsonl") as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
