"""A large image beyond memory: the canvas lies on disk and each evaluation sweeps over it in bands.

A band is some rows of windows. What they predict is added to what earlier bands predicted for the
rows that both cover; rows that no later window covers take the solver's step and are written to the
next state. Every window is denoised once per evaluation, as in memory. After each band a short file
says how far the work is: a run that was killed goes on from there, with the same result bit for
bit.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ssl_diffusion.diffusion.prediction import to_prediction
from ssl_diffusion.diffusion.schedule import Schedule
from ssl_diffusion.diffusion.solvers import advance
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json, remove, write_json
from ssl_diffusion.stitching.consensus import WindowSum, tile_shape, tiled
from ssl_diffusion.stitching.decode import Tiling, decode_bands
from ssl_diffusion.stitching.large_image import LargeImage
from ssl_diffusion.stitching.mapped import mapped, read_rows, release, write_rows
from ssl_diffusion.stitching.noise import START
from ssl_diffusion.stitching.schemes import Layout

FLOATS = 8  # arrays of a band's size that are held at once, about
PROGRESS = "progress.json"


class Done(NamedTuple):
    """How far the work is; what `progress.json` holds beside the settings.

    Attributes:
      evaluation: the one under way; as many as the plan has when all are done.
      band: the first of it that is not done.
      rows: canvas rows of the next state that are written.
      pixel_rows: of the decoded image that are written.
    """

    evaluation: int = 0
    band: int = 0
    rows: int = 0
    pixel_rows: int = 0


class Sweep:
    """The work on one image in one folder.

    Args:
      image: what to make.
      folder: where canvas and pixels lie until the image is written; taken up again if it is there.
      settings: what the image is made of, JSON: the work in the folder must be of the same.
      max_bytes: memory that a band's canvas may take, about.

    Raises:
      InputError: the folder holds the work on another image.
    """

    def __init__(self, image: LargeImage, folder: Path, settings: dict[str, Any], max_bytes: int):
        self.image, self.folder = image, folder
        self.settings = json.loads(json.dumps(settings))  # as they come back: tuples are lists
        row_bytes = FLOATS * 4 * image.width * image.model.latent_channels * image.window
        layout = image.scheme.layout(0)
        count_y, count_x = len(layout.origins_y), len(layout.origins_x)
        self.band = min(count_y, max(1, max_bytes // row_bytes))  # rows of windows
        self.done = Done()
        if folder.exists() and any(folder.iterdir()):
            self._take_up()
        self.tile = tile_shape(self.band, count_x, image.window_batch, jax.device_count())
        self.bands = -(-count_y // self.band)

    def _take_up(self) -> None:
        """Goes on with the work in the folder: InputError if it is on another image, or damaged."""
        advice = "delete the folder, or choose another --output"
        if not (self.folder / PROGRESS).is_file():
            raise InputError(f"{self.folder} holds something else than unfinished work; {advice}")
        found = read_json(self.folder / PROGRESS, "progress of an image")
        if not isinstance(found, dict) or found.get("settings") != self.settings:
            raise InputError(
                f"{self.folder} holds unfinished work on an image with other settings; {advice}"
            )
        self.band, self.done = found["band"], Done(**found["done"])
        needed = [self.folder / f"state_{name}.npy" for name in "ab"]
        if self.done.band:
            needed.append(self._pending(self.done.evaluation, self.done.band))
        if self.done != Done() and not all(file.is_file() for file in needed):
            raise InputError(f"the unfinished work in {self.folder} is damaged; {advice}")

    @property
    def disk_bytes(self) -> int:
        """Disk that the work takes, the image file apart: two states, the pixels, their pyramid."""
        return 2 * 4 * math.prod(self.image.state_shape) + math.prod(self._pixels_shape) * 4 // 3

    @property
    def disk_used(self) -> int:
        """What of it is on the disk already."""
        files = self.folder.glob("*.npy") if self.folder.exists() else ()
        return sum(file.stat().st_blocks * 512 for file in files)

    def run(self, decode_tiling: Tiling, progress: Callable[..., Any]) -> np.ndarray:
        """Samples and decodes what is not done yet; returns the pixels, uint8 [h, w, 3].

        `progress(total, done, what)` gives an object with `update(n)` and `close()`, as tqdm has.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._save(self.done)
        states = [
            mapped(self.folder / f"state_{name}.npy", self.image.state_shape, np.float32)
            for name in ("a", "b")
        ]
        if self.done == Done():
            self._start(states[0])
        evaluations = len(self.image.plan.timesteps)
        done = self.done.evaluation * self.bands + self.done.band
        bar = progress(total=evaluations * self.bands, initial=done, desc="generate", unit="band")
        for evaluation in range(self.done.evaluation, evaluations):
            here, there = states[evaluation % 2], states[(evaluation + 1) % 2]
            for _ in self._evaluate(evaluation, here, there):
                bar.update()
        bar.close()
        return self._decode(states[evaluations % 2], decode_tiling, progress)

    @property
    def _pixels_shape(self) -> tuple[int, ...]:
        return self.image.height_px, self.image.width_px, 3

    def _save(self, done: Done) -> None:
        self.done = done
        write_json(
            self.folder / PROGRESS,
            {"settings": self.settings, "band": self.band, "done": done._asdict()},
        )

    def _evaluate(self, evaluation: int, here: np.ndarray, there: np.ndarray) -> Iterator[None]:
        """One evaluation of the network over the canvas, from state to state, band by band."""
        image, window = self.image, self.image.window
        layout = image.scheme.layout(evaluation)
        origins = layout.origins_y
        height = min(image.height, (self.band - 1) * layout.step + window)
        evaluate = partial(_band_sum, WindowSum(layout.step, image.mesh))
        timestep = jnp.full(1, image.plan.timesteps[evaluation], jnp.float32)
        rows = self.done.rows
        # What earlier bands predicted for rows from `rows` on.
        pending = np.zeros((0, image.width, image.model.latent_channels), np.float32)
        if self.done.band:
            pending = np.load(self._pending(evaluation, self.done.band), allow_pickle=False)
        for band in range(self.done.band, self.bands):
            first, last = band * self.band, min((band + 1) * self.band, len(origins))
            y = min(int(origins[first]), image.height - height)
            part = Layout(
                origins[first:last] - y,
                layout.origins_x,
                layout.weights_y[first:last],
                layout.weights_x,
                layout.step,
            )
            tiles = tiled(part, self.tile, self.band)
            context = image.tiled_context(tiles, first_row=y)
            canvas = read_rows(here, y, y + height)[:, 0]
            total = np.asarray(
                evaluate(
                    image.denoisers[evaluation],
                    *image.replicated((tiles, canvas, timestep, context)),
                )
            )
            total = total[rows - y :] if y < rows else total
            if len(pending):
                total = total.copy()
                total[: len(pending)] += pending
            ready = image.height if last == len(origins) else int(origins[last])
            self._step(evaluation, here, there, rows, total[: ready - rows], timestep)
            pending, rows = total[ready - rows :], ready
            self._finish_band(evaluation, band, rows, pending)
            yield

    def _finish_band(self, evaluation: int, band: int, rows: int, pending: np.ndarray) -> None:
        """Notes that the band is done, with what it predicted for rows that are not."""
        old = self._pending(self.done.evaluation, self.done.band)
        if band + 1 < self.bands:
            np.save(self._pending(evaluation, band + 1), pending)
            self._save(Done(evaluation, band + 1, rows))
        else:
            self._save(Done(evaluation + 1))
        remove(old)

    def _pending(self, evaluation: int, band: int) -> Path:
        return self.folder / f"pending_{evaluation}_{band}.npy"

    def _start(self, state: np.ndarray) -> None:
        """Writes the start noise; the solver's memory is zeros, which a new file is."""
        size = self.image.window
        for row in range(0, self.image.height, size):
            noise = np.asarray(self.image.noise(START, row, size))
            write_rows(state[:, 0], row, noise[: self.image.height - row])

    def _step(
        self,
        evaluation: int,
        here: np.ndarray,
        there: np.ndarray,
        first: int,
        x0: Float[np.ndarray, "rows width c"],
        timestep: Float[Array, "1"],
    ) -> None:
        """The solver's step of finished rows, in pieces of one size: one program for all."""
        image, size = self.image, self.image.window
        if image.kept:
            latent, mask = (part[first : first + len(x0)] for part in image.kept)
            x0 = np.where(mask[..., None], x0, latent)
        weights = jnp.asarray(image.plan.weights[evaluation], jnp.float32)
        for start in range(0, len(x0), size):
            piece = x0[start : start + size]
            count = len(piece)
            row = first + start
            state = _padded(read_rows(here, row, row + count), size)
            noise = image.noise(evaluation, row, size) if image.plan.stochastic else None
            schedule = image.model.schedule
            stepped = _advance(schedule, weights, state, _padded(piece, size), timestep, noise)
            write_rows(there, row, np.asarray(stepped)[:count])

    def _decode(
        self, latent: np.ndarray, tiling: Tiling, progress: Callable[..., Any]
    ) -> np.ndarray:
        pixels = mapped(self.folder / "pixels.npy", self._pixels_shape, np.uint8)
        bar = progress(total=len(pixels), initial=self.done.pixel_rows, desc="decode", unit="row")
        model = self.image.model
        bands = decode_bands(
            model.decode,
            latent[:, 0],
            model.factor,
            tiling,
            first_row=self.done.pixel_rows,
            tile_batch=self.image.window_batch,
        )
        for row, finished in bands:
            inside = finished[: len(pixels) - row, : pixels.shape[1]]  # whole latent pixels
            write_rows(pixels, row, inside)
            release(latent)
            self._save(self.done._replace(pixel_rows=row + len(finished)))
            bar.update(len(inside))
        bar.close()
        return pixels


def check_disk(folder: Path, need: int) -> None:
    """Raises InputError unless the disk has room for so many bytes."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < need:
        raise InputError(
            f"{need / 1e6:,.0f} MB needed in {existing}, {free / 1e6:,.0f} MB free; free some, or "
            "write elsewhere"
        )


@partial(jax.jit, static_argnums=0)
def _band_sum(
    window_sum: WindowSum, denoise: Any, tiles: Any, canvas: Array, timestep: Array, context: Any
) -> Array:
    return window_sum(denoise, tiles, canvas, timestep, context)


@jax.jit
def _advance(
    schedule: Schedule,
    weights: Float[Array, "rows terms"],
    state: Float[Array, "n rows width c"],
    x0: Float[Array, "n width c"],
    timestep: Float[Array, "1"],
    noise: Float[Array, "n width c"] | None,
) -> Float[Array, "n rows width c"]:
    prediction = to_prediction("x0", x0[None], state[:, 0][None], *schedule.at(timestep))
    prediction = jax.tree.map(lambda part: part[0], prediction)
    return jnp.moveaxis(advance(weights, jnp.moveaxis(state, 1, 0), prediction, noise), 0, 1)


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    return np.pad(rows, ((0, size - len(rows)), *[(0, 0)] * (rows.ndim - 1)))
