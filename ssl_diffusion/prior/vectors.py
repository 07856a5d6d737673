"""Measurements as a condition: a table of numbers, one row for each source or each patch.

A CSV file whose first columns are `source` (as in the records) or `source`, `x` and `y` (pixels of
the patch's corner), and whose others are named after what was measured, such as genes.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ssl_diffusion.data.grids import Grids
from ssl_diffusion.errors import InputError

PLACE = ("source", "x", "y")


class Vectors(NamedTuple):
    """A table of measurements.

    Attributes:
      names: what was measured.
      rows: which row belongs to (source,) or (source, x, y).
      values: [rows, names] as they were measured.
    """

    names: tuple[str, ...]
    rows: dict[tuple[str | int, ...], int]
    values: Float[np.ndarray, "n names"]

    def of(self, grids: Grids) -> Int[np.ndarray, " n"]:
        """The row of each patch, -1 for one that is not in the table."""
        by_patch = any(len(key) == 3 for key in self.rows)
        keys = (
            (grids.sources[source], x, y) if by_patch else (grids.sources[source],)
            for source, x, y in zip(
                grids.source.tolist(), grids.x.tolist(), grids.y.tolist(), strict=True
            )
        )
        return np.array([self.rows.get(key, -1) for key in keys])


def read_vectors(path: str | Path) -> Vectors:
    """Reads the file; InputError, with the line, for what is no such table."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = [(number, line) for number, line in enumerate(csv.reader(stream), 1) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"vectors {path} cannot be read ({error}); expected a CSV file") from None
    header = lines[0][1] if lines else []
    place = PLACE if tuple(header[:3]) == PLACE else PLACE[:1]
    names = tuple(header[len(place) :])
    if tuple(header[: len(place)]) != place or not names or len({*names}) < len(names):
        raise InputError(
            f"vectors {path} begin with the columns {', '.join(header[:4]) or 'none'}; expected "
            "source, or source, x and y, and then a column of its own for each measurement"
        )
    rows: dict[tuple[str | int, ...], int] = {}
    values: list[np.ndarray] = []
    for number, line in lines[1:]:
        try:
            source, *corner = line[: len(place)]
            key = (source, *(int(pixels) for pixels in corner))
            with np.errstate(over="ignore"):
                row = np.array([float(value) for value in line[len(place) :]], np.float32)
        except ValueError as error:
            raise InputError(f"vectors {path}, line {number}: {error}; expected numbers") from None
        if len(row) != len(names) or not np.isfinite(row).all():
            raise InputError(
                f"vectors {path}, line {number}: {len(row)} numbers, {np.isfinite(row).sum()} of "
                f"them finite; expected {len(names)} finite ones"
            )
        if key in rows:
            raise InputError(f"vectors {path}, line {number}: {key} is there already; keep one")
        rows[key] = len(values)
        values.append(row)
    if not rows:
        raise InputError(f"vectors {path} has no rows; expected one for each source or patch")
    return Vectors(names, rows, np.stack(values))


def standardise(
    values: Float[np.ndarray, "*n names"],
    mean: Float[np.ndarray, " names"],
    std: Float[np.ndarray, " names"],
    log1p: bool,
) -> Float[np.ndarray, "*n names"]:
    """(value - mean) / std, of log(1 + value) with `log1p`; float32."""
    scaled = np.log1p(values) if log1p else values
    return ((scaled - mean) / std).astype(np.float32)


def fit_standard(
    values: Float[np.ndarray, "n names"],
    trained: Int[np.ndarray, " k"],
    log1p: bool,
    names: tuple[str, ...],
) -> tuple[Float[np.ndarray, " names"], Float[np.ndarray, " names"]]:
    """(mean, std) of the rows `trained`, for `standardise`.

    Raises InputError for a negative number in any row under log1p.
    """
    if log1p and (values < 0).any():
        worst = names[int(np.argmin(values.min(0)))]
        raise InputError(
            f"measurements of {worst} below 0, and config.conditions.vector.log1p takes their "
            "logarithm; set it to False"
        )
    scaled = values[trained].astype(np.float64)
    scaled = np.log1p(scaled) if log1p else scaled
    mean, std = scaled.mean(0), scaled.std(0)
    varies = std > 1e-6 * np.abs(mean)  # below it is float32's rounding of a constant
    return mean.astype(np.float32), np.where(varies, std, 1.0).astype(np.float32)
