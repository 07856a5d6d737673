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
    """The noise table: x_t = alpha[t] x_0 + sigma[t] eps, with alpha^2 + sigma^2 = 1.

    Attributes:
      alpha: [T] float32 signal level, falling with the timestep.
      sigma: [T] float32 noise level, rising with the timestep.
    """

    alpha: Array
    sigma: Array

    @property
    def steps(self) -> int:
        """T, the number of timesteps in the table."""
        return self.alpha.shape[0]

    def at(self, timestep: Float[Array, " b"]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """(alpha, sigma) at whole, 0-based timesteps; -1, the clean end, gives (1, 0).

        The clean end is spelled out because index -1 of the table would be pure noise.
        """
        index = jnp.round(timestep).astype(jnp.int32)
        clean = index < 0
        index = jnp.clip(index, 0, self.steps - 1)
        return jnp.where(clean, 1.0, self.alpha[index]), jnp.where(clean, 0.0, self.sigma[index])


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


_BETAS = {"ldm_linear": _ldm_linear, "linear": _linear, "cosine": _cosine}


def make_betas(name: str, steps: int = 1000, **kw: float) -> Float[np.ndarray, " T"]:
    """The part of the variance that each step destroys, float64; arguments as `make_schedule`'s."""
    if name not in _BETAS:
        raise InputError(f"unknown schedule {name!r}; expected one of {', '.join(_BETAS)}")
    known = list(inspect.signature(_BETAS[name]).parameters)[1:]
    if not set(kw) <= set(known):
        raise InputError(f"schedule {name!r} with {', '.join(kw)}; expected {', '.join(known)}")
    if steps < 1:
        raise InputError(f"a schedule of {steps} steps; expected at least 1")
    return _BETAS[name](steps, **kw)


def with_defaults(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `make_betas`, those left out included."""
    parameters = inspect.signature(_BETAS[schedule["name"]]).parameters
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    return {"steps": 1000} | defaults | dict(schedule)


def make_schedule(name: str, steps: int = 1000, **kw: float) -> Schedule:
    """Builds a noise table.

    Args:
      name: "ldm_linear" or "linear" (beta_start, beta_end), or "cosine" (offset).
      steps: T.
      **kw: the parameters named above.

    Raises:
      InputError: unknown name or parameter, or fewer than one step.
    """
    # float64: in float32, 1 - alpha_bar loses half of its digits at the first timesteps.
    alpha_bar = np.cumprod(1 - make_betas(name, steps, **kw))
    return Schedule(
        alpha=jnp.asarray(np.sqrt(alpha_bar), jnp.float32),
        sigma=jnp.asarray(np.sqrt(1 - alpha_bar), jnp.float32),
    )


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


def _shortest(value: float) -> float:
    decimals = (float(f"{value:.{digits}g}") for digits in range(1, 17))
    return next(decimal for decimal in decimals if np.float32(decimal) == np.float32(value))
