"""The training state, its optimizer and one step."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from ssl_diffusion.training.tasks import Task

LossTerms = dict[str, Float[Array, ""]]


@flax.struct.dataclass
class TrainState:
    """Everything that a run is, beside its config and the data iterator. `ema` is float32.

    Its fields also hold shapes or shardings, where a state is only described.
    """

    step: PyTree  # int32 scalar
    params: PyTree
    ema: PyTree
    opt_state: PyTree


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019), linear warm-up, cosine decay to 0, norm clipping."""
    optimizer = config.optimizer
    rate = optax.warmup_cosine_decay_schedule(
        0.0,
        optimizer.learning_rate,
        optimizer.warmup_steps,
        max(config.steps, optimizer.warmup_steps + 1),
    )

    def decays(params: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)  # kernels, not biases or norms

    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip_norm),
        optax.adamw(rate, b2=optimizer.b2, weight_decay=optimizer.weight_decay, mask=decays),
    )


def init_state(task: Task, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step; a pure function, to be jitted with its output shardings."""
    params = task.init(jax.random.key(seed))
    return TrainState(jnp.int32(0), params, params, optimizer.init(params))


def make_train_step(
    task: Task, optimizer: optax.GradientTransformation, seed: int, ema_decay: float
) -> Callable[[TrainState, Any], tuple[TrainState, LossTerms]]:
    """Returns step(state, batch) -> (state, metrics), a pure function.

    All randomness comes from `seed` and the step's number, so a resumed run draws what the
    undisturbed one would have drawn.
    """

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, LossTerms]:
        key = jax.random.fold_in(jax.random.key(seed + 1), state.step)

        def mean_loss(params: PyTree) -> tuple[Float[Array, ""], LossTerms]:
            losses, terms = task.loss(params, batch, key)
            return losses.mean(), {name: term.mean() for name, term in terms.items()}

        (loss, terms), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Early on the average is short, so that it is not dominated by the random start.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
        metrics = {"loss": loss, "gradient_norm": optax.global_norm(grads)} | terms
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return train_step
