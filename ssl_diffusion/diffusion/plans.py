"""Solvers as tables of numbers: what each evaluation of the network adds to the next state.

All are computed on the host, in float64, from the levels alpha, sigma of a path and from its steps
h in log(alpha / sigma). A step that leaves pure noise (alpha 0) or ends clean (sigma 0) has an
infinite h, which the formulas here are written to bear.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ssl_diffusion.diffusion.schedule import Schedule
from ssl_diffusion.errors import InputError

# Where a term stands in a row of weights: x first, then what is remembered, then these.
X, X0, EPS, NOISE = 0, -3, -2, -1

# Adams-Bashforth weights of the newest eps and of older ones, by how many there are.
ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


# Where sigma / alpha is larger than NOISY, eps is nearly all of x and tells little of x0, and so it
# is over steps from above 1 that are longer than LONG in log(alpha / sigma): what PLMS and Heun
# lead on along eps there is amplified without bound. The LDM table ends near 80, the cosine one
# near 20,000.
NOISY, LONG = 1000.0, 1.5


class Plan(NamedTuple):
    """A solver on one path, as numbers.

    Evaluation k calls the network at timesteps[k]; the next state is weights[k] times the terms
    (x, *memory, x0, eps, noise). Memory starts as zeros and is never read before it is written.

    Attributes:
      timesteps: of the n evaluations, may be fractional.
      weights: rows are the next x and the next memory, 1 + memory of them; terms = rows + 3.
    """

    timesteps: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, "n rows terms"]

    @property
    def memory(self) -> int:
        """How many arrays of x's shape are kept between evaluations."""
        return self.weights.shape[1] - 1

    @property
    def stochastic(self) -> bool:
        """Whether any step adds noise."""
        return bool(self.weights[..., NOISE].any())


class Path(NamedTuple):
    """The levels along a path of n steps; all of n + 1 numbers."""

    timesteps: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray

    @property
    def h(self) -> Float[np.ndarray, " n"]:
        """What each step gains in log(alpha / sigma)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            signal, noise = (np.log(to[1:] / to[:-1]) for to in (self.alpha, self.sigma))
            return signal - noise

    @property
    def coarse(self) -> Bool[np.ndarray, " n"]:
        """Which steps are not to be led on along eps, see NOISY and LONG."""
        sigma, alpha = self.sigma[:-1], self.alpha[:-1]
        return (sigma > NOISY * alpha) | (sigma > alpha) & (self.h > LONG)

    @property
    def along_eps(self) -> tuple[np.ndarray, np.ndarray]:
        """(A, B) of x' = A x + B eps: exact if eps is constant. Infinite from alpha 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = self.alpha[1:] / self.alpha[:-1]
            return scale, scale * self.sigma[:-1] * np.expm1(-self.h)

    @property
    def along_x0(self) -> tuple[np.ndarray, np.ndarray]:
        """(A, B) of x' = A x + B x0: exact if x0 is constant."""
        return self.sigma[1:] / self.sigma[:-1], -self.alpha[1:] * np.expm1(-self.h)


def make_plan(
    solver: str, schedule: Schedule, timesteps: np.ndarray, **options: float | np.ndarray
) -> Plan:
    """A solver on a path.

    Args:
      solver: one of SOLVERS; the function of that name tells what it does and its options.
      schedule: the noise table.
      timesteps: the path with both its ends, e.g. `trailing_timesteps(schedule.steps, 50)`.
      **options: the solver's own: eta of "ddim".

    Raises:
      InputError: an unknown solver; a path that does not descend within the schedule, or along
        which the noise does not fall; what the solver itself refuses.
    """
    check_solver(solver)
    # Rounded as the network will be told them, so that its levels are those of the plan.
    path = np.asarray(timesteps, np.float32).astype(np.float64)
    inside = path.ndim == 1 and len(path) > 1 and path[0] <= schedule.steps - 1 and path[-1] >= -1
    if not inside or not (np.diff(path) < 0).all():
        raise InputError(
            f"timesteps {[float(f'{t:g}') for t in path.ravel()]}; expected two or more that "
            f"descend from at most {schedule.steps - 1} to at least -1, the clean end"
        )
    levels = Path(path, *schedule.levels(path))
    if not (levels.h > 0).all():
        raise InputError(
            "a path along which the noise does not fall at every step; take fewer steps or another "
            "schedule"
        )
    return SOLVERS[solver](levels, **options)


def check_solver(solver: str) -> None:
    """Raises InputError for an unknown solver."""
    if solver not in SOLVERS:
        raise InputError(f"unknown solver {solver!r}; expected one of {', '.join(SOLVERS)}")


def ddim(path: Path, eta: float | Float[np.ndarray, " steps"] = 0.0) -> Plan:
    """DDIM (Song et al. 2021, eq. 12, its sigma from eq. 16), for any alpha and sigma.

    x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s noise with s = eta sigma' sqrt(1 - exp(-2 h)).

    Args:
      path: the path.
      eta: 0 (deterministic) to 1 (the noise of DDPM), for all steps or one for each.

    Raises:
      InputError: eta outside 0..1, or not of the path's length.
    """
    steps = len(path.h)
    etas = np.asarray(eta, np.float64)
    if etas.shape not in ((), (steps,)) or not ((etas >= 0) & (etas <= 1)).all():
        raise InputError(
            f"eta {eta}; expected 0 (deterministic) to 1 (the noise of DDPM), for all or each of "
            f"{steps} steps"
        )
    weights = _weights(steps, memory=0)
    weights[:, 0, X0] = path.alpha[1:]
    # sigma'^2 - s^2, written out so that nothing cancels.
    kept = (1 - etas) * (1 + etas) + etas**2 * np.exp(-2 * path.h)
    weights[:, 0, EPS] = path.sigma[1:] * np.sqrt(kept)
    weights[:, 0, NOISE] = path.sigma[1:] * etas * np.sqrt(-np.expm1(-2 * path.h))
    return Plan(path.timesteps[:-1], weights)


def ancestral(path: Path) -> Plan:
    """DDIM with eta 1; over all T timesteps it is DDPM (Ho et al. 2020, alg. 2, beta~ of eq. 7)."""
    return ddim(path, eta=1.0)


def plms(path: Path) -> Plan:
    """PLMS, pseudo linear multistep (Liu et al. 2022, arXiv 2202.09778, section 3).

    Each step is one of DDIM along an eps combined from the last four, as many as there are. The
    first takes eps at both its ends (improved Euler), so n steps take n + 1 evaluations; the paper
    starts with three Runge-Kutta steps instead, the published LDM sampler as here. Steps that leave
    (nearly) pure noise, or are long, come before it and are DDIM's: see NOISY and LONG. So are all
    where fewer than two are left.
    """
    steps = len(path.h)
    noisy = int(np.argmin([*path.coarse[:-1], False]))  # the first of a run of finer steps
    if steps - noisy < 2:  # the first would take eps at the clean end, for which none was trained
        return ddim(path)
    scale, slope = path.along_eps
    weights = _weights(steps + 1, memory=3)
    weights[:noisy, 0, X0], weights[:noisy, 0, EPS] = path.alpha[1:][:noisy], path.sigma[1:][:noisy]
    # Memory 1 to 3: the last eps. In the first step 2 is its result but for the second eps.
    first, second = weights[noisy], weights[noisy + 1]
    first[0, [X, EPS]] = scale[noisy], slope[noisy]
    first[1, EPS] = 1
    first[2, [X, EPS]] = scale[noisy], slope[noisy] / 2
    second[0, [2, EPS]] = 1, slope[noisy] / 2
    second[1, 1] = 1
    for step in range(noisy + 1, steps):
        now, *before = ADAMS_BASHFORTH[min(step - noisy + 1, 4)]
        rows = weights[step + 1]
        rows[0, [X, EPS]] = scale[step], slope[step] * now
        rows[0, 1 : 1 + len(before)] = slope[step] * np.array(before)
        rows[[1, 2, 3], [EPS, 1, 2]] = 1
    return Plan(np.insert(path.timesteps[:-1], noisy + 1, path.timesteps[noisy + 1]), weights)


def dpmpp(path: Path) -> Plan:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, alg. 2).

    x0 is led on from the last two. First order, as DDIM, in the first step and onto the clean end.
    """
    decay, gain = path.along_x0
    back = _extrapolation(path)
    weights = _weights(len(decay), memory=1)
    weights[:, 0, X] = decay
    weights[:, 0, X0] = gain * (1 + back)
    weights[:, 0, 1] = -gain * back
    weights[:, 1, X0] = 1
    return Plan(path.timesteps[:-1], weights)


def unipc(path: Path) -> Plan:
    """UniPC of order 2 (Zhao et al. 2023, arXiv 2302.04867), for x0, with B_2(h).

    UniP-2 predicts (it is the step of DPM-Solver++(2M)); the x0 found there corrects the step
    before (UniC-2) and serves the next one, so n steps take n evaluations. UniP-1 and UniC-1 in the
    first step; onto the clean end UniP-1, and the last step is not corrected.
    """
    decay, gain = path.along_x0
    back = _extrapolation(path)
    older, newer = _corrector(path)
    kept = np.append(0.0, newer[:-1])  # what the x0 of an evaluation adds to the step before it
    weights = _weights(len(decay), memory=2)
    # Memory 1: the corrected x but for the x0 to come. 2: the last x0.
    source = np.where(np.arange(len(decay)) == 0, X, 1)
    for step, at in enumerate(source):
        weights[step, [0, 1], at] = decay[step]
    weights[:, 0, X0] = decay * kept + gain * (1 + back)
    weights[:, 0, 2] = -gain * back
    weights[:, 1, X0] = decay * kept + gain - older - newer
    weights[:, 1, 2] = older
    weights[:, 2, X0] = 1
    return Plan(path.timesteps[:-1], weights)


def heun(path: Path) -> Plan:
    """Heun's method in sigma / alpha (Karras et al. 2022, arXiv 2206.00364, alg. 1, no churn).

    Two evaluations a step. Euler's method, one evaluation, onto the clean end, from (nearly) pure
    noise and over long steps: see NOISY and LONG.
    """
    scale, slope = path.along_eps
    timesteps, weights = [], []
    for step, (here, there) in enumerate(zip(path.timesteps[:-1], path.timesteps[1:], strict=True)):
        first, second = _weights(2, memory=1)
        first[0, [X0, EPS]] = path.alpha[step + 1], path.sigma[step + 1]
        timesteps.append(here)
        weights.append(first)
        if not path.coarse[step] and path.sigma[step + 1] > 0:
            first[1, [X, EPS]] = scale[step], slope[step] / 2
            second[0, [1, EPS]] = 1, slope[step] / 2
            timesteps.append(there)
            weights.append(second)
    return Plan(np.array(timesteps), np.stack(weights))


SOLVERS: dict[str, Callable[..., Plan]] = {
    "ddim": ddim,
    "ancestral": ancestral,
    "plms": plms,
    "dpmpp": dpmpp,
    "unipc": unipc,
    "heun": heun,
}


def _weights(evaluations: int, memory: int) -> Float[np.ndarray, "n rows terms"]:
    return np.zeros((evaluations, 1 + memory, 4 + memory))


def _extrapolation(path: Path) -> Float[np.ndarray, " n"]:
    """1 / (2 r) of Lu et al.: how far x0 is led on from the one before; 0 is first order."""
    back = np.zeros_like(path.h)
    second = np.arange(len(back)) > 0
    second &= path.sigma[1:] > 0
    at = np.flatnonzero(second)
    back[at] = path.h[at] / (2 * path.h[at - 1])
    return back


def _corrector(path: Path) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """UniC-2: how much of the step's (older, newer) x0, each less the present one, is added.

    The present x0 is at the step's start, the newer at its end. Adding alpha' times the integral
    over tau in 0..1 of h exp(-h (1 - tau)) x0(tau) is exact; here x0(tau) is the parabola through
    the three, or in the first step alpha' (1 - exp(-h)) / 2 of the newer (UniC-1). 0 in the last.
    """
    older, newer = np.zeros_like(path.h), np.zeros_like(path.h)
    for step in range(len(path.h) - 1):
        h, alpha = path.h[step], path.alpha[step + 1]
        total = -np.expm1(-h)
        if step == 0:
            newer[step] = alpha * total / 2
            continue
        linear = 1 - total / h  # the integral with tau in x0's place, then with tau^2
        square = 1 - 2 * linear / h
        r = -path.h[step - 1] / h  # where the older one stands, in tau
        both = (linear - square) / (1 - r)
        older[step] = alpha * both / r
        newer[step] = alpha * (linear - both)
    return older, newer
