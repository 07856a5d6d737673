"""What can be learned: a task gives parameters, a loss per example and a model folder."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, PyTree

MEASURED = 1024
"""Held-out patches measured, at most: more would tell no more and need not fit in memory."""

Batch = dict[str, Array | np.ndarray]
"""Record fields by name, each with the batch as its first axis."""


@runtime_checkable
class Task(Protocol):
    """What the training loop asks of a task. `fields` are the record fields of a batch."""

    fields: tuple[str, ...]

    def init(self, key: Array) -> PyTree:
        """Fresh parameters."""

    def loss(
        self, params: PyTree, batch: Batch, key: Array
    ) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
        """Loss per example and further per-example figures to log."""

    def picture(self, params: PyTree) -> np.ndarray | None:
        """A sheet that shows how far training is, uint8 [h, w, 3]: the same examples each time."""

    def measure(self, params: PyTree) -> dict[str, int | float]:
        """Held-out figures, taken once at the end."""

    def export(self, params: PyTree, folder: Path, trained: dict[str, Any]) -> None:
        """Writes the model folder; `trained` says by which config, command and steps."""
