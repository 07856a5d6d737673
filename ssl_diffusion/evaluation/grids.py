"""Sets of grids of embeddings as the measures of a prior see them, and intervals over whole grids.

Cells of one grid depend on each other, so that every interval of grids is of a bootstrap over grids
(of clusters: Field & Welsh 2007): a grid is drawn with all its cells or not at all.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.features import directions


@dataclasses.dataclass(frozen=True)
class GridSet:
    """Grids of embeddings (tokens end to end); of cells that are not `present` nothing is known.

    Raises InputError for an embedding that is not finite: a NaN would lose every comparison, and
    the prior would merely look poor.
    """

    cells: Float[np.ndarray, "n rows cols d"]
    present: Bool[np.ndarray, "n rows cols"]

    def __post_init__(self):
        bad = ~np.isfinite(self.cells).all(axis=-1) & self.present
        if bad.any():
            raise InputError(
                f"{bad.sum()} of {self.present.sum()} cells hold NaN or infinity (first in grid "
                f"{np.argwhere(bad)[0][0]}), expected finite embeddings; make them again"
            )

    @classmethod
    def whole(cls, cells: Float[np.ndarray, "n rows cols d"]) -> "GridSet":
        """Grids without holes, as a prior samples them."""
        return cls(cells, np.ones(cells.shape[:3], bool))

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, which: slice | Int[np.ndarray, " k"] | Bool[np.ndarray, " n"]):
        return GridSet(self.cells[which], self.present[which])

    def masked_as(self, other: "GridSet") -> "GridSet":
        """The same grids with the holes of the others, in turn: like is compared with like."""
        holes = other.present[np.arange(len(self)) % len(other)]
        return GridSet(self.cells, self.present & holes)

    def flat(self) -> Float[np.ndarray, "cells d"]:
        """The cells that are present, grid by grid, row by row."""
        return self.cells[self.present]

    def directions(self, centre: Float[np.ndarray, " d"]) -> Float[np.ndarray, "n rows cols d"]:
        """Unit vectors from the centre to each cell, zeros for cells that are not present."""
        found = np.zeros_like(self.cells)
        found[self.present] = directions(self.flat(), centre.astype(self.cells.dtype))
        return found

    def shuffled(self, seed: int = 0) -> "GridSet":
        """All cells in an order of chance, across grids: what is left is how often each occurs."""
        cells = self.cells.copy()
        cells[self.present] = np.random.default_rng(seed).permutation(self.flat())
        return GridSet(cells, self.present)


@dataclasses.dataclass(frozen=True)
class Basis:
    """The leading principal components of real training cells, on which distances are taken.

    A covariance of d dimensions from few cells says little. `deviation` is that of those cells
    along each axis, `variance_share` how much of their variance the components keep.
    """

    mean: Float[np.ndarray, " d"]
    axes: Float[np.ndarray, "k d"]
    deviation: Float[np.ndarray, " k"]
    variance_share: float

    @classmethod
    def of(cls, cells: Float[np.ndarray, "n d"], components: int) -> "Basis":
        """From real training cells. Raises InputError below two cells."""
        if len(cells) < 2:
            raise InputError(f"{len(cells)} real cell(s) have no components, expected 2 or more")
        values = cells.astype(np.float64)
        mean = values.mean(axis=0)
        variance, axes = np.linalg.eigh((values - mean).T @ (values - mean) / (len(values) - 1))
        # An eigenvector's sign is chance: its largest entry is positive.
        axes = axes.T[::-1][:components]
        axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
        kept = np.maximum(variance[::-1][: len(axes)], 0)
        share = float(kept.sum() / max(variance.sum(), 1e-300))
        return cls(mean, axes, np.sqrt(kept), share)

    def project(self, grids: GridSet) -> GridSet:
        """The grids along the axes, from the mean; zeros for cells that are not present."""
        cells = np.zeros((*grids.present.shape, len(self.axes)))
        cells[grids.present] = (grids.flat() - self.mean) @ self.axes.T
        return GridSet(cells, grids.present)
