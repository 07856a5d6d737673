"""Where the grid of an image comes from, and what is edited in it.

It is embedded from a reference, read from a file, or sampled by a prior. Those of a reference or a
file can be blended with another, sampled anew in a part, or varied. All that is asked for is read
and checked when the source is opened; it is computed when the source is asked for its grids.
"""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Bool, Float, UInt8

from ssl_diffusion import cli, demo
from ssl_diffusion.data.picture import Picture
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import sha256
from ssl_diffusion.grid_prior import Sampled, check_prior, read_sampled
from ssl_diffusion.prior.model import load_prior
from ssl_diffusion.prior.painted import painted_size
from ssl_diffusion.prior.sampling import sample_grids
from ssl_diffusion.stitching.grid import slerp
from ssl_diffusion.stitching.reference import embed_region, load_grid
from ssl_diffusion.stitching.settings import check_grid, check_size, grid_cells, grid_size
from ssl_diffusion.weights.model import Model


@dataclasses.dataclass(frozen=True)
class GridSource:
    """A grid to be made, everything that decides it read and checked.

    Attributes:
      model: whose embeddings it holds.
      size: (width, height) of the image, pixels.
      cells: (rows, cols) of the grid.
      stride_px: from cell to cell.
      picture, region: of a reference, at the model's resolution: x, y, width, height.
      given: the grid of a file.
      blend: another grid of that shape, and how far towards it.
      sampled: what a prior has to do.
      said: where the grid comes from, for the .json beside the image.
    """

    model: Model
    size: tuple[int, int]
    cells: tuple[int, int]
    stride_px: int
    picture: Picture | None
    region: tuple[int, int, int, int] | None
    given: np.ndarray | None
    blend: tuple[np.ndarray, float] | None
    sampled: Sampled | None
    said: dict[str, Any]

    @property
    def samples(self) -> int:
        """How many grids there are."""
        return self.sampled.samples if self.sampled else 1

    @property
    def mask(self) -> Bool[np.ndarray, "rows cols"] | None:
        """Of a reference of which only these cells are made anew."""
        return self.sampled.mask if self.sampled else None

    @property
    def placeholder(self) -> np.ndarray:
        """A grid of the shape of those to come."""
        if self.given is not None:
            return self.given
        embedding = self.model.spec["embedding"]
        return np.zeros((*self.cells, embedding["tokens"], embedding["dim"]), np.float32)

    def reference(self) -> UInt8[np.ndarray, "height width 3"]:
        """The pixels of the region."""
        return self.picture.read(*self.region)

    def describe(self, number: int) -> dict[str, Any]:
        """Where grid `number` comes from, for the .json beside its image."""
        prior = self.sampled.said | {"sample": number} if self.sampled else None
        return self.said | {"prior": prior}

    def grids(self, bar: Callable[..., Iterable]) -> Float[np.ndarray, "n rows cols tokens dim"]:
        """All grids. `bar(iterable, desc=..., unit=...)` shows the progress, as tqdm."""
        grid = self.given
        if self.picture:
            embed, patches = self.model.encoder.embed, partial(bar, desc="embed", unit="patch")
            patch_px = self.model.patch_px
            region = self.picture.read, embed, self.region, patch_px, self.stride_px
            grid = embed_region(*region, patches)
        if self.blend:
            other, part = self.blend
            grid = np.asarray(
                slerp(*map(jnp.asarray, (grid, other)), jnp.full(other.shape[:3], part))
            )
        if not self.sampled:
            return grid[None]
        wanted, grid = self.sampled, None if grid is None else grid.astype(np.float32)
        return sample_grids(
            wanted.prior,
            wanted.asked,
            *self.cells,
            samples=wanted.samples,
            seed=wanted.seed,
            sampling=wanted.sampling,
            keep=None if wanted.mask is None else (grid, wanted.mask),
            start=None if wanted.strength is None else (grid, wanted.strength),
            progress=partial(bar, desc="grid", unit="evaluation"),
        )


def open_source(given: flags.FlagValues, model: Model, seed: int) -> GridSource:
    """The source that the flags of `grid_flags` say.

    Args:
      given: the flags, checked by `grid_flags.check_flags`, with --model.
      model: the image model.
      seed: of what a prior samples.

    Raises:
      InputError: a file that cannot be used, or what does not fit the model or each other.
    """
    stride_px = given.grid_stride or model.patch_px
    prior = load_prior(given.prior, given.text_encoder) if given.prior else None
    if prior:
        check_prior(prior.spec, model, given.model, stride_px)
    picture = region = grid = None
    if given.reference:
        picture, region = open_reference(given, model.mpp)
        size = region[2:]
    elif given.grid:
        grid = load_grid(given.grid)
        check_grid(grid, model)
        size = grid_size(grid.shape[:2], model.patch_px, stride_px)
    elif given.label_map:
        size = grid_size(painted_size(given.label_map), model.patch_px, stride_px)
    elif not given.size:
        raise InputError("--prior makes images of any size: give --size=WxH, px, or --label_map")
    if given.size:
        asked = cli.parse_numbers("size", given.size, "x", 2, "width x height, as 512x384")
        if region and asked != tuple(size):
            raise InputError(
                f"--size={given.size} of a reference region of {size[0]}x{size[1]} px; leave it "
                "out, or choose a --region of that size"
            )
        size = asked
    cells = tuple(grid_cells(length, model.patch_px, stride_px) for length in size[::-1])
    cells = cells if grid is None else grid.shape[:2]
    check_size(cells, *size[::-1], model.patch_px, stride_px, model.factor)
    return GridSource(
        model,
        size,
        cells,
        stride_px,
        picture,
        region,
        grid,
        _blend(given, model, cells),
        read_sampled(given, prior, size, cells, seed) if prior else None,
        {
            "reference": given.reference,
            "reference_mpp": given.reference_mpp,
            "region": region,
            # A slide of gigabytes is not read for its hash.
            "reference_bytes": given.reference and demo.resolve(given.reference).stat().st_size,
            "grid": given.grid,
            "grid_file_sha256": given.grid and sha256(given.grid),
            "blend_with": given.blend_with,
            "blend_with_sha256": given.blend_with and sha256(given.blend_with),
            "blend": given.blend,
        },
    )


def open_reference(
    given: flags.FlagValues, mpp: float
) -> tuple[Picture, tuple[int, int, int, int]]:
    """--reference at `mpp` µm per pixel, and --region in pixels of these, or all of it.

    Raises InputError unless the region lies inside.
    """
    reference = open_image(given.reference)
    picture = reference.at(mpp, given.reference_mpp)
    if not given.region:
        return picture, (0, 0, picture.width, picture.height)
    region = cli.parse_numbers("region", given.region, ",", 4, "x,y,width,height in pixels")
    scale = 1.0
    if given.level is not None:
        scale = reference.downsample(given.level) * picture.width / reference.width
    elif given.mpp is not None:
        scale = given.mpp / mpp
    region = tuple(round(number * scale) for number in region)
    picture.check_region(*region)
    return picture, region


def _blend(
    given: flags.FlagValues, model: Model, cells: tuple[int, int]
) -> tuple[np.ndarray, float] | None:
    if not given.blend_with:
        return None
    other = load_grid(given.blend_with)
    check_grid(other, model)
    if other.shape[:2] != cells:
        raise InputError(
            f"--blend_with={given.blend_with} of {other.shape[0]} rows and {other.shape[1]} "
            f"columns, for a grid of {cells[0]} and {cells[1]}; expected one of the same shape"
        )
    return other, given.blend
