"""Grain: records -> endless, shuffled, resumable batches."""

from typing import Protocol, runtime_checkable

import grain.python as grain
import numpy as np

from ssl_diffusion.errors import InputError


@runtime_checkable
class RandomAccess(Protocol):
    """What is read: `len()` and examples, dicts of arrays, by index; `records.Source` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


def training_batches(
    source: RandomAccess,
    batch_size: int,
    seed: int,
    *,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
) -> grain.DatasetIterator:
    """An endless iterator over this process's share of each global batch.

    Yields dicts of arrays [batch_size / processes, ...]. Process p holds rows p*share to
    (p+1)*share of the global batch, so the sequence of global batches is the same for any number of
    processes. The iterator's `get_state` and `set_state` make a run resumable in the middle of an
    epoch.

    Raises InputError if the batch does not divide among the processes or exceeds the records.
    """
    if batch_size % processes or batch_size > len(source):
        raise InputError(
            f"batch size {batch_size}: expected a multiple of the {processes} processes and at "
            f"most the {len(source)} records"
        )
    dataset = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat()
        .batch(batch_size // processes, drop_remainder=True, batch_fn=_stack)
    )
    # Slicing after batching keeps each process's rows contiguous in the global batch.
    dataset = dataset[process::processes]
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    iterable = dataset.to_iter_dataset(options)
    if workers:
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(iterable)


def _stack(examples: list[dict]) -> dict[str, np.ndarray]:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
