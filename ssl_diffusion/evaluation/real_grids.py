"""Real grids that a prior is measured against: apart from each other, and every training window."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from ssl_diffusion.data.grids import Grids
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.grids import GridSet
from ssl_diffusion.prior.clusters import Clusters

LEAST_PRESENT = 0.5  # of the cells of a grid that is measured with
MOST_CELLS = 200_000  # of grids apart, about a GB of long embeddings
MOST_WINDOWS = 20_000  # of training windows that copies are looked for in
CHUNK = 256


@dataclasses.dataclass(frozen=True)
class RealGrids:
    """Grids of one split that share no pixel, in an order of chance.

    classes   by kind of condition, "label" and "label_map": the class of each cell as the prior
              numbers them, -1 where it is not known
    """

    grids: GridSet
    classes: Mapping[str, Int[np.ndarray, "n rows cols"]]

    def of_class(self, kind: str, number: int) -> GridSet:
        """The grids most of whose known cells are of a class."""
        return self.grids[main_class(self.classes[kind]) == number]


def main_class(classes: Int[np.ndarray, "n rows cols"]) -> Int[np.ndarray, " n"]:
    """The class that most cells of a grid are of, the lower of two; -1 where none is known."""
    flat = classes.reshape(len(classes), -1)
    counts = (flat[..., None] == np.arange(max(flat.max(initial=0), 0) + 1)).sum(axis=1)
    return np.where(counts.any(axis=1), counts.argmax(axis=1), -1)


def read_real(
    grids: Grids,
    rows: int,
    cols: int,
    *,
    kinds: Sequence[str],
    clusters: Clusters | None,
    seed: int = 0,
) -> RealGrids:
    """Grids of `rows` x `cols` cells that share no pixel; at least half of their cells present.

    Args:
      grids: of one split, with a window of max(rows, cols).
      rows, cols: of the grids.
      kinds: of the classes that are wanted: "label", "label_map".
      clusters: that the classes of "label_map" are; None where they are labels too.
      seed: of the order.

    Raises:
      InputError: fewer than two such grids.
    """
    chosen = apart(grids, rows, cols)
    if len(chosen) < 2:
        raise InputError(
            f"{grids.name}: {len(chosen)} grid(s) of {rows} x {cols} cells that share no pixel and "
            "have half of their cells; at least 2 are needed: take smaller --rows and --cols"
        )
    chosen = np.random.default_rng(seed).permutation(chosen)
    chosen = chosen[: max(2, MOST_CELLS // (rows * cols))]
    patches = np.stack([grids.patches(int(index))[:rows, :cols] for index in chosen])
    present = patches >= 0
    flat = grids.embedding.reshape(len(grids.embedding), -1)
    cells = np.where(present[..., None], flat[patches], 0).astype(np.float32)
    found = {}
    for kind in kinds:
        numbers = grids.facts["label"][patches] if "label" in grids.facts else None
        if kind == "label_map" and clusters:
            numbers = clusters.of(cells[..., None, :], numbers)
        elif numbers is None:
            numbers = np.full(present.shape, -1)
        found[kind] = np.where(present, numbers, -1)
    return RealGrids(GridSet(cells, present), found)


def apart(grids: Grids, rows: int, cols: int) -> Int[np.ndarray, " k"]:
    """Grids that share no pixel and have half of their cells, the fullest first.

    Windows of one size overlap if and only if their corners are less than a side apart both ways.
    Of each square of that size there is one corner at most, and so nine squares to look into.
    """
    height, width = rows * grids.spacing_px, cols * grids.spacing_px
    filled = np.array(
        [(grids.patches(index)[:rows, :cols] >= 0).sum() for index in range(len(grids))]
    )
    taken: dict[tuple[int, int, int], tuple[int, int]] = {}
    chosen = []
    for index in np.argsort(-filled, kind="stable").tolist():
        if filled[index] < LEAST_PRESENT * rows * cols:
            break
        patch = grids.order[index]
        source, x, y = (int(values[patch]) for values in (grids.source, grids.x, grids.y))
        near = [
            taken.get((source, x // width + across, y // height + down), (-math.inf, -math.inf))
            for across in (-1, 0, 1)
            for down in (-1, 0, 1)
        ]
        if not any(abs(x - left) < width and abs(y - top) < height for left, top in near):
            taken[source, x // width, y // height] = (x, y)
            chosen.append(index)
    return np.array(chosen, int)


def window_count(grids: Grids) -> int:
    """How many windows `windows` goes through."""
    return min(len(grids), MOST_WINDOWS)


def windows(grids: Grids, rows: int, cols: int) -> Iterator[GridSet]:
    """Windows at every patch of a split, up to 20,000 spread over it, in chunks."""
    picks = np.linspace(0, len(grids) - 1, window_count(grids)).astype(int)
    for start in range(0, len(picks), CHUNK):
        chunk = [grids[int(index)] for index in picks[start : start + CHUNK]]
        cells, present = (
            np.stack([one[name][:rows, :cols] for one in chunk])
            for name in ("embedding", "present")
        )
        yield GridSet(cells.reshape(*present.shape, -1).astype(np.float32), present)
