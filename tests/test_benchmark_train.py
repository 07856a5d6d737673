"""The benchmark of the training step: that its step trains, and that a row's numbers agree."""

import json
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from conftest import ROOT, load_config

from ssl_diffusion import benchmark, cli, rates
from ssl_diffusion.benchmarks import train
from ssl_diffusion.data.writer import Layout, RecordsWriter
from ssl_diffusion.errors import InputError
from ssl_diffusion.training.plan import GIB, model_flop
from ssl_diffusion.training.sharding import make_mesh, replicated
from ssl_diffusion.training.state import NEVER, TrainState, init_state, means, no_totals
from ssl_diffusion.training.tasks.build import TASKS

# The demo's transformer, small, and such that it learns something of pure noise in a few steps.
SMALL = {
    "batch_size": 8,
    "model.architecture.width": 32,
    "model.architecture.depth": 1,
    "model.architecture.heads": 2,
    "model.conditioner.width": 32,
    "diffusion.prediction": "eps",
    "optimizer.warmup_steps": 1,
    "optimizer.decay": "constant",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for timed in (rates.repeated, rates.product_rate):
        monkeypatch.setattr(timed, "__defaults__", (0.0,))  # seconds
    monkeypatch.setattr(rates, "RUNS", 1)
    monkeypatch.setattr(train, "PRODUCTS", (64, 128))


@pytest.fixture(scope="module")
def config():
    config = load_config("demo", "dit")
    config.update_from_flattened_dict(SMALL)
    return config


@pytest.fixture(scope="module")
def training(config):
    task, mesh = TASKS[config.task](config, None), make_mesh(1)
    # Laid out as in a run, so that what was compiled for one test the others read.
    state = jax.jit(partial(init_state, task, config), out_shardings=replicated(mesh))()
    return train.Training(task, config, mesh, state)


class Fake(train.Training):
    """A step that does nothing; of more than 8 examples there is no memory for it."""

    failure = "RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes"
    memory = 2 * GIB

    def __init__(self, task, config, mesh, state):
        self.batch = jnp.zeros(config.batch_size)
        if config.batch_size > 8:
            raise jax.errors.JaxRuntimeError(self.failure)

    def step(self, batch):
        return {"bad_step": batch[0]}


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(train, "Training", Fake)
    monkeypatch.setattr(train, "product_rate", lambda size, dtype: size / 1000)
    monkeypatch.setattr(train, "model_flop", lambda task, count: count * 10**9)
    nothing = TrainState(jnp.int32(0), {}, (), ())
    monkeypatch.setattr(train, "init_state", lambda task, config: nothing)


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


def test_the_step_that_is_timed_trains(config, training):
    losses = []
    for _ in range(2):
        training.totals = no_totals(TASKS[config.task](config, None), config)
        for _ in range(40):
            totals = training.step(training.batch)
        assert int(totals["bad_step"]) == NEVER and totals["loss"][1] == 40 * 8
        losses.append(means(totals)["loss"])
    assert int(training.state.step) == 80
    assert losses[1] < 0.9 * losses[0]


def test_the_compilers_memory_holds_the_state(training):
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(training.state))
    assert held < training.memory < held + 2**26


def test_a_rows_numbers_agree(config, fake, monkeypatch):
    monkeypatch.setattr(train, "chip_of", lambda device: rates.CHIPS["NVIDIA H100"])
    peaks = iter([0, 3 * GIB, 3 * GIB, 3 * GIB])
    monkeypatch.setattr(train, "_peak_bytes", lambda: next(peaks))
    rows = [*train.measure(config, [8, 4], ["bfloat16"], None, 0.0)]
    assert [(row["batch"], row["dtype"]) for row in rows] == [(8, "bfloat16"), (4, "bfloat16")]
    for row in rows:
        assert row["tflop"] == row["batch"] / 1000
        assert row["tflops"] == row["tflop"] / row["seconds"]
        assert row["of_product"] == row["tflops"] / 0.128  # the better product's
        assert row["of_peak"] == pytest.approx(row["tflops"] / 989)
        assert row["images_per_second"] == row["batch"] / row["seconds"]
        assert row["images_per_second_per_device"] == row["images_per_second"]
        assert row["fits"] and row["data_wait"] is None and row["memory_gib"] == 2
    assert rows[0]["peak_gib"] == 3
    assert rows[1]["peak_gib"] is None  # the peak is of the row before
    first, second = train.table(rows).splitlines()[-2:]
    assert f"{rows[0]['seconds']:.4f}" in first and f"{rows[1]['of_product']:.2f}" in second
    assert first.split()[-2:] == ["3.00", "-"] and second.split()[-2:] == ["-", "-"]


def test_a_batch_too_large_is_a_row_and_the_next_is_measured(config, fake):
    rows = [*train.measure(config, [16, 8], [], None, 0.0)]
    assert [row["fits"] for row in rows] == [False, True]
    assert rows[0].keys() == rows[1].keys() and rows[0]["seconds"] is None
    assert (16,) not in [array.shape for array in jax.live_arrays()]  # its memory is free again
    assert "16  does not fit in memory" in train.table(rows)


def test_other_failures_are_no_row(config, fake, monkeypatch):
    monkeypatch.setattr(Fake, "failure", "INTERNAL: no")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        next(train.measure(config, [16], [], None, 0.0))


class Device(train.Training):
    """Steps of so many seconds, one after the other, that the host does not wait for."""

    def __init__(self, seconds):
        self.seconds, self.free = seconds, 0.0

    def step(self, batch):
        self.free = max(self.free, time.perf_counter()) + self.seconds
        return {"bad_step": Ready(self.free)}


class Ready(float):
    """A number that is there at this time."""

    def __add__(self, other):
        return self


@pytest.mark.parametrize(("reading", "share"), [(0.0, 0.0), (0.02, 0.0), (0.2, 0.75)])
def test_the_wait_for_data_is_what_reading_takes_beyond_a_step(monkeypatch, reading, share):
    """A reader that is one batch ahead, and a device whose step takes 50 ms."""

    def reader():
        ready = 0.0
        while True:
            sleep_until(ready)
            ready = time.perf_counter() + reading  # the next is read while this one is used
            yield {"latent": np.zeros((1, 2))}

    def sleep_until(then):
        time.sleep(max(0.0, then - time.perf_counter()))

    def wait(running):
        sleep_until(running["bad_step"] if isinstance(running, dict) else running)

    monkeypatch.setattr(train, "WARM_UP", 1)
    monkeypatch.setattr(train.jax, "block_until_ready", wait)
    found, per_step = train.fed(Device(0.05), reader(), make_mesh(1), 1.2)
    assert found == pytest.approx(share, abs=0.1)
    assert per_step == pytest.approx(max(0.05, reading), rel=0.3)


def test_records_feed_the_step(config, records_dir, capsys):
    overrides = [f"--config.{name}={value}" for name, value in SMALL.items()]
    given = f"--records={records_dir}", "--seconds=0.2", "--json"
    printed = run(capsys, "train", "--config=configs/demo.py:dit", *overrides, *given, code=0)
    (row,) = json.loads(printed)["rows"]
    assert 0 <= row["data_wait"] < 1 and row["fed_seconds"] > 0
    assert (row["dtype"], row["network"], row["batch"]) == ("float32", "dit", 8)
    assert row["tflop"] * 1e12 == model_flop(TASKS[config.task](config, None), 8)
    rate = row["tflop"] / row["seconds"]
    assert row["of_product"] == pytest.approx(rate / max(row["product_tflops"].values()))


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
    writer = RecordsWriter(tmp_path / "records", ("train",), Layout((1, 8), (4, 4, 3)))
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
