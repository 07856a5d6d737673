"""Grids of embeddings drawn from a prior: whole, larger than it was trained on, or made anew."""

import dataclasses
from collections.abc import Callable, Iterable
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from ssl_diffusion.diffusion.denoiser import Denoiser
from ssl_diffusion.diffusion.inpainting import keep_known, repainting_plan
from ssl_diffusion.diffusion.plans import Plan, make_plan
from ssl_diffusion.diffusion.sampling import Sampling, read_sampling
from ssl_diffusion.diffusion.solvers import solve
from ssl_diffusion.diffusion.timesteps import SPACINGS
from ssl_diffusion.errors import InputError
from ssl_diffusion.prior.asked import Asked
from ssl_diffusion.prior.model import Prior
from ssl_diffusion.stitching.consensus import Tiles, cut, stitched_denoiser, tile_shape, tiled
from ssl_diffusion.stitching.noise import START, canvas_noise
from ssl_diffusion.stitching.schemes import Layout, make_scheme
from ssl_diffusion.stitching.settings import SEEDS

Progress = Callable[[Iterable], Iterable]
Grid = Float[np.ndarray, "grid_rows grid_cols grid_tokens grid_dim"]
Mask = Bool[np.ndarray, "mask_rows mask_cols"]

CELLS_AT_ONCE = 4096  # of small grids that are sampled together: bounds the memory
WINDOW_BATCH = 16  # windows of a large grid that are denoised together
PASSES = 10  # of each step where a part is made anew, see diffusion.inpainting


def sample_grids(
    prior: Prior,
    asked: Asked,
    rows: int,
    cols: int,
    *,
    samples: int = 1,
    seed: int = 0,
    sampling: Sampling | None = None,
    keep: tuple[Grid, Mask] | None = None,
    start: tuple[Grid, float] | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "{samples} {rows} {cols} tokens dim"]:
    """Draws grids of embeddings from p(grid | asked).

    A grid larger than the prior's window is sampled in overlapping windows that agree on every
    cell, as a canvas is (Graikos et al. 2024, sec. 3.3). What number k is depends on the seed and k
    alone.

    Args:
      prior: from `load_prior`.
      asked: the condition.
      rows, cols: cells.
      samples: how many.
      seed: of all noise.
      sampling: solver, steps, guidance; the prior's own by default.
      keep: (grid, mask): only cells where the mask is True are sampled, by RePaint, whose solver is
        DDIM; the others are those of the grid, but for rounding.
      start: (grid, strength): the grid is noised to this share of the steps, above 0 and up to 1,
        and denoised (SDEdit, Meng et al. 2022, arXiv 2108.01073): 1 is a sample like any other.
        To the nearest step, at least one. What the whitening's components do not hold is kept by
        the part 1 - strength.
      progress: wraps the evaluations of the network.

    Raises:
      InputError: what the prior cannot be asked; sizes, seed or strength out of range; grids of
        other shapes; both `keep` and `start`.
    """
    sampling = sampling or read_sampling(prior.spec["sampling"])
    if min(rows, cols, samples) < 1:
        raise InputError(f"{samples} grids of {rows}x{cols} cells; expected at least one of one")
    if not 0 <= seed < SEEDS:
        raise InputError(f"seed {seed}; expected 0 to {SEEDS - 1}")
    if keep and start:
        raise InputError("a part made anew and a variation of the whole; ask for one of them")
    for given in (keep, start):
        expected = (rows, cols, prior.tokens, prior.dim)
        if given and given[0].shape != expected:
            raise InputError(
                f"a grid of shape {list(given[0].shape)}; expected {list(expected)}: rows, columns "
                "and the prior's embeddings"
            )
    if keep and keep[1].shape != (rows, cols):
        raise InputError(f"a mask of {keep[1].shape} cells for a grid of {rows}x{cols}")
    if start and not 0 < start[1] <= 1:
        raise InputError(f"strength {start[1]:g}; expected above 0 and up to 1")
    work = _Work(prior, asked, rows, cols, seed, sampling, keep, start)
    at_once = max(1, CELLS_AT_ONCE // (rows * cols)) if work.fits else 1
    parts = []
    for first in range(0, samples, at_once):
        numbers = range(first, min(first + at_once, samples))
        white = work.sample(numbers, progress)[:, :rows, :cols]
        parts.append(np.asarray(prior.whitening.to_embedding(white, prior.tokens), np.float32))
    found = np.concatenate(parts)
    if keep:  # exactly: whitening lost what the components do not hold
        found = np.where(keep[1][..., None, None], found, keep[0].astype(np.float32))
    if start:
        grid, strength = start
        white = prior.whitening.to_white(grid.astype(np.float32))
        lost = grid - np.asarray(prior.whitening.to_embedding(white, prior.tokens))
        found = found + np.float32(1 - strength) * lost.astype(np.float32)
    return found


@dataclasses.dataclass(frozen=True)
class _Work:
    """Grids that are sampled alike, on a canvas of at least a window if they exceed one."""

    prior: Prior
    asked: Asked
    rows: int
    cols: int
    seed: int
    sampling: Sampling
    keep: tuple[Grid, Mask] | None
    start: tuple[Grid, float] | None

    @property
    def fits(self) -> bool:
        """Whether the network sees the grid whole."""
        return max(self.rows, self.cols) <= self.prior.window

    @property
    def shape(self) -> tuple[int, int]:
        """Of the canvas, cells."""
        if self.fits:
            return self.rows, self.cols
        return max(self.rows, self.prior.window), max(self.cols, self.prior.window)

    @property
    def channels(self) -> int:
        """Of the canvas."""
        return self.prior.whitening.whiten.shape[1]

    @cached_property
    def timesteps(self) -> np.ndarray:
        """The path, of which a variation takes the last part."""
        sampling, schedule = self.sampling, self.prior.schedule
        path = SPACINGS[sampling.spacing](schedule, sampling.steps)
        strength = self.start[1] if self.start else 1.0
        return path[-1 - max(1, round(strength * sampling.steps)) :]

    @cached_property
    def plan(self) -> Plan:
        """The solver's."""
        if self.keep:
            return repainting_plan(self.prior.schedule, self.timesteps, PASSES)
        return make_plan(self.sampling.solver, self.prior.schedule, self.timesteps)

    @cached_property
    def context(self) -> dict[str, Array]:
        """Of one canvas; what lies beyond the grid is not said."""
        asked, (height, width) = self.asked, self.shape
        if asked.label_map is not None:
            beyond = (0, height - self.rows), (0, width - self.cols)
            padded = np.pad(asked.label_map, beyond, constant_values=-1)
            asked = dataclasses.replace(asked, label_map=padded)
        return self.prior.context(asked, height, width)

    def sample(self, numbers: range, progress: Progress | None) -> Float[Array, "n h w k"]:
        """White canvases of these numbers."""
        plan, schedule = self.plan, self.prior.schedule
        denoisers = self.sampling.denoisers(schedule, plan, self.prior.denoiser)
        key = jax.random.key(self.seed)
        height, width = self.shape

        def noise(evaluation: int, like: Array | None = None) -> Float[Array, "n h w k"]:
            size = {"rows": height, "width": width, "channels": self.channels}
            keys = [jax.random.fold_in(key, number) for number in numbers]
            return jnp.stack([canvas_noise(own, evaluation, 0, **size) for own in keys])

        context = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (len(numbers), *leaf.shape[1:])), self.context
        )
        if not self.fits:
            tiles, layout, context = self._windows()
        if self.keep:
            known = self._white(self.keep[0])[None]
            anew = jnp.asarray(self._padded(self.keep[1], True))[None, ..., None]

        def at(evaluation: int) -> tuple[Denoiser, PyTree]:
            denoise = denoisers[evaluation]
            if not self.fits:
                denoise = stitched_denoiser(denoise, schedule, tiles, layout.step)
            if self.keep:
                denoise = keep_known(denoise, schedule, known, anew)
            return denoise, context

        x = noise(START)
        if self.start and self.start[1] < 1:
            alpha, sigma = schedule.levels(self.timesteps[:1])
            x = alpha[0] * self._white(self.start[0]) + sigma[0] * x
        return solve(plan, at, jnp.asarray(x, jnp.float32), noise=noise, progress=progress)

    def _windows(self) -> tuple[Tiles, Layout, PyTree]:
        """Overlapping windows of the canvas and each one's context."""
        own, window = self.prior.spec["sampling"], self.prior.window
        key = jax.random.key(self.seed)
        weights = own.get("weights", "gaussian")
        scheme = make_scheme("overlap", *self.shape, window, own["stride"], weights, key)
        layout = scheme.layout(0)
        counts = len(layout.origins_y), len(layout.origins_x)
        tiles = tiled(layout, tile_shape(*counts, WINDOW_BATCH))
        ys, xs = tiles.origins_y.reshape(-1), tiles.origins_x.reshape(-1)
        tokens = self.context["tokens"]
        context = {"tokens": jnp.broadcast_to(tokens, (len(ys), len(xs), *tokens.shape[1:]))}
        if "cells" in self.context:
            corners = jnp.asarray(ys), jnp.asarray(xs)
            context["cells"] = cut(self.context["cells"][0], *corners, window)
        return tiles, layout, context

    def _white(self, grid: Grid) -> Float[Array, "h w k"]:
        white = self.prior.whitening.to_white(grid.astype(np.float32))
        return jnp.asarray(self._padded(np.asarray(white), "edge"))

    def _padded(self, array: np.ndarray, beyond: bool | str) -> np.ndarray:
        """A grid's array over the whole canvas, filled up with a value or as its edge is."""
        width = [(0, size - have) for size, have in zip(self.shape, array.shape[:2], strict=True)]
        width += [(0, 0)] * (array.ndim - 2)
        if beyond == "edge":
            return np.pad(array, width, "edge")
        return np.pad(array, width, constant_values=beyond)
