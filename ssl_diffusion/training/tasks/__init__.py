"""What can be learned: a task gives parameters, a loss per example, evaluation, a model folder."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from ssl_diffusion.data.pipeline import RandomAccess
from ssl_diffusion.data.records import Records

MEASURED = 1024
"""Held-out patches measured, at most: more would tell no more and need not fit in memory."""

Batch = dict[str, Array | np.ndarray]
"""Record fields by name, each with the batch as its first axis."""


@runtime_checkable
class Examples(RandomAccess, Protocol):
    """What a task trains on: random access, and where an example comes from, in words."""

    def place(self, index: int) -> str: ...


Terms = dict[str, Float[Array, "b *n"]]
"""Further figures of each example, by name; NaN where one does not apply to an example.

Vectors, [b, n], are no figures: they are not logged, and `Task.follow` gets their means.
"""


@runtime_checkable
class Task(Protocol):
    """What the training loop asks of a task.

    Attributes:
      fields: the record fields of a batch.
      frozen: arrays that the loss reads and training leaves alone, by name.
    """

    fields: tuple[str, ...]
    frozen: dict[str, PyTree]

    def examples(self, records: Records, split: str) -> Examples:
        """What is learned from a split: its records, unless a task makes something of them."""
        return records.source(split, self.fields, raw=True)

    def batch(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch of `count` examples, as the records hold them."""

    def init(self, key: Array) -> PyTree:
        """Fresh parameters."""

    def loss(
        self, params: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[Float[Array, " b"], Terms]:
        """Loss and further terms of each example, whose randomness is all from its own key.

        `frozen` holds what is carried, too.
        """

    def carried(self, params: PyTree) -> dict[str, PyTree]:
        """What the loss reads and the optimizer leaves alone, but which follows the training, as a
        teacher does: by name, before the first step. It is a part of the state. Most have none."""
        return {}

    def follow(
        self, carried: dict[str, PyTree], params: PyTree, seen: dict[str, Float[Array, " n"]]
    ) -> dict[str, PyTree]:
        """What is carried after an optimizer step that gave `params`.

        `seen` are the means, over the whole batch, of those terms of the loss that are vectors.
        """
        return carried

    def picture(self, params: PyTree) -> np.ndarray | None:
        """A sheet that shows how far training is, uint8 [h, w, 3]: the same examples each time."""

    def measure(self, params: PyTree) -> dict[str, Any]:
        """Held-out figures, taken once at the end."""

    def export(self, params: PyTree, folder: Path, trained: dict[str, Any]) -> None:
        """Writes the model folder; `trained` says by which config, command and steps."""


def image_batch(config: ConfigDict, count: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of a task that reads images alone."""
    size = config.data.patch_px
    return {"image": jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8)}


def split_keys(keys: Key[Array, " b"]) -> Key[Array, "2 b"]:
    """Two keys of each example from its one."""
    return jax.vmap(jax.random.split, out_axes=1)(keys)
