"""Batches as a function of (seed, position): any number of processes, workers and restarts."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from conftest import ROOT

from ssl_diffusion.data.pipeline import batch_at, training_batches
from ssl_diffusion.data.records import open_records
from ssl_diffusion.errors import InputError


class Numbers:
    """A source whose examples are their own index, after `first`; `broken` cannot be read."""

    def __init__(self, length: int, first: int = 0, broken: int | None = None):
        self.length, self.first, self.broken = length, first, broken

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        if index == self.broken:
            raise InputError(f"record {index} cannot be read")
        return {"index": np.int64(self.first + index)}


TWO = [(Numbers(40), 1.0), (Numbers(30, first=100), 0.5)]


@pytest.fixture
def parsed_flags():
    flags.FLAGS.mark_as_parsed()  # as every command does


def rows(count: int, sources, batch_size: int, seed: int, **settings) -> list[list[int]]:
    batches = training_batches(sources, batch_size, seed, **settings)
    return [batch["index"].tolist() for batch in islice(batches, count)]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_read_disjoint_rows_of_the_same_global_batches(processes):
    source = [(Numbers(24), 1.0)]
    whole = rows(6, source, 8, 3)
    shares = [
        rows(6, source, 8, 3, process=process, processes=processes) for process in range(processes)
    ]
    assert [sum(parts, []) for parts in zip(*shares, strict=True)] == whole
    for epoch in (whole[:3], whole[3:]):
        assert sorted(sum(epoch, [])) == list(range(24))  # together they are the epoch
    assert whole[:3] != whole[3:]  # shuffled anew


def test_order_after_a_resume_is_the_order_without_it():
    order = rows(12, TWO, 9, 5)  # an epoch of the first source ends in the seventh batch
    for first in (1, 5, 7):
        assert rows(12 - first, TWO, 9, 5, first=first) == order[first:]
        share = rows(12 - first, TWO, 9, 5, first=first, process=1, processes=3)
        assert share == [batch[3:6] for batch in order[first:]]
    assert rows(12, TWO, 9, 6) != order


def test_mixture_takes_sources_by_weight_each_in_its_own_epochs():
    mixed = np.concatenate(rows(20, TWO, 9, 5))  # 180 examples: 120 of the first, 60 of the second
    for first, length, count in ((0, 40, 120), (100, 30, 60)):
        own = mixed[mixed // 100 == first // 100]
        assert len(own) == count
        for epoch in own.reshape(-1, length):
            assert sorted(epoch) == list(range(first, first + length))
    same = [(Numbers(40), 1.0), (Numbers(40, first=100), 1.0)]
    mixed = np.concatenate(rows(10, same, 8, 5))
    assert (mixed[mixed < 100] != mixed[mixed >= 100] - 100).any()  # not the same permutation


def test_records_of_a_batch_are_named_without_reading_them():
    for position, batch in enumerate(rows(8, TWO, 9, 5)):
        held = batch_at(TWO, 9, 5, position)
        assert [100 * which + index for which, index in held] == batch
    unreadable = [(Numbers(40, broken=number), 1.0) for number in range(40)]
    far = batch_at(unreadable, 40, 1, 10**9)
    assert len(far) == 40 and {which for which, _ in far} == set(range(40))


@pytest.mark.parametrize(
    "sources, batch_size, settings, message",
    [
        ([(Numbers(40), 1.0)], 9, {"processes": 2}, "batch size 9: expected a multiple of the 2"),
        ([(Numbers(4), 1.0)], 8, {}, "at most the 4 records"),
        ([(Numbers(40), 1.0), (Numbers(5), 3.0)], 8, {}, "takes 6 of records 1 .* the 5 records"),
        ([(Numbers(40), 0.0)], 8, {}, "numbers above 0"),
        ([(Numbers(40), 1.0), (Numbers(40), float("nan"))], 8, {}, "numbers above 0"),
        ([(Numbers(40), float("inf"))], 8, {}, "numbers above 0"),
        ([], 8, {}, "numbers above 0"),
        ([(Numbers(40), 1.0), ([{"index": np.float32(1)}] * 40, 1.0)], 8, {}, "records 1 hold"),
    ],
)
def test_batches_that_cannot_be_are_refused(sources, batch_size, settings, message):
    with pytest.raises(InputError, match=message):
        training_batches(sources, batch_size, 0, **settings)
    with pytest.raises(InputError, match="seed -1"):
        training_batches(TWO, 9, -1)


def test_a_record_that_cannot_be_read_is_one_clear_error():
    broken = [(Numbers(40, broken=7), 1.0)]
    position = next(p for p in range(5) if (0, 7) in batch_at(broken, 8, 2, p))
    batches = training_batches(broken, 8, 2)
    assert len([*islice(batches, position)]) == position
    with pytest.raises(InputError, match="^record 7 cannot be read$"):
        next(batches)


def test_workers_read_the_same_and_their_errors_arrive(records_dir, parsed_flags):
    source = [(open_records(records_dir).source("train", ("latent", "x"), raw=True), 1.0)]
    expected = islice(training_batches(source, 8, 4), 3, 7)
    batches = training_batches(source, 8, 4, first=3, workers=2)
    for batch, one in zip(islice(batches, 4), expected, strict=True):
        assert batch["latent"].dtype == np.float16
        for name in ("latent", "x"):
            np.testing.assert_array_equal(batch[name], one[name])
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(InputError, match="was killed .*exit code -9.*config.data.workers lower"):
        [*islice(batches, 100)]

    batches = training_batches([(Numbers(40, broken=7), 1.0)], 40, 2, workers=2)
    with pytest.raises(InputError, match="^record 7 cannot be read$"):
        next(batches)
    assert not multiprocessing.active_children()


PROGRAM = """
import multiprocessing
from itertools import islice
from absl import flags
from test_pipeline import TWO, training_batches

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    batches = training_batches(TWO, 9, 5, workers=2)
    [*islice(batches, 2)]  # one of each worker: both have begun
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    input()
    print(len([*islice(batches, 50)]), flush=True)
    input()
"""


def test_workers_leave_signals_to_their_parent_and_end_with_it(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    program = subprocess.Popen(
        [sys.executable, tmp_path / "program.py"],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    workers = [int(pid) for pid in program.stdout.readline().split()]
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
        os.kill(worker, signal.SIGINT)
    program.stdin.write("\n")
    program.stdin.flush()
    assert program.stdout.readline() == "50\n"
    program.kill()
    program.wait()
    end = time.monotonic() + 10
    while any(map(_runs, workers)):
        assert time.monotonic() < end, "workers outlive a parent that was killed"
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    """Whether the process is there and is not one that ended and nobody waited for."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
