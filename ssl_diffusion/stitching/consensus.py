"""One denoiser for a whole canvas: windows are denoised apart, their clean predictions averaged."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from ssl_diffusion.diffusion.denoiser import Denoiser
from ssl_diffusion.diffusion.prediction import Prediction, to_prediction
from ssl_diffusion.diffusion.schedule import Schedule
from ssl_diffusion.errors import InputError
from ssl_diffusion.stitching.schemes import Layout

OVERHEAD = 1.0  # of a call of the network, in windows: what makes many small calls slower


class Tiles(NamedTuple):
    """A layout in blocks of neighbouring windows that are denoised at once; see `tiled`.

    The last tiles are filled up with windows that count for nothing.
    """

    origins_y: Int[Array | np.ndarray, "tiles_y rows"]
    origins_x: Int[Array | np.ndarray, "tiles_x columns"]
    weights_y: Float[Array | np.ndarray, "tiles_y rows window"]
    weights_x: Float[Array | np.ndarray, "tiles_x columns window"]


@dataclasses.dataclass(frozen=True)
class WindowSum:
    """The weighted sum of the windows' clean predictions over a canvas, tile by tile of windows.

    Windows are cut out of their tile's region and added up in it by slices along one axis after the
    other, for any stride, without gathering or scattering: as many slices as the tile has rows and
    columns. What is held beside the canvas depends on the tile alone.

    Attributes:
      step: neighbouring origins are at most so far apart, latent pixels.
      mesh: a tile's windows are shared among its devices; None is one device.
    """

    step: int
    mesh: Mesh | None = None

    def __call__(
        self,
        denoise: Denoiser,
        tiles: Tiles,
        canvas: Float[Array, "H W c"],
        timestep: Float[Array, "1"],
        context: PyTree,
    ) -> Float[Array, "H W c"]:
        """Context: a tree of [window rows, window columns, ...], the filling included."""
        height, width, channels = canvas.shape
        rows, columns = tiles.origins_y.shape[1], tiles.origins_x.shape[1]
        window = tiles.weights_y.shape[2]
        expected = (tiles.origins_y.size, tiles.origins_x.size)
        if {leaf.shape[:2] for leaf in jax.tree.leaves(context)} != {expected}:
            found = {leaf.shape[:2] for leaf in jax.tree.leaves(context)}
            raise InputError(f"contexts of {found} windows; expected one for each of {expected}")
        span_y, span_x = (
            min(size, (count - 1) * self.step + window)
            for size, count in ((height, rows), (width, columns))
        )

        def add_tile(total: Array, tile: Array) -> tuple[Array, None]:
            down, right = tile // len(tiles.origins_x), tile % len(tiles.origins_x)
            ys, xs = tiles.origins_y[down], tiles.origins_x[right]
            y, x = jnp.minimum(ys[0], height - span_y), jnp.minimum(xs[0], width - span_x)
            region = lax.dynamic_slice(canvas, (y, x, 0), (span_y, span_x, channels))
            windows = cut(region, ys - y, xs - x, window)

            def own(leaf: Array) -> Array:
                corner = (down * rows, right * columns, *[0] * (leaf.ndim - 2))
                part = lax.dynamic_slice(leaf, corner, (rows, columns, *leaf.shape[2:]))
                return part.reshape(rows * columns, *leaf.shape[2:])

            x0 = self.denoise(
                denoise,
                windows.reshape(rows * columns, window, window, channels),
                jnp.broadcast_to(timestep, rows * columns),
                jax.tree.map(own, context),
            ).reshape(windows.shape)
            weight_y = tiles.weights_y[down][:, None, :, None, None]
            weight_x = tiles.weights_x[right][None, :, None, :, None]
            part = overlap_add(x0 * (weight_y * weight_x), ys - y, xs - x, (span_y, span_x))
            here = lax.dynamic_slice(total, (y, x, 0), region.shape)
            return lax.dynamic_update_slice(total, here + part, (y, x, 0)), None

        count = len(tiles.origins_y) * len(tiles.origins_x)
        total, _ = lax.scan(add_tile, jnp.zeros_like(canvas), jnp.arange(count))
        return total

    def denoise(self, denoise: Denoiser, x: Array, timestep: Array, context: PyTree) -> Array:
        """The clean predictions of windows [n ...], shared among the devices."""
        if self.mesh is None:
            return denoise(x, timestep, context).x0
        missing = -len(x) % self.mesh.size
        x, timestep, context = jax.tree.map(
            lambda a: jnp.pad(a, ((0, missing), *[(0, 0)] * (a.ndim - 1))), (x, timestep, context)
        )
        everywhere, split = PartitionSpec(), PartitionSpec(self.mesh.axis_names)
        shared = jax.shard_map(
            lambda denoise, *window: denoise(*window).x0,
            mesh=self.mesh,
            in_specs=(everywhere, split, split, split),
            out_specs=split,
        )
        return shared(denoise, x, timestep, context)[: len(x) - missing]


def cut(
    region: Float[Array, "h w c"], ys: Int[Array, " n"], xs: Int[Array, " m"], window: int
) -> Float[Array, "n m window window c"]:
    """The windows with these first rows and columns."""
    bands = jnp.stack([lax.dynamic_slice_in_dim(region, y, window, 0) for y in ys])
    return jnp.stack([lax.dynamic_slice_in_dim(bands, x, window, 2) for x in xs], axis=1)


def overlap_add(
    windows: Float[Array, "n m window window c"],
    ys: Int[Array, " n"],
    xs: Int[Array, " m"],
    shape: tuple[int, int],
) -> Float[Array, "h w c"]:
    """The sum of windows laid where `cut` took them."""
    count, _, window, _, channels = windows.shape
    bands = jnp.zeros((count, window, shape[1], channels), windows.dtype)
    for column, x in enumerate(xs):
        here = lax.dynamic_slice_in_dim(bands, x, window, 2)
        bands = lax.dynamic_update_slice_in_dim(bands, here + windows[:, column], x, 2)
    total = jnp.zeros((*shape, channels), windows.dtype)
    for band, y in zip(bands, ys, strict=True):
        here = lax.dynamic_slice_in_dim(total, y, window, 0)
        total = lax.dynamic_update_slice_in_dim(total, here + band, y, 0)
    return total


def tile_shape(rows: int, columns: int, window_batch: int, devices: int = 1) -> tuple[int, int]:
    """Rows and columns of a tile of at most `window_batch` windows a device: the cheapest.

    The cost is that of all windows denoised, with those that fill up the last tiles and devices.
    Raises InputError for a window batch below 1.
    """
    if window_batch < 1:
        raise InputError(f"window batch {window_batch}; expected at least 1")

    def cost(shape: tuple[int, int]) -> float:
        calls = -(-rows // shape[0]) * -(-columns // shape[1])
        return calls * (-(-shape[0] * shape[1] // devices) + OVERHEAD)

    most = window_batch * devices
    shapes = [
        (down, right)
        for down in range(1, min(rows, most) + 1)
        for right in range(1, min(columns, most // down) + 1)
    ]
    return min(shapes, key=lambda shape: (cost(shape), shape))


def tiled(layout: Layout, shape: tuple[int, int], rows_of_windows: int = 0) -> Tiles:
    """The layout cut into tiles of so many rows and columns of windows, filled up with the last.

    There are tiles for at least `rows_of_windows`: layouts of fewer rows have one shape then.
    """

    def filled(array: np.ndarray, count: int, fill: str, least: int = 0) -> np.ndarray:
        missing = -(-max(len(array), least) // count) * count - len(array)
        padding = ((0, missing), *[(0, 0)] * (array.ndim - 1))
        return np.pad(array, padding, fill).reshape(-1, count, *array.shape[1:])

    rows, columns = shape
    return Tiles(
        filled(layout.origins_y.astype(np.int32), rows, "edge", rows_of_windows),
        filled(layout.origins_x.astype(np.int32), columns, "edge"),
        filled(layout.weights_y.astype(np.float32), rows, "constant", rows_of_windows),
        filled(layout.weights_x.astype(np.float32), columns, "constant"),
    )


@dataclasses.dataclass(frozen=True)
class _Stitched:
    """The static part of a stitched denoiser."""

    window_sum: WindowSum

    def __call__(
        self,
        denoise: Denoiser,
        schedule: Schedule,
        tiles: Tiles,
        canvas: Array,
        timestep: Array,
        context: PyTree,
    ) -> Prediction:
        total = self.window_sum(denoise, tiles, canvas[0], timestep, context)
        # The consensus is an x0 prediction like any other: its eps follows from the canvas.
        return to_prediction("x0", total[None], canvas, *schedule.at(timestep))


def stitched_denoiser(
    denoise: Denoiser, schedule: Schedule, tiles: Tiles, step: int, mesh: Mesh | None = None
) -> jax.tree_util.Partial:
    """Makes a Denoiser of a canvas from a denoiser of windows (Graikos et al. 2024, section 3.3).

    The result takes (canvas[1 H W c], timestep[1], context) with a context for each window, as
    `WindowSum` has it, and predicts the weighted average x0 of the windows over each pixel. Solvers
    run on it unchanged, and with a single window it is the denoiser it was made from, up to
    rounding. Where windows lie is an argument of the compiled program, which layouts of one size
    share.

    Args:
      denoise: the Denoiser of one window.
      schedule: the noise table.
      tiles: the windows of this evaluation, see `tiled`.
      step: `Layout.step`.
      mesh: devices to share the windows.
    """
    return jax.tree_util.Partial(_Stitched(WindowSum(step, mesh)), denoise, schedule, tiles)
