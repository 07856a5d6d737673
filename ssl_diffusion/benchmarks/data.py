"""How many records a second the reader feeds, against what a training step consumes."""

import os
import time
from collections.abc import Iterator, Sequence
from multiprocessing import active_children
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm import tqdm

from ssl_diffusion import demo
from ssl_diffusion.data.patches import tissue_patches
from ssl_diffusion.data.pipeline import training_batches
from ssl_diffusion.data.records import Source, open_records
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.data.writer import Layout, RecordsWriter

FIELDS = ("latent", "embedding")  # what the denoiser trains on
LATENT, EMBEDDING = (64, 64, 3), (1, 384)  # of the published 20x model
PATCH_PX, STRIDE_PX = 256, 36  # of the records that are made: 2,075 of the shipped slide
WARM_UP = 12  # batches, more than are read ahead

# What the published U-Net consumes on one H200: a forward of 208.5 GFLOP and twice that backwards,
# at 45 % of the 790 TFLOP/s that a bfloat16 product reaches there.
STEP_RECORDS_PER_SECOND = 0.45 * 790e12 / (3 * 208.5e9)


def measure(
    folder: str | Path | None, workers: Sequence[int], seconds: float, batch: int
) -> Iterator[dict[str, Any]]:
    """One row for each number of reading processes (0: two threads of this one).

    Reads the training split in `folder`, or else records that are made for it: as many bytes of
    latents, embeddings and PNG as those of the published 20x model have. The files are read again
    and again, so the disk's cache holds them. A core is a second of processor time, of this process
    and of those that read. Raises InputError for records without latents and embeddings.
    """
    with TemporaryDirectory() as temporary:
        if folder is None:
            folder = Path(temporary) / "records"
            make_records(folder)
        records = open_records(folder)
        source = records.source("train", FIELDS, raw=True)
        for count in workers:
            yield _measure(source, count, seconds, batch) | {"latent": records.shape("latent")}


def make_records(folder: Path) -> None:
    """Writes records of the shipped slide's patches with latents and embeddings of pure noise."""
    writer = RecordsWriter(folder, ("train",), Layout(EMBEDDING, LATENT))
    rng = np.random.default_rng(0)
    patches = tissue_patches(open_image(demo.SLIDE), PATCH_PX, STRIDE_PX, min_saturation=0.12)
    for patch in tqdm(patches, desc="records to read", unit="record"):
        example = {"image": patch.pixels, "x": patch.x, "y": patch.y, "source": "shipped.svs"}
        example["embedding"] = rng.standard_normal(EMBEDDING, np.float32)
        example["latent"] = rng.standard_normal(LATENT, np.float32).astype(np.float16)
        writer.add("train", example)
    writer.close({"recipe": {}, "latent": {"shift": 0.0, "scale": 1.0}})


def _measure(source: Source, workers: int, seconds: float, batch: int) -> dict[str, Any]:
    batches = training_batches([(source, 1.0)], batch, seed=0, workers=workers)
    for _ in range(WARM_UP):
        next(batches)
    read, start, cpu = 0, time.perf_counter(), _cpu_seconds()
    while (taken := time.perf_counter() - start) < seconds:
        read += len(next(batches)["latent"])
    cpu = _cpu_seconds() - cpu
    batches.close()
    return {
        "workers": workers,
        "batch": batch,
        "records": read,
        "seconds": taken,
        "cores": cpu / taken,
        "records_per_second": read / taken,
        "records_per_core_second": read / cpu,
        "of_step": read / taken / STEP_RECORDS_PER_SECOND,
        "core_of_step": read / cpu / STEP_RECORDS_PER_SECOND,
    }


def _cpu_seconds() -> float:
    """Processor time of this process and of its children that live; Linux tells of those."""
    total = time.process_time()
    for child in active_children():
        file = Path(f"/proc/{child.pid}/stat")
        if file.exists():
            user, system = file.read_text().rpartition(")")[2].split()[11:13]
            total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [
        f"a training step of the published U-Net on one H200 consumes "
        f"{STEP_RECORDS_PER_SECOND:.0f} records/s (45 % of 790 TFLOP/s)",
        f"{'workers':>8}{'batch':>7}{'records/s':>11}{'of that':>9}{'cores':>7}"
        f"{'records/s per core':>20}{'of that':>9}",
    ]
    for row in rows:
        lines.append(
            f"{row['workers']:8}{row['batch']:7}{row['records_per_second']:11.0f}"
            f"{row['of_step']:9.1f}{row['cores']:7.2f}{row['records_per_core_second']:20.0f}"
            f"{row['core_of_step']:9.1f}"
        )
    return "\n".join(lines)
