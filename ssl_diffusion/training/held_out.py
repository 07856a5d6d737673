"""What averaged weights reach on held-out examples: the loss, with the same noise every time."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from ssl_diffusion.data.pipeline import RandomAccess
from ssl_diffusion.data.records import Records
from ssl_diffusion.training.sharding import by_rows
from ssl_diffusion.training.state import Totals, example_keys, gathered, means, sums_of
from ssl_diffusion.training.tasks import Task

EXAMPLES = 512  # losses taken, about: of so many examples, or of fewer with several draws of noise
MOST_DRAWS = 8
SEED = 1_000_003  # of their noise; no run of a small seed draws the same


def held_out_loss(
    task: Task, config: ConfigDict, records: Records, mesh: Mesh
) -> Callable[[PyTree, PyTree], dict[str, float]]:
    """Returns evaluate(params, frozen) -> means of the loss and its terms, as "held_out_...".

    `frozen` holds what is carried, too.
    The examples are spread over the split "val", or "test" where there is none. Every process of
    the run has to call it.
    """
    split = "val" if records.count("val") else "test"
    source = task.examples(records, split)
    picks = np.linspace(0, len(source) - 1, min(EXAMPLES, len(source))).astype(int)
    draws = int(np.clip(EXAMPLES // len(picks), 1, MOST_DRAWS))
    picks = np.tile(picks, draws)

    @jax.jit
    def totals(
        params: PyTree, frozen: PyTree, batch: PyTree, first: Array, weight: Array
    ) -> Totals:
        keys = example_keys(SEED, first, config.batch_size)
        losses, terms = task.loss(*gathered((params, frozen), mesh), batch, keys)
        return sums_of(losses, terms, weight)

    def evaluate(params: PyTree, frozen: PyTree) -> dict[str, float]:
        found: list[Totals] = []
        for first in range(0, len(picks), config.batch_size):
            numbers = first + np.arange(config.batch_size)
            weight = (numbers < len(picks)).astype(np.float32)
            rows = own_rows(source, picks[np.minimum(numbers, len(picks) - 1)])
            batch = jax.make_array_from_process_local_data(by_rows(mesh), rows)
            # One after the other: many collectives under way can lock each other on a CPU.
            found.append(jax.device_get(totals(params, frozen, batch, np.uint32(first), weight)))
        total = jax.tree.map(lambda *parts: sum(parts), *found)
        return {f"held_out_{name}": value for name, value in means(total).items()}

    return evaluate


def own_rows(source: RandomAccess, indices: np.ndarray) -> dict[str, np.ndarray]:
    """This process's share of a batch of these records."""
    share = len(indices) // jax.process_count()
    first = jax.process_index() * share
    examples = [source[int(index)] for index in indices[first : first + share]]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
