"""Which timesteps are trained: from what distribution each example's timestep is drawn."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ssl_diffusion.diffusion.schedule import Schedule
from ssl_diffusion.errors import InputError

TimestepSampler = Callable[[Key[Array, ""]], Float[Array, ""]]
"""sampler(key) -> a whole number 0..T-1, float32. `jax.vmap` it over one key per example."""


@flax.struct.dataclass
class Uniform:
    """Every timestep of the table alike (Ho et al. 2020, alg. 1)."""

    steps: int = flax.struct.field(pytree_node=False)

    def __call__(self, key: Key[Array, ""]) -> Float[Array, ""]:
        return jax.random.randint(key, (), 0, self.steps).astype(jnp.float32)


@flax.struct.dataclass
class LogitNormal:
    """floor(T t) with logit(t) normal (Esser et al. 2024, arXiv 2403.03206, sec. 3.1).

    A mean above 0 leans to noise, where t is 1. The paper's best is mean 0, std 1.
    """

    steps: int = flax.struct.field(pytree_node=False)
    mean: float = flax.struct.field(pytree_node=False)
    std: float = flax.struct.field(pytree_node=False)

    def __call__(self, key: Key[Array, ""]) -> Float[Array, ""]:
        time = jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key))
        # In float32 a large logit is a time of exactly 1.
        return jnp.minimum(jnp.floor(self.steps * time), self.steps - 1)


@flax.struct.dataclass
class Laplace:
    """The timestep whose log(alpha^2 / sigma^2) is nearest to a Laplace-distributed one.

    Hang et al. 2024, arXiv 2407.03297, sec. 2; their best is mean 0, scale 0.5. A mean above 0
    leans to clean. What lies beyond the table is its end.

    Attributes:
      edges: [T - 1] log(alpha^2 / sigma^2) half-way between neighbouring timesteps, falling. Those
        are the levels of `Schedule.at`, so that the edge before pure noise is finite.
      mean: of log(alpha^2 / sigma^2).
      scale: of the same, the mean distance from its mean.
    """

    edges: Any  # an array, or what JAX puts in its place when it lowers a program
    mean: float = flax.struct.field(pytree_node=False)
    scale: float = flax.struct.field(pytree_node=False)

    def __call__(self, key: Key[Array, ""]) -> Float[Array, ""]:
        logsnr = self.mean + self.scale * jax.random.laplace(key)
        return jnp.sum(logsnr < self.edges).astype(jnp.float32)


def _uniform(schedule: Schedule) -> Uniform:
    return Uniform(schedule.steps)


def _logit_normal(schedule: Schedule, mean: float = 0.0, std: float = 1.0) -> LogitNormal:
    return LogitNormal(schedule.steps, mean, std)


def _laplace(schedule: Schedule, mean: float = 0.0, scale: float = 0.5) -> Laplace:
    alpha, sigma = schedule.levels(np.arange(schedule.steps - 1) + 0.5)
    return Laplace(jnp.asarray(2 * np.log(alpha / sigma), jnp.float32), mean, scale)


_SAMPLERS = {"uniform": _uniform, "logit_normal": _logit_normal, "laplace": _laplace}


def make_timestep_sampler(settings: Mapping[str, Any], schedule: Schedule) -> TimestepSampler:
    """Builds a sampler, a pytree: jitted functions may take it as an argument.

    Args:
      settings: its "name" and parameters, those left out being the paper's best: "uniform",
        "logit_normal" (mean, std), or "laplace" (mean, scale), as the classes above say.
      schedule: the noise table.

    Raises:
      InputError: unknown name or parameter, one that is no finite number, or a std or scale that is
        not above 0.
    """
    name = settings.get("name")
    if name not in _SAMPLERS:
        raise InputError(f"timesteps drawn {name!r}; expected one of {', '.join(_SAMPLERS)}")
    known = list(inspect.signature(_SAMPLERS[name]).parameters)[1:]
    given = {parameter: value for parameter, value in settings.items() if parameter != "name"}
    if not given.keys() <= set(known):
        expected = ", ".join(known) or "no more than that"
        raise InputError(f"timesteps drawn {name!r} with {', '.join(given)}; expected {expected}")
    for parameter, value in given.items():
        number = isinstance(value, int | float) and math.isfinite(value)
        if not number or (parameter != "mean" and value <= 0):
            above = "" if parameter == "mean" else " above 0"
            raise InputError(
                f"timesteps drawn {name!r} with {parameter} {value!r}; expected a number{above}"
            )
    return _SAMPLERS[name](
        schedule, **{parameter: float(value) for parameter, value in given.items()}
    )
