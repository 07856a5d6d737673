"""The benchmark of the reader: what it counts, and the records that it makes."""

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest

from ssl_diffusion.benchmarks import data
from ssl_diffusion.data.records import open_records
from ssl_diffusion.data.writer import RecordsWriter
from ssl_diffusion.errors import InputError


def test_a_step_consumes_568_records_per_second():
    assert round(data.STEP_RECORDS_PER_SECOND) == 568


def test_rows_are_rates_of_what_was_read(records_dir):
    rows = [*data.measure(records_dir, [0], seconds=0.3, batch=16)]
    (row,) = rows
    assert row["records"] % 16 == 0 and row["records"] > 0 and row["latent"] == (16, 16, 6)
    assert row["records_per_second"] == row["records"] / row["seconds"]
    per_core = row["records_per_core_second"]
    assert per_core * row["cores"] == pytest.approx(row["records_per_second"])
    assert row["core_of_step"] == per_core / data.STEP_RECORDS_PER_SECOND
    assert f"{per_core:.0f}" in data.table(rows).splitlines()[-1]


def test_processor_time_of_workers_counts(monkeypatch):
    monkeypatch.setattr(data, "active_children", lambda: [SimpleNamespace(pid=os.getpid())])
    assert data._cpu_seconds() == pytest.approx(2 * time.process_time(), rel=0.1)


def test_records_made_to_be_read_are_as_large_as_the_published_models(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "STRIDE_PX", 700)
    data.make_records(tmp_path / "records")
    source = open_records(tmp_path / "records").source("train", raw=True)
    found = source[len(source) - 1]
    assert found["latent"].shape == (64, 64, 3) and found["latent"].dtype == np.float16
    assert found["embedding"].shape == (1, 384) and found["image"].shape == (256, 256, 3)


def test_records_without_latents_are_refused(tmp_path):
    writer = RecordsWriter(tmp_path / "records", ("train",))
    writer.add("train", {"image": np.zeros((8, 8, 3), np.uint8), "x": 0, "y": 0, "source": "a.svs"})
    writer.close({"recipe": {}})
    with pytest.raises(InputError, match="not latent; prepare them with an autoencoder"):
        next(data.measure(tmp_path / "records", [0], seconds=0.1, batch=1))
