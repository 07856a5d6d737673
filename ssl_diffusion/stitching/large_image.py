"""A large image from a grid of embeddings: the whole method in order."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

from ssl_diffusion.devices import all_devices
from ssl_diffusion.diffusion.denoiser import Denoiser
from ssl_diffusion.diffusion.inpainting import keep_known
from ssl_diffusion.diffusion.plans import Plan
from ssl_diffusion.diffusion.solvers import solve
from ssl_diffusion.errors import InputError
from ssl_diffusion.stitching.consensus import Tiles, stitched_denoiser, tile_shape, tiled
from ssl_diffusion.stitching.decode import decode_canvas, patch_tiling
from ssl_diffusion.stitching.grid import window_contexts
from ssl_diffusion.stitching.noise import START, canvas_noise
from ssl_diffusion.stitching.schemes import Scheme, make_scheme
from ssl_diffusion.stitching.settings import (
    SEEDS,
    PatchModel,
    Settings,
    check_grid,
    check_size,
    default_settings,
    default_window_batch,
    grid_size,
)
from ssl_diffusion.stitching.windows import cell_positions, window_origins

Progress = Callable[[Iterable], Iterable]


class Kept(NamedTuple):
    """A canvas of which a part stays as it is, see `inpainting.keep_known`.

    Attributes:
      latent: scaled.
      mask: True is made anew.
    """

    latent: Float[np.ndarray, "h w c"]
    mask: Bool[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True)
class LargeImage:
    """A large image to be made: everything that decides it, checked before anything compiles.

    Attributes:
      model: the patch model.
      grid: float [rows, cols, tokens, dim] embeddings, unnormalised. Cells are patches
        `grid_stride_px` apart, the last row and column flush with the image's end.
      height_px, width_px: any size of at least one patch. The canvas is rounded up to whole latent
        pixels and the image cropped.
      settings: see `Settings`.
      window_batch: windows denoised at once on each device; it bounds the memory, whatever the
        canvas.
      kept: of an edited image, the canvas outside of what is made anew.

    Raises:
      InputError: a grid that is not finite, does not fit the model or does not cover the image; an
        image smaller than a patch; settings out of range; kept latents of another canvas.
    """

    model: PatchModel
    grid: np.ndarray
    height_px: int
    width_px: int
    settings: Settings
    window_batch: int
    kept: Kept | None = None

    def __post_init__(self) -> None:
        check_grid(self.grid, self.model)
        if not 0 <= self.settings.seed < SEEDS:
            raise InputError(f"seed {self.settings.seed}; expected 0 to {SEEDS - 1}")
        check_size(
            self.grid.shape[:2],
            self.height_px,
            self.width_px,
            self.model.patch_px,
            self.settings.grid_stride_px,
            self.model.factor,
        )
        window_origins(self.window, self.window, self.settings.stride)
        self._check_kept()
        _ = self.plan, self.scheme, self.tile, self.denoisers

    @property
    def height(self) -> int:
        """Of the canvas, latent pixels."""
        return math.ceil(self.height_px / self.model.factor)

    @property
    def width(self) -> int:
        """Of the canvas, latent pixels."""
        return math.ceil(self.width_px / self.model.factor)

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """Of what the solver keeps of the canvas, float32: [height, x and memory, width, c]."""
        return self.height, 1 + self.plan.memory, self.width, self.model.latent_channels

    @property
    def window(self) -> int:
        """Side of a window, latent pixels."""
        return self.model.patch_px // self.model.factor

    @cached_property
    def plan(self) -> Plan:
        """The solver's."""
        return self.settings.sampling.plan(self.model.schedule)

    @cached_property
    def denoisers(self) -> list[Denoiser]:
        """Of a window at each evaluation, on all devices."""
        put: dict[int, Array] = {}  # what they share, their parameters, lies there once

        def once(leaf: Array) -> Array:
            if id(leaf) not in put:
                put[id(leaf)] = self.replicated(leaf)
            return put[id(leaf)]

        sampling, schedule = self.settings.sampling, self.model.schedule
        return jax.tree.map(once, sampling.denoisers(schedule, self.plan, self.model.denoiser))

    @cached_property
    def scheme(self) -> Scheme:
        """Where the windows lie."""
        settings, key = self.settings, jax.random.fold_in(self.key, 1)
        sizes = self.height, self.width, self.window, settings.stride
        return make_scheme(settings.scheme, *sizes, settings.weights, key)

    @cached_property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of windows denoised at once."""
        layout = self.scheme.layout(0)
        rows, columns = len(layout.origins_y), len(layout.origins_x)
        return tile_shape(rows, columns, self.window_batch, jax.device_count())

    @cached_property
    def key(self) -> Array:
        """Of the seed."""
        return jax.random.key(self.settings.seed)

    @cached_property
    def mesh(self) -> Mesh | None:
        """All devices; None where there is one."""
        return all_devices() if jax.device_count() > 1 else None

    def _check_kept(self) -> None:
        canvas = self.height, self.width, self.model.latent_channels
        if self.kept and (self.kept.latent.shape, self.kept.mask.shape) != (canvas, canvas[:2]):
            raise InputError(
                f"kept latents of shape {list(self.kept.latent.shape)} and a mask of "
                f"{list(self.kept.mask.shape)}; expected those of the canvas, {list(canvas)}"
            )

    def noise(self, evaluation: int, first_row: int, rows: int) -> Float[Array, "rows width c"]:
        """Noise of canvas rows; the start noise is that of evaluation `noise.START`."""
        size = {"rows": rows, "width": self.width, "channels": self.model.latent_channels}
        return canvas_noise(jax.random.fold_in(self.key, 0), evaluation, first_row, **size)

    def context(
        self, origins_y: Int[np.ndarray, " ny"], origins_x: Int[np.ndarray, " nx"]
    ) -> PyTree:
        """What the denoiser makes of the embeddings of these windows: a tree of [ny, nx, ...]."""
        spacing = self.settings.grid_stride_px // self.model.factor
        rows, cols = (
            cell_positions(origins, size, self.window, spacing)
            for origins, size in ((origins_y, self.height), (origins_x, self.width))
        )
        # Only the cells that these windows lie between, and always as many: a grid may be large.
        held = min(self.grid.shape[0], int(rows[-1] - rows[0]) + 3)
        first = min(int(rows[0]), self.grid.shape[0] - held)
        cells = jnp.asarray(self.grid[first : first + held], jnp.float32)
        return window_contexts(self.model.context, cells, rows - first, cols)

    def tiled_context(self, tiles: Tiles, first_row: int = 0) -> PyTree:
        """The contexts of a layout's windows, those that fill up its tiles included.

        Their origins count from canvas row `first_row`.
        """
        return self.context(tiles.origins_y.reshape(-1) + first_row, tiles.origins_x.reshape(-1))

    def latent(self, progress: Progress | None = None) -> Float[Array, "h w c"]:
        """The scaled latent canvas, sampled on the devices; `progress` wraps the evaluations."""
        layout = tiles = context = None
        kept = self.kept
        if kept:
            latent, mask = map(jnp.asarray, kept)
            kept = self.replicated((latent[None], mask[None, ..., None]))

        def at(evaluation: int) -> tuple[Denoiser, PyTree]:
            nonlocal layout, tiles, context
            before, layout = layout, self.scheme.layout(evaluation)
            if layout is not before:  # contexts of windows that stay are projected once
                cut = tiled(layout, self.tile)
                tiles, context = self.replicated((cut, self.tiled_context(cut)))
            window, schedule = self.denoisers[evaluation], self.model.schedule
            canvas = stitched_denoiser(window, schedule, tiles, layout.step, self.mesh)
            return keep_known(canvas, schedule, *kept) if kept else canvas, context

        def noise(evaluation: int, like: Array | None = None) -> Array:
            return self.replicated(self.noise(evaluation, 0, self.height)[None])

        return solve(self.plan, at, noise(START), noise=noise, progress=progress)[0]

    def pixels(
        self, progress: Progress | None = None
    ) -> UInt8[np.ndarray, "{self.height_px} {self.width_px} 3"]:
        """The image, decoded from `latent`."""
        image = decode_canvas(
            self.model.decode,
            np.asarray(self.latent(progress)),
            self.model.factor,
            patch_tiling(self.window),
            tile_batch=self.window_batch,
        )
        return image[: self.height_px, : self.width_px]

    def replicated(self, tree: PyTree) -> PyTree:
        """The tree on all devices."""
        if self.mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))


def generate_image(
    model: PatchModel,
    grid: np.ndarray,
    *,
    size: tuple[int, int] | None = None,
    settings: Settings | None = None,
    window_batch: int | None = None,
    progress: Progress | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Generates a large image in memory (Graikos et al. 2024, section 3.3).

    Embeddings are interpolated at the place of every window, windows are denoised together, their
    clean predictions averaged, and the canvas decoded. For images beyond memory see `sweep`.

    Args:
      model: from `weights.model.load_model`.
      grid: float [rows, cols, tokens, dim] or [rows, cols, dim] embeddings, see `LargeImage`.
      size: (width, height), pixels; that of the grid's cells by default.
      settings: `default_settings(model)` by default; change it by its `_replace`.
      window_batch: windows denoised at once on each device; `default_window_batch()` by default.
      progress: wraps the evaluations of the network, e.g. `partial(tqdm, unit="step")`.

    Raises:
      InputError: what `LargeImage` raises, before anything is compiled.
    """
    settings = settings or default_settings(model)
    grid = np.asarray(grid)
    grid = grid[:, :, None] if grid.ndim == 3 else grid
    check_grid(grid, model)
    width, height = size or grid_size(grid.shape[:2], model.patch_px, settings.grid_stride_px)
    batch = default_window_batch() if window_batch is None else window_batch
    return LargeImage(model, grid, height, width, settings, batch).pixels(progress)
