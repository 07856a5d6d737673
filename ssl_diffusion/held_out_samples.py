"""Samples of held-out patches that a command makes for itself, kept while it goes.

The folder is one of `ssl_diffusion.sample`. A run that was killed goes on where it stopped, and a
finished folder is used again, as long as model, records and settings are the same. What else lies
there is not touched.
"""

import dataclasses
import json
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from ssl_diffusion.data.records import Records
from ssl_diffusion.diffusion.sampling import read_sampling
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.intervals import evenly
from ssl_diffusion.files import read_json, replacing, write_json
from ssl_diffusion.sample import check_embedding, index_batches, sample
from ssl_diffusion.weights.model import Model

BATCH = 32  # patches denoised at once
STARTED, FINISHED = "unfinished.json", "samples.json"


def sample_held_out(
    model: Model, records: Records, count: int, folder: Path, *, split: str = "test", seed: int = 0
) -> float:
    """Samples `count` patches of a split (0: all), evenly spaced, into `folder`, as the model says.

    Returns the seconds that it took now, 0 where all was there. Raises InputError for fewer than
    two patches, for more than the split has, for embeddings that the model does not take, and
    for a folder that holds anything else.
    """
    source = records.source(split, ("embedding",))
    if count > len(source):
        raise InputError(f"--count={count}; split {split!r} has {len(source)} patches")
    check_embedding(source, model)
    count = count or len(source)
    if count < 2:
        raise InputError(f"{count} patch of split {split!r}: one is no set; sample 2 or more")
    picked = evenly(len(source), count)  # the first ones would be neighbours on one slide
    sampling = read_sampling(dict(model.spec["sampling"]))
    settings: dict[str, Any] = {
        "model_sha256": model.sha256,
        "recipe": records.metadata["recipe"],
        "split": split,
        "count": count,
        "indices": picked.tolist(),
        **dataclasses.asdict(sampling),
        "seed": seed,
        "precision": "float32",
        "batch": BATCH,
    }
    settings = json.loads(json.dumps(settings))  # as it is read again: tuples are lists
    if _is(folder / FINISHED, settings):
        logging.info("samples of an earlier run: %s", folder)
        return 0.0
    if not _is(folder / STARTED, settings):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"{folder} holds other samples{_differences(folder, settings)}, or files of yours; "
                f"judge them with --samples={folder}, or choose another --output"
            )
        write_json(folder / STARTED, settings)
    start = time.perf_counter()
    plan = sampling.plan(model.schedule)
    denoisers = sampling.denoisers(model.schedule, plan, model.denoiser)
    with tqdm(total=count, desc="samples", unit="patch") as bar:
        for places in index_batches(count, BATCH):
            indices = picked[places]
            files = {int(i): folder / "patches" / f"{i:05d}.png" for i in indices}
            if not all(file.is_file() for file in files.values()):
                embedding = np.stack([source[int(index)]["embedding"] for index in indices])
                progress = partial(tqdm, desc="steps", unit="step", leave=False)
                images = sample(model, plan, denoisers, embedding, indices, seed, progress)
                for index, image in zip(indices, images, strict=True):
                    _write_image(files[int(index)], image)
            bar.update(len(files))
    seconds = time.perf_counter() - start
    write_json(folder / FINISHED, settings | {"seconds": seconds})
    (folder / STARTED).unlink()
    return seconds


def _write_image(path: Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary)


def _differences(folder: Path, settings: dict[str, Any]) -> str:
    """What is there and what is asked, where samples of this command are there."""
    file = next((folder / name for name in (FINISHED, STARTED) if (folder / name).is_file()), None)
    found = read_json(file, "settings of samples") if file else {}
    if not isinstance(found, dict) or not found:
        return ""
    differ = [name for name in settings if found.get(name) != settings[name]]
    told = [
        f"other {name}"
        if isinstance(settings[name], (dict, list))
        else f"{name} {found.get(name)}, asked for {settings[name]}"
        for name in differ
    ]
    return f" ({'; '.join(told)})"


def _is(file: Path, settings: dict[str, Any]) -> bool:
    """Whether the file holds these settings, and maybe more."""
    if not file.is_file():
        return False
    found = read_json(file, "settings of samples")
    return isinstance(found, dict) and found | settings == found
