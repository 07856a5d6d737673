"""Numbers with their 95 % intervals: bootstraps over images or over whole grids (Efron 1979)."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

DRAWS = 1000
COVERED = 0.95  # by an interval, of bootstrap draws


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval, None where a single one tells of none."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, value: float, draws: Float[np.ndarray, " draws"]) -> "Estimate":
        """The percentile interval of bootstrap draws; draws that are NaN (no such cell) are not."""
        draws = draws[np.isfinite(draws)]
        if not len(draws) or not np.isfinite(value) or np.ptp(draws) == 0:
            return cls(float(value), None, None)
        tail = (1 - COVERED) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
        return cls(float(value), float(low), float(high))

    @classmethod
    def around(cls, value: float, draws: Float[np.ndarray, " draws"]) -> "Estimate":
        """A distance, at least 0, with two standard errors of bootstrap draws on either side.

        A resample holds items twice, which raises every distance: only the draws' spread is used.
        """
        if len(draws) < 2 or (error := float(np.std(draws, ddof=1))) == 0:
            return cls(float(value), None, None)
        return cls(float(value), float(max(value - 1.96 * error, 0)), float(value + 1.96 * error))


def resamples(count: int, draws: int = DRAWS, seed: int = 0) -> Int[np.ndarray, "draws count"]:
    """How often each of `count` items (images, grids) is in each bootstrap draw."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
