"""Paths of timesteps for a solver: from noise down, both ends included."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from ssl_diffusion.diffusion.schedule import Schedule
from ssl_diffusion.errors import InputError


def trailing_timesteps(total: int, steps: int) -> Int[np.ndarray, "{steps}+1"]:
    """From T - 1 down to the clean end, -1: trailing spacing (Lin et al. 2024, table 2).

    Starting below T - 1 would hand the network pure noise and tell it that some signal is left.
    The published large images are sampled along this path.

    Args:
      total: T, the length of the noise table.
      steps: how many to take, 1 to T.

    Raises:
      InputError: steps outside 1..T.
    """
    _check(total, steps)
    timesteps = np.round(total - np.arange(steps) * (total / steps)).astype(np.int32) - 1
    return np.append(timesteps, np.int32(-1))


def leading_timesteps(total: int, steps: int) -> Int[np.ndarray, "{steps}+1"]:
    """(steps - 1) c + 1, ..., c + 1, 1 and then 0, with c = T // steps: leading spacing.

    Rombach et al. 2022 sample patches along this path (981, 961, ..., 1, 0 for 50 of 1000 steps).
    It ends at the noise level of timestep 0, not clean.

    Args:
      total: T, the length of the noise table.
      steps: how many to take, 1 to T - 1.

    Raises:
      InputError: steps outside 1..T - 1.
    """
    if not 1 <= steps < total:
        raise InputError(f"{steps} sampling steps with leading spacing; expected 1 to {total - 1}")
    timesteps = np.arange(steps)[::-1] * (total // steps) + 1
    return np.append(timesteps, 0).astype(np.int32)


def logsnr_timesteps(schedule: Schedule, steps: int) -> Float[np.ndarray, "{steps}+1"]:
    """From T - 1 to 0 uniform in log(alpha / sigma), then -1 (Lu et al. 2022, arXiv 2206.00927).

    Timesteps are fractional: see `Schedule.at` for the levels between the entries of the table. A
    table that ends in pure noise has no log there: its last entry then takes the place of the one
    before it.

    Args:
      schedule: the noise table.
      steps: how many to take, 1 to T.

    Raises:
      InputError: steps outside 1..T.
    """
    _check(schedule.steps, steps)
    last = schedule.steps - 1
    alpha, sigma = schedule.levels(np.arange(schedule.steps))
    ratio = alpha / sigma
    noisiest = ratio[ratio > 0][-1]
    wanted = np.geomspace(noisiest, ratio[0], steps)[1:]
    # Between two entries both levels are linear, and so is alpha - wanted sigma: where is it 0?
    upper = np.clip(np.searchsorted(-ratio, -wanted), 1, last)
    low, high = (alpha[at] - wanted * sigma[at] for at in (upper - 1, upper))
    between = np.clip(upper - 1 + low / (low - high), 0, last)
    return np.array([last, *between, -1.0])


def _check(total: int, steps: int) -> None:
    if not 1 <= steps <= total:
        raise InputError(f"{steps} sampling steps; expected 1 to {total}, the schedule's length")


SPACINGS: dict[str, Callable[[Schedule, int], np.ndarray]] = {
    "trailing": lambda schedule, steps: trailing_timesteps(schedule.steps, steps),
    "leading": lambda schedule, steps: leading_timesteps(schedule.steps, steps),
    "logsnr": logsnr_timesteps,
}
