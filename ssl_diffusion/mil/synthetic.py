"""Synthetic slides: a slide's cells cut into regions, each made anew from its embeddings."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt

from ssl_diffusion.augmentation.variations import part_way
from ssl_diffusion.mil.bags import Bag

MARK = "#synthetic"  # between a slide's name and the number of its copy


@dataclasses.dataclass(frozen=True)
class Cells:
    """A slide's patches that lie side by side.

    bag    the slide
    left   of column 0, pixels
    top    of row 0, pixels
    index  which patch of the bag each cell is, -1 where there is none (background)
    """

    bag: Bag
    left: int
    top: int
    index: Int[np.ndarray, "rows cols"]

    @property
    def patches(self) -> Int[np.ndarray, " n"]:
        """Which patches of the bag have a cell, in its order."""
        return np.sort(self.index[self.index >= 0])


@dataclasses.dataclass(frozen=True)
class Region:
    """A square of whole cells of a slide; beyond the slide's edge it has none present.

    row, col   of its first cell
    index      which patch of the bag each cell is, -1 where there is none
    """

    cells: Cells
    row: int
    col: int
    index: Int[np.ndarray, "side side"]

    @property
    def present(self) -> Bool[np.ndarray, "side side"]:
        """Which cells are tissue."""
        return self.index >= 0

    def grid(self) -> Float[np.ndarray, "side side d"]:
        """The embedding of each cell; of an absent one that of the nearest present cell."""
        rows, cols = distance_transform_edt(
            ~self.present, return_distances=False, return_indices=True
        )
        return self.cells.bag.features[self.index[rows, cols]]


def cells_of(bag: Bag, patch_px: int) -> Cells:
    """The cells of a slide.

    Where patches overlap there are several such lattices; it is the one that most patches lie on.
    """
    phases = list(zip((bag.x % patch_px).tolist(), (bag.y % patch_px).tolist(), strict=True))
    best = min(Counter(phases).items(), key=lambda item: (-item[1], item[0]))[0]
    chosen = np.array([phase == best for phase in phases]).nonzero()[0]
    left, top = int(bag.x[chosen].min()), int(bag.y[chosen].min())
    cols, rows = (bag.x[chosen] - left) // patch_px, (bag.y[chosen] - top) // patch_px
    index = np.full((int(rows.max()) + 1, int(cols.max()) + 1), -1)
    index[rows, cols] = chosen
    return Cells(bag, left, top, index)


def regions_of(cells: Cells, side: int) -> list[Region]:
    """Squares of `side` x `side` cells that cover a slide, row by row, without the empty ones."""
    rows, cols = cells.index.shape
    padded = np.pad(cells.index, [(0, -rows % side), (0, -cols % side)], constant_values=-1)
    regions = [
        Region(cells, row, col, padded[row : row + side, col : col + side])
        for row in range(0, rows, side)
        for col in range(0, cols, side)
    ]
    return [region for region in regions if region.present.any()]


@dataclasses.dataclass(frozen=True)
class Copy:
    """A region made anew: what of, and by which seed.

    name      of the synthetic slide
    region    whose cells it has
    partner   a region of a slide of the same class whose grid it goes towards; None for its own
    seed      of its noise
    """

    name: str
    region: Region
    partner: Region | None
    seed: int

    def grid(self, amount: float, tokens: int) -> Float[np.ndarray, "side side {tokens} dim"]:
        """The region's grid, `amount` of the way towards the partner's: cell by cell and token."""
        own = self.region.grid()
        shape = *own.shape[:2], tokens, own.shape[2] // tokens
        if self.partner is None:
            return own.reshape(shape)
        ends = (grid.reshape(-1, *shape[2:]) for grid in (own, self.partner.grid()))
        part = np.full((own.shape[0] * own.shape[1], tokens), amount, np.float32)
        return part_way(*ends, part).reshape(shape)


def copies_of(
    regions: Sequence[Region], per_slide: int, interpolate: bool, seed: int
) -> list[Copy]:
    """All regions to be made, copy by copy of each slide.

    Partners are drawn among all other regions of the same class; a region that is the only one of
    its class has none. The seeds are consecutive.
    """
    rng = np.random.default_rng(seed)
    by_slide: dict[str, list[Region]] = {}
    by_class: dict[int, list[Region]] = {}
    for region in regions:
        by_slide.setdefault(region.cells.bag.name, []).append(region)
        by_class.setdefault(region.cells.bag.label, []).append(region)
    copies: list[Copy] = []
    for name, own in by_slide.items():
        for number in range(per_slide):
            for region in own:
                others = [one for one in by_class[region.cells.bag.label] if one is not region]
                partner = None
                if interpolate and others:
                    partner = others[int(rng.integers(len(others)))]
                copies.append(Copy(f"{name}{MARK}{number}", region, partner, seed + len(copies)))
    return copies


def parents_of(copies: Sequence[Copy]) -> Mapping[str, list[str]]:
    """By synthetic slide, the real ones that its embeddings come from."""
    found: dict[str, set[str]] = {}
    for copy in copies:
        of = {one.cells.bag.name for one in (copy.region, copy.partner) if one}
        found.setdefault(copy.name, set()).update(of)
    return {name: sorted(parents) for name, parents in found.items()}
