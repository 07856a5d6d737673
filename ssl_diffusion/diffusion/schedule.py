"""How much signal and how much noise each timestep holds."""

import inspect
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ssl_diffusion.errors import InputError

# A step may destroy at most this part of the variance (Nichol & Dhariwal 2021, section 3.2).
MAX_BETA = 0.999


@flax.struct.dataclass
class Schedule:
    """The noise table: x_t = alpha[t] x_0 + sigma[t] eps.

    Attributes:
      alpha: [T] float32 signal level, falling with the timestep.
      sigma: [T] float32 noise level, rising with the timestep.
    """

    alpha: Any  # arrays, or what JAX puts in their place when it lowers a program
    sigma: Any

    @property
    def steps(self) -> int:
        """T, the number of timesteps in the table."""
        return self.alpha.shape[0]

    def at(self, timestep: Float[Array, " b"]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """(alpha, sigma) at 0-based timesteps; -1, the clean end, gives (1, 0).

        Fractional ones lie between the table's entries, or between the first and the clean end:
        both levels are linear there. That is the flow schedule itself, and it bears pure noise and
        the clean end, where log(alpha / sigma) is infinite. alpha^2 + sigma^2 then falls short of 1
        by 1e-4 at most in the LDM table (4e-4 below its first entry), and since solvers and
        conversions hold for any alpha and sigma, this is merely another schedule.
        """
        low = jnp.clip(jnp.floor(timestep), -1, self.steps - 1)
        part, index = timestep - low, low.astype(jnp.int32) + 1

        def level(clean: float, table: Array) -> Array:
            # The clean end is spelled out because index -1 of the table would be pure noise.
            table = jnp.concatenate([jnp.full(1, clean, table.dtype), table])
            here, there = table[index], table[jnp.minimum(index + 1, self.steps)]
            return here + part * (there - here)

        return level(1.0, self.alpha), level(0.0, self.sigma)

    def levels(
        self, timesteps: np.ndarray
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """`at` on the host, in float64."""
        known = np.arange(-1, self.steps)
        alpha, sigma = (np.asarray(table, np.float64) for table in (self.alpha, self.sigma))
        return (
            np.interp(timesteps, known, np.append(1.0, alpha)),
            np.interp(timesteps, known, np.append(0.0, sigma)),
        )


def _ldm_linear(steps: int, beta_start: float = 0.0015, beta_end: float = 0.0195) -> np.ndarray:
    """Betas linear in the square root (Rombach et al. 2022; the published large-image models)."""
    return np.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=np.float64) ** 2


def _linear(steps: int, beta_start: float = 0.0001, beta_end: float = 0.02) -> np.ndarray:
    """Betas linear in the timestep (Ho et al. 2020, sec. 4)."""
    return np.linspace(beta_start, beta_end, steps, dtype=np.float64)


def _cosine(steps: int, offset: float = 0.008) -> np.ndarray:
    """Nichol & Dhariwal, eq. 17: alpha_bar = f(t) / f(0), f(t) = cos^2(pi/2 (t/T+s) / (1+s))."""
    time = np.arange(steps + 1, dtype=np.float64) / steps
    alpha_bar = np.cos((time + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], MAX_BETA)


def _flow(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """A line from data to noise (Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2022): (1-t, t).

    t = (k + 1) / T at timestep k: the last one is pure noise, and -1, t = 0, clean.
    """
    time = np.arange(1, steps + 1, dtype=np.float64) / steps
    return 1 - time, time


_BETAS = {"ldm_linear": _ldm_linear, "linear": _linear, "cosine": _cosine}  # alpha^2 + sigma^2 = 1
_SCHEDULES = _BETAS | {"flow": _flow}


def make_betas(
    name: str, steps: int = 1000, zero_terminal_snr: bool = False, **kw: float
) -> Float[np.ndarray, " T"]:
    """The part of the variance that each step destroys, float64; arguments as `make_schedule`'s.

    Raises InputError for "flow", too, which does not preserve the variance.
    """
    _check(name, steps, zero_terminal_snr, kw)
    if name not in _BETAS:
        raise InputError(f"schedule {name!r} has no betas; only {', '.join(_BETAS)} have")
    betas = _BETAS[name](steps, **kw)
    return _to_pure_noise(betas) if zero_terminal_snr else betas


def _to_pure_noise(betas: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """Lin et al. 2024 (arXiv 2305.08891), algorithm 1: the last beta becomes exactly 1.

    alpha, the square root of alpha_bar, is shifted until its last entry is 0, then stretched until
    its first is what it was.
    """
    alpha = np.sqrt(np.cumprod(1 - betas))
    alpha_bar = (alpha[0] * (alpha - alpha[-1]) / (alpha[0] - alpha[-1])) ** 2
    return 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])


def with_defaults(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `make_schedule`, those left out included."""
    parameters = inspect.signature(_SCHEDULES[schedule["name"]]).parameters
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    return {"steps": 1000, "zero_terminal_snr": False} | defaults | dict(schedule)


def make_schedule(
    name: str, steps: int = 1000, zero_terminal_snr: bool = False, **kw: float
) -> Schedule:
    """Builds a noise table.

    Args:
      name: "ldm_linear" or "linear" (beta_start, beta_end), "cosine" (offset), or "flow".
      steps: T.
      zero_terminal_snr: whether the table is rescaled to end in pure noise, alpha 0, which is what
        sampling starts from (Lin et al. 2024, arXiv 2305.08891, algorithm 1). Otherwise some signal
        is left, in the LDM table 1.2 % of its amplitude, and with it the mean of the image. "flow"
        ends in pure noise by itself.
      **kw: the parameters named above.

    Raises:
      InputError: unknown name or parameter, fewer than one step (two, to be rescaled), or "flow"
        with zero_terminal_snr.
    """
    _check(name, steps, zero_terminal_snr, kw)
    if name == "flow":
        alpha, sigma = _flow(steps)
    else:
        # float64: in float32, 1 - alpha_bar loses half of its digits at the first timesteps.
        alpha_bar = np.cumprod(1 - make_betas(name, steps, zero_terminal_snr, **kw))
        alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    return Schedule(alpha=jnp.asarray(alpha, jnp.float32), sigma=jnp.asarray(sigma, jnp.float32))


def find_schedule(betas: np.ndarray) -> dict[str, str | int | float]:
    """The arguments of `make_schedule` that give these betas, [T] (to the rounding of float32).

    Raises InputError if no schedule here does.
    """
    fine = betas.ndim == 1 and betas.size and np.issubdtype(betas.dtype, np.floating)
    if not fine or not ((betas > 0) & (betas < 1)).all():
        raise InputError(
            f"betas of shape {list(betas.shape)} and type {betas.dtype}; expected a row of numbers "
            "between 0 and 1"
        )
    betas = np.asarray(betas, np.float64)
    # Ends as people write them: the shortest decimal that float32 cannot tell from what is there.
    ends = {"beta_start": _shortest(betas[0]), "beta_end": _shortest(betas[-1])}
    for found in (
        {"name": "ldm_linear", "steps": len(betas)} | ends,
        {"name": "linear", "steps": len(betas)} | ends,
        {"name": "cosine", "steps": len(betas)},
    ):
        if np.allclose(make_betas(**found), betas, rtol=1e-5, atol=0):
            return found
    raise InputError(
        f"betas from {betas[0]:g} to {betas[-1]:g} in {len(betas)} steps are of none of the "
        f"schedules {', '.join(_BETAS)}; only these can be sampled here"
    )


def _check(name: str, steps: int, zero_terminal_snr: bool, kw: Mapping[str, float]) -> None:
    if name not in _SCHEDULES:
        raise InputError(f"unknown schedule {name!r}; expected one of {', '.join(_SCHEDULES)}")
    known = list(inspect.signature(_SCHEDULES[name]).parameters)[1:]
    if not set(kw) <= set(known):
        expected = ", ".join(known) or "no more than its steps"
        raise InputError(f"schedule {name!r} with {', '.join(kw)}; expected {expected}")
    if steps < 1:
        raise InputError(f"a schedule of {steps} steps; expected at least 1")
    if zero_terminal_snr and name == "flow":
        raise InputError(
            "schedule 'flow' with zero_terminal_snr; it ends in pure noise by itself, leave it out"
        )
    if zero_terminal_snr and steps == 1:
        raise InputError(
            "a schedule of 1 step with zero_terminal_snr, which keeps the first step and makes the "
            "last pure noise; expected at least 2"
        )


def _shortest(value: float) -> float:
    decimals = (float(f"{value:.{digits}g}") for digits in range(1, 17))
    return next(decimal for decimal in decimals if np.float32(decimal) == np.float32(value))
