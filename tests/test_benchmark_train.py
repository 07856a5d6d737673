"""The benchmark of the training step: that its step trains, and that a row's numbers agree."""

import json
import sys
from functools import partial

import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from conftest import ROOT, load_config, shrink

from ssl_diffusion import benchmark, cli, rates
from ssl_diffusion.benchmarks import train
from ssl_diffusion.data.records import RecordsWriter
from ssl_diffusion.errors import InputError
from ssl_diffusion.training.plan import GIB, model_flop
from ssl_diffusion.training.sharding import make_mesh
from ssl_diffusion.training.state import NEVER, init_state, means, no_totals
from ssl_diffusion.training.tasks.build import TASKS


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for timed in (rates.repeated, rates.product_rate):
        monkeypatch.setattr(timed, "__defaults__", (0.0,))  # seconds
    monkeypatch.setattr(rates, "RUNS", 1)
    monkeypatch.setattr(train, "PRODUCTS", (64, 128))


@pytest.fixture
def config():
    return shrink(load_config("demo", "dit"))


@pytest.fixture
def training(config):
    config.diffusion.prediction, config.optimizer.warmup_steps = "eps", 1
    task = TASKS[config.task](config, None)
    state = jax.jit(partial(init_state, task, config))()
    return train.Training(task, config, make_mesh(1), state), partial(no_totals, task, config)


def run(capsys, *words: str, code: int = 2) -> str:
    """What `benchmark WORDS` prints in this process: its error, or (code 0) its output."""
    saved = flagsaver.save_flag_values(benchmark.FLAGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["benchmark", *words])
        patch.chdir(ROOT)
        try:
            cli.run(benchmark.WORDS, benchmark.FLAGS)
            found = 0
        except SystemExit as stopped:
            found = stopped.code
        finally:
            flagsaver.restore_flag_values(saved, benchmark.FLAGS)
    out, error = capsys.readouterr()
    assert found == code, error
    return error.strip() if code else out


def test_the_step_that_is_timed_trains(training):
    training, fresh = training
    losses = []
    for _ in range(2):
        training.totals = jax.jit(fresh)()
        for _ in range(40):
            totals = training.step(training.batch)
        assert int(totals["bad_step"]) == NEVER and totals["loss"][1] == 40 * 8
        losses.append(means(totals)["loss"])
    assert int(training.state.step) == 80
    assert losses[1] < 0.9 * losses[0]


def test_the_compilers_memory_is_no_less_than_the_state(training):
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(training[0].state))
    assert held < training[0].memory < held + 2**26


def test_a_rows_numbers_agree(config, monkeypatch):
    monkeypatch.setattr(train, "chip_of", lambda device: rates.CHIPS["NVIDIA H100"])
    peaks = iter([0, 3 * GIB, 3 * GIB, 3 * GIB])
    monkeypatch.setattr(train, "_peak_bytes", lambda: next(peaks))
    rows = [*train.measure(config, [8, 4], ["bfloat16"], None, 0.0)]
    assert [row["batch"] for row in rows] == [8, 4] and {row["dtype"] for row in rows} == {
        "bfloat16"
    }
    for row in rows:
        assert row["tflop"] * 1e12 == model_flop(TASKS[config.task](config, None), row["batch"])
        assert row["tflops"] == row["tflop"] / row["seconds"]
        assert row["of_product"] == row["tflops"] / max(row["product_tflops"].values())
        assert row["of_peak"] == pytest.approx(row["tflops"] / 989)
        assert row["images_per_second"] == row["batch"] / row["seconds"]
        assert row["images_per_second_per_device"] == row["images_per_second"]
        assert row["fits"] and row["data_wait"] is None
    assert rows[0]["peak_gib"] == 3
    assert rows[1]["peak_gib"] is None  # the peak is of the row before
    first, second = train.table(rows).splitlines()[-2:]
    assert f"{rows[0]['seconds']:.4f}" in first and f"{rows[1]['of_product']:.2f}" in second
    assert first.endswith("3.00          -") and second.split()[-2:] == ["-", "-"]


def test_a_batch_too_large_is_a_row_and_the_next_is_measured(config, monkeypatch):
    real = train.Training

    def short_of_memory(task, config, mesh, state):
        made = real(task, config, mesh, state)
        if config.batch_size > 8:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
        return made

    monkeypatch.setattr(train, "Training", short_of_memory)
    held = len(jax.live_arrays())
    rows = [*train.measure(config, [16, 8], [], None, 0.0)]
    assert [row["fits"] for row in rows] == [False, True]
    assert rows[0].keys() == rows[1].keys() and rows[0]["seconds"] is None
    assert len(jax.live_arrays()) == held  # what did not fit is not kept
    assert "16  does not fit in memory" in train.table(rows)


def test_other_failures_are_no_row(config, monkeypatch):
    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: no")

    monkeypatch.setattr(train, "Training", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        next(train.measure(config, [8], [], None, 0.0))


class Device:
    """Steps of so many seconds, one after the other, that the host does not wait for."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.free, self.steps = clock, seconds, 0.0, 0

    def step(self, batch):
        self.steps += 1
        self.free = max(self.free, self.clock.now) + self.seconds
        return {"bad_step": Ready(self.free)}

    def wait(self, running):
        at = running["bad_step"].at if isinstance(running, dict) else running.at
        self.clock.now = max(self.clock.now, at)


class Ready:
    """A number that is there at some time."""

    def __init__(self, at):
        self.at = at

    def __add__(self, other):
        return self


@pytest.mark.parametrize(("reading", "share"), [(0.0, 0.0), (0.5, 0.0), (4.0, 0.75)])
def test_the_wait_for_data_is_what_reading_takes_beyond_a_step(monkeypatch, reading, share):
    """A reader that is one batch ahead, and a device whose step takes a second."""
    clock = type("Clock", (), {"now": 0.0})()
    device = Device(clock, 1.0)

    def reader():
        ready = 0.0
        while True:
            clock.now = max(clock.now, ready)
            ready = clock.now + reading  # the next is read while this one is used
            yield {"latent": np.zeros((1, 2))}

    monkeypatch.setattr(train.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(train.jax, "block_until_ready", device.wait)
    found, per_step = train.fed(device, reader(), make_mesh(1), 400.0)
    assert found == pytest.approx(share, abs=0.02)
    assert per_step == pytest.approx(max(1.0, reading), rel=0.02)


def test_records_feed_the_step(records_dir, capsys):
    printed = run(
        capsys,
        "train",
        "--config=configs/demo.py:dit",
        "--config.model.architecture.width=32",
        "--config.model.architecture.depth=1",
        "--config.model.architecture.heads=2",
        "--config.model.conditioner.width=32",
        f"--records={records_dir}",
        "--seconds=0.2",
        "--batches=8",
        "--json",
        code=0,
    )
    (row,) = json.loads(printed)["rows"]
    assert 0 <= row["data_wait"] < 1 and row["fed_seconds"] > 0
    assert row["dtype"] == "float32" and row["network"] == "dit"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "train needs --config=FILE.py"),
        (["--config=none.py"], "no such config: none.py"),
        (["--config=configs/demo.py", "--dtypes=float8"], "--dtypes=float8; expected float32"),
        (["--config=configs/demo.py", "--batches=4,x"], "--batches=4,x; expected whole numbers"),
        (
            ["--config=configs/demo.py", "--config.accumulation=3", "--batches=6,8"],
            "batch size 8 does not divide among 1 devices in 3 parts",
        ),
        (["--config=configs/demo_encoder.py", "--dtypes=float32"], "has one number format"),
        (["--config=configs/demo.py", "--records=none"], "no records in none"),
        (["--config=configs/demo.py", "--batches=8", "--seconds=-1"], "seconds"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words, message, capsys):
    error = run(capsys, "train", *words)
    assert message in error.splitlines()[-1] and error.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in error


def test_records_of_other_shapes_or_too_few_are_refused_first(config, records_dir, tmp_path):
    with pytest.raises(InputError, match="--batches: 100000 of the"):
        next(train.measure(config, [100_000], [], str(records_dir), 0.0))
    writer = RecordsWriter(tmp_path / "records", ("train",), (1, 8), (4, 4, 3))
    example = {"image": np.zeros((8, 8, 3), np.uint8), "x": 0, "y": 0, "source": "a.svs"}
    example |= {
        "embedding": np.zeros((1, 8), np.float32),
        "latent": np.zeros((4, 4, 3), np.float16),
    }
    writer.add("train", example)
    writer.close({"recipe": {}, "latent": {"shift": 0.0, "scale": 1.0}})
    with pytest.raises(InputError, match=r"hold .*\[4, 4, 3\].*the config says .*\[16, 16, 6\]"):
        next(train.measure(config, [1], [], str(tmp_path / "records"), 0.0))


def test_data_is_measured_for_every_number_of_workers(records_dir, capsys):
    given = f"--records={records_dir}", "--workers=0", "--batches=8,16", "--seconds=0.1", "--json"
    rows = json.loads(run(capsys, "data", *given, code=0))["rows"]
    assert [(row["workers"], row["batch"]) for row in rows] == [(0, 8), (0, 16)]
    assert "--workers=-1; expected whole numbers from 0" in run(capsys, "data", "--workers=-1")
