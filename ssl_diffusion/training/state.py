"""The training state and one step of it."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from ssl_diffusion.training import averages
from ssl_diffusion.training.optimizer import learning_rate, make_optimizer
from ssl_diffusion.training.sharding import by_rows, replicated, state_shardings
from ssl_diffusion.training.tasks import Batch, Task, Terms

NEVER = 2**31 - 1  # the step of a non-finite loss while there was none

Totals = dict[str, Array]
"""Sums since the last log: name -> float32 [2], (sum, count), and "bad_step" int32 [], the first
step whose loss was not finite or NEVER. They stay on the device until they are read."""


@flax.struct.dataclass
class TrainState:
    """Everything that a run is, beside its config and its place in the data. All float32.

    Its fields also hold shapes or shardings, where a state is only described.
    """

    step: PyTree  # int32 scalar: optimizer steps taken
    params: PyTree
    averages: PyTree  # a tuple of trees as `params`, one for each of config.ema.sigma_rel
    opt_state: PyTree
    carried: PyTree = flax.struct.field(default_factory=dict)  # as the task has it


def init_state(task: Task, config: ConfigDict) -> TrainState:
    """The state before the first step; a pure function, to be jitted with its output shardings."""
    return start_from(task.init(jax.random.key(config.seed)), task, config)


def start_from(params: PyTree, task: Task, config: ConfigDict) -> TrainState:
    """The state before the first step, from these parameters."""
    kept = tuple(params for _ in config.ema.sigma_rel)
    moments = make_optimizer(config).init(params)
    return TrainState(jnp.int32(0), params, kept, moments, task.carried(params))


def no_totals(task: Task, config: ConfigDict) -> Totals:
    """Totals of nothing: shapes follow from the task's loss."""
    batch = task.batch(config.batch_size)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), config.batch_size))
    params = jax.eval_shape(task.init, jax.random.key(0))
    frozen = task.frozen | jax.eval_shape(task.carried, params)
    _, terms = jax.eval_shape(task.loss, params, frozen, batch, keys)
    names = ("loss", "gradient_norm", "learning_rate", *_figures(terms))
    return {name: jnp.zeros(2) for name in names} | {"bad_step": jnp.int32(NEVER)}


def example_keys(seed: int, first: Array | int, count: int) -> Key[Array, " {count}"]:
    """The random key of each example, by its number in the run, `first` and following.

    So neither the number of devices nor accumulation changes what an example draws (as long as the
    devices of a process are neighbours in the mesh: its rows are then too), and a resumed run draws
    what the undisturbed one would have drawn.
    """
    numbers = jnp.uint32(first) + jnp.arange(count, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed + 1), numbers)


def make_train_step(
    task: Task, config: ConfigDict, mesh: Mesh
) -> Callable[[TrainState, Totals, Batch, PyTree], tuple[TrainState, Totals]]:
    """Returns step(state, totals, batch, frozen) -> (state, totals), a pure function.

    With `config.accumulation` the gradient is the mean over so many parts of the batch, one after
    the other; it is the same but for rounding, and takes the memory of one part.
    """
    optimizer, rate = make_optimizer(config), learning_rate(config)
    gammas = tuple(averages.gamma_of(sigma_rel) for sigma_rel in config.ema.sigma_rel)
    parts = config.accumulation
    size = config.batch_size

    def sums(params: PyTree, frozen: PyTree, batch: Batch, keys: Array) -> tuple[Array, PyTree]:
        losses, terms = task.loss(*gathered((params, frozen), mesh), batch, keys)
        seen = {name: terms[name].sum(0) for name in terms.keys() - _figures(terms).keys()}
        return losses.sum(), (sums_of(losses, terms, jnp.ones_like(losses)), seen)

    def part(params: PyTree, frozen: PyTree, batch: Batch, keys: Array) -> tuple[PyTree, ...]:
        (_, found), gradient = jax.value_and_grad(sums, has_aux=True)(params, frozen, batch, keys)
        # As the parameters lie: the sum over the devices becomes one that scatters.
        where = state_shardings(gradient, mesh)
        return jax.lax.with_sharding_constraint(gradient, where), *found

    def train_step(
        state: TrainState, totals: Totals, batch: Batch, frozen: PyTree
    ) -> tuple[TrainState, Totals]:
        keys = example_keys(config.seed, state.step * size, size)
        frozen = frozen | state.carried
        if parts == 1:
            gradient, found, seen = part(state.params, frozen, batch, keys)
        else:

            def add(total: PyTree, one: PyTree) -> tuple[PyTree, None]:
                return jax.tree.map(jnp.add, total, part(state.params, frozen, *one)), None

            split = jax.tree.map(lambda rows: _split(rows, parts, mesh), (batch, keys))
            shapes = jax.eval_shape(
                part, state.params, frozen, *jax.tree.map(lambda a: a[0], split)
            )
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            (gradient, found, seen), _ = jax.lax.scan(add, zeros, split)
        gradient, seen = jax.tree.map(lambda leaf: leaf / size, (gradient, seen))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        kept = averages.update(state.averages, params, step, gammas)
        carried = task.follow(state.carried, params, seen)
        found |= {
            "gradient_norm": jnp.stack([optax.global_norm(gradient), 1.0]),
            "learning_rate": jnp.stack([rate(state.step), 1.0]),
        }
        added = {name: totals[name] + found[name] for name in found}
        finite = jnp.isfinite(found["loss"][0]) & jnp.isfinite(found["gradient_norm"][0])
        bad = jnp.minimum(totals["bad_step"], jnp.where(finite, NEVER, step))
        return TrainState(step, params, kept, opt_state, carried), added | {"bad_step": bad}

    return train_step


def sums_of(losses: Float[Array, " b"], terms: Terms, weight: Float[Array, " b"]) -> Totals:
    """Weighted sums and counts of the loss and its terms; a term is NaN where it does not apply."""

    def one(values: Float[Array, " b"], weight: Float[Array, " b"]) -> Float[Array, "2"]:
        return jnp.stack([(values * weight).sum(), weight.sum()])

    sums = {"loss": one(losses, weight)}
    for name, values in _figures(terms).items():
        applies = ~jnp.isnan(values)
        sums[name] = one(jnp.where(applies, values, 0.0), weight * applies)
    return sums


def _figures(terms: Mapping[str, Any]) -> dict[str, Any]:  # arrays, or their shapes
    """Without the vectors."""
    return {name: values for name, values in terms.items() if len(values.shape) == 1}


def means(totals: Mapping[str, Any]) -> dict[str, float]:
    """Means of totals that were read; what no example contributed to is left out."""
    return {
        name: float(value[0] / value[1])
        for name, value in totals.items()
        if name != "bad_step" and value[1]
    }


def gathered(params: PyTree, mesh: Mesh) -> PyTree:
    """The parameters whole on every device, for a network to be applied."""
    if mesh.shape["fsdp"] == 1:
        return params
    return jax.lax.with_sharding_constraint(params, replicated(mesh))


def _split(rows: Array, parts: int, mesh: Mesh) -> Array:
    """[b, ...] -> [parts, b / parts, ...], every part with rows of every device."""
    split = jnp.moveaxis(rows.reshape(-1, parts, *rows.shape[1:]), 1, 0)
    return jax.lax.with_sharding_constraint(split, by_rows(mesh, axis=1))
