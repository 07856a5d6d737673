"""AdamW and its learning rate."""

import jax
import optax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ssl_diffusion.errors import InputError

DECAYS = ("cosine", "constant")


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Step -> rate: a linear warm-up, then a cosine down to 0 at `config.steps`, or no decay.

    Raises InputError for another `optimizer.decay`.
    """
    optimizer = config.optimizer
    peak, warmup = optimizer.learning_rate, optimizer.warmup_steps
    match optimizer.decay:
        case "cosine":
            return optax.warmup_cosine_decay_schedule(
                0.0, peak, warmup, max(config.steps, warmup + 1)
            )
        case "constant":
            return optax.schedules.warmup_constant_schedule(0.0, peak, warmup)
    raise InputError(
        f"config.optimizer.decay is {optimizer.decay!r}, expected one of {', '.join(DECAYS)}"
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) after clipping by the global norm."""

    def decays(params: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)  # kernels, not biases or norms

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
