"""Grain: records -> endless, shuffled batches, each of them a function of (seed, position).

The order is that of the global batches, whatever the number of processes and of workers: a run
that starts at batch n reads what one reads that came there, and needs no iterator's state for it.
"""

import math
import os
import signal
from collections.abc import Generator, Sequence
from typing import Protocol, runtime_checkable

import grain.python as grain
import numpy as np

from ssl_diffusion.data.children import live_with_the_parent
from ssl_diffusion.errors import InputError

Batches = Generator[dict[str, np.ndarray], None, None]

# Python's process that frees shared memory left over warns of it; Grain leaves some at every end.
QUIET = "ignore:resource_tracker:UserWarning"


@runtime_checkable
class RandomAccess(Protocol):
    """What is read: `len()` and examples, dicts of arrays, by index; `records.Source` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


def training_batches(
    sources: Sequence[tuple[RandomAccess, float]],
    batch_size: int,
    seed: int,
    *,
    first: int = 0,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
) -> Batches:
    """An endless iterator over this process's share of each global batch, from batch `first` on.

    `sources` are pairs (source, weight): every example of the mixture is of a source in proportion
    to its weight (to 1 %), at fixed places, and each source is shuffled anew in every epoch of its
    own. Yields dicts of arrays [batch_size / processes, ...]. Process p holds rows p*share to
    (p+1)*share of the global batch, so the sequence of global batches is the same for any number of
    processes. `workers` are processes that read; with 0, two threads of this one do. Close the
    iterator when done with it: that ends them.

    Raises InputError, here, if the batch does not divide among the processes, if a source has fewer
    records than its part of one batch (which would hold records twice), or if the sources cannot be
    mixed; and from `next` if a record cannot be read or a worker was killed.
    """
    check_batches(sources, batch_size, seed, processes)
    datasets = [grain.MapDataset.source(source) for source, _ in sources]
    batches = _mixture(datasets, [weight for _, weight in sources], seed).batch(
        batch_size // processes, drop_remainder=True, batch_fn=_stack
    )
    # Slicing after batching keeps each process's rows contiguous in the global batch.
    batches = batches[first * processes + process :: processes]
    iterable = batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))
    if workers:
        others = [given for given in os.getenv("PYTHONWARNINGS", "").split(",") if given]
        os.environ["PYTHONWARNINGS"] = ",".join(dict.fromkeys([*others, QUIET]))
        multiprocess = grain.MultiprocessingOptions(num_workers=workers)
        iterable = iterable.mp_prefetch(multiprocess, worker_init_fn=_start_worker)
    return _read(iter(iterable))


def batch_at(
    sources: Sequence[tuple[RandomAccess, float]], batch_size: int, seed: int, position: int
) -> list[tuple[int, int]]:
    """Which records global batch `position` (from 0) holds, row by row; none of them is read.

    Each is (which of the sources, index in it).
    """
    datasets = [
        grain.MapDataset.source(range(len(source))).map(lambda index, which=which: (which, index))
        for which, (source, _) in enumerate(sources)
    ]
    examples = _mixture(datasets, [weight for _, weight in sources], seed)
    return [examples[position * batch_size + row] for row in range(batch_size)]


def _mixture(
    datasets: Sequence[grain.MapDataset], weights: Sequence[float], seed: int
) -> grain.MapDataset:
    seeds = np.random.SeedSequence(seed).generate_state(len(datasets))
    endless = [
        dataset.shuffle(seed=int(own)).repeat()
        for dataset, own in zip(datasets, seeds, strict=True)
    ]
    return grain.MapDataset.mix(endless, weights)


def check_batches(
    sources: Sequence[tuple[RandomAccess, float]], batch_size: int, seed: int, processes: int
) -> None:
    """Raises InputError for what `training_batches` cannot make batches of."""
    if seed < 0:
        raise InputError(f"seed {seed}: expected 0 or more")
    if batch_size < 1 or batch_size % processes:
        raise InputError(
            f"batch size {batch_size}: expected a multiple of the {processes} processes"
        )
    weights = [weight for _, weight in sources]
    if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise InputError(
            f"records to train on are mixed by weights {weights}, expected numbers above 0"
        )
    for number, (source, weight) in enumerate(sources):
        part = batch_size * weight / sum(weights)
        if part > len(source):
            of = f" of records {number}" if len(sources) > 1 else ""
            raise InputError(
                f"batch size {batch_size}: it takes {part:.4g}{of} at a time, expected at most the "
                f"{len(source)} records there are; set batch_size lower"
            )
    if len(sources) > 1:
        kinds = [_kind(source[0]) for source, _ in sources]
        for number, kind in enumerate(kinds):
            if kind != kinds[0]:
                raise InputError(
                    f"records {number} hold {kind}, records 0 {kinds[0]}; mix records that were "
                    "made with the same encoder and autoencoder"
                )


def _kind(example: dict) -> dict[str, str]:
    arrays = {name: np.asarray(value) for name, value in example.items()}
    return {name: f"{array.dtype} {list(array.shape)}" for name, array in arrays.items()}


def _stack(examples: list[dict]) -> dict[str, np.ndarray]:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _read(batches: grain.DatasetIterator) -> Batches:
    try:
        while True:
            yield next(batches)
    except InputError as error:
        raise InputError(str(error)) from None  # without Grain's notes and a worker's traceback
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        raise InputError(
            f"a process that reads records was killed ({str(error).split('. ')[0]}), perhaps for "
            "want of memory, or of room in /dev/shm; set config.data.workers lower"
        ) from None
    finally:
        batches.close()


def _start_worker(worker: int, workers: int) -> None:
    live_with_the_parent(signal.SIGINT, signal.SIGTERM)
