"""AdamW and its learning rate."""

import math
from typing import Any

import jax
import optax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ssl_diffusion.errors import InputError

DECAYS = ("cosine", "constant")


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Steps taken -> rate of the next: a linear warm-up, then a cosine towards 0, or no decay.

    The warm-up's last step is the first at the full rate; the cosine would reach 0 one step after
    the last, for a step at rate 0 learns nothing. Raises InputError for numbers that cannot train.
    """
    optimizer = config.optimizer
    peak, warmup = optimizer.learning_rate, optimizer.warmup_steps
    _check(optimizer)
    match optimizer.decay:
        case "cosine":
            schedule = optax.warmup_cosine_decay_schedule(
                0.0, peak, max(1, warmup), max(config.steps, warmup, 1) + 1
            )
        case "constant":
            schedule = optax.linear_schedule(0.0, peak, max(1, warmup))
        case _:
            raise InputError(
                f"config.optimizer.decay is {optimizer.decay!r}, expected one of "
                f"{', '.join(DECAYS)}"
            )
    return lambda taken: schedule(taken + 1)


def _check(optimizer: ConfigDict) -> None:
    above_0, below_1 = "a number above 0", "a number from 0 up to below 1"
    expected = {
        "learning_rate": (above_0, lambda value: value > 0),
        "clip_norm": (above_0, lambda value: value > 0),
        "warmup_steps": ("a number of steps, 0 or more", lambda value: value >= 0),
        "weight_decay": ("0 or more", lambda value: value >= 0),
        "b2": (below_1, lambda value: 0 <= value < 1),
    }
    for name, (words, allowed) in expected.items():
        value = optimizer[name]
        if not (math.isfinite(value) and allowed(value)):
            raise InputError(f"config.optimizer.{name} is {value}, expected {words}")


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) after clipping by the global norm."""

    def decays(params: PyTree) -> PyTree:
        # Not biases, scales of norms, and learned tokens, positions and code vectors.
        return jax.tree_util.tree_map_with_path(_is_kernel, params)

    optimizer = config.optimizer
    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip_norm),
        optax.adamw(
            learning_rate(config),
            b2=optimizer.b2,
            weight_decay=optimizer.weight_decay,
            mask=decays,
        ),
    )


def _is_kernel(path: tuple[Any, ...], leaf: Any) -> bool:
    return path[-1].key == "kernel"
