"""How many patches a second each stage of `prepare` does, and which of them is the limit."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssl_diffusion import demo
from ssl_diffusion.data import recipe as recipes
from ssl_diffusion.data.collect import collect
from ssl_diffusion.data.cutting import Cutters, Form, cut
from ssl_diffusion.data.encoding import Encoding
from ssl_diffusion.data.image_bytes import decode, encode
from ssl_diffusion.data.origins import Collection
from ssl_diffusion.data.plan import make_plan
from ssl_diffusion.data.work import BATCH
from ssl_diffusion.data.writer import ShardWriter
from ssl_diffusion.errors import InputError

MOST = 2048  # patches that the stages after cutting are measured on


def default_section() -> ConfigDict:
    """The shipped slide, as the demo cuts and encodes it."""
    return ConfigDict(
        recipes.section(
            source=demo.SLIDE,
            split=demo.SPLIT,
            patch_px=64,
            stride_px=16,
            min_saturation=0.12,
            encoder=demo.ENCODER,
            autoencoder=demo.AUTOENCODER,
        )
    )


def measure(data: ConfigDict, workers: Sequence[int], seconds: float) -> Iterator[dict[str, Any]]:
    """One row for each stage, on the patches of a `data` section; cutting by numbers of workers.

    Stages: `cut` reads, resamples, looks for tissue and makes PNG or JPEG bytes; `image bytes` is
    that last part of it alone, by one process; `decode` reads them again; `embed` is the encoder,
    `embed + latents` the autoencoder too; `write` is records. Each is repeated for so many seconds.
    A slide stays in the disk's cache. Raises InputError as `prepare` does.
    """
    recipes.check(data)
    recipe = recipes.recipe_of(data)
    with TemporaryDirectory() as folder:
        named = recipe["split"].endswith(".json")
        collection = collect(data, Path(recipe["split"] if named else f"{folder}/split.json"))
        encoding = Encoding(recipe, collection)
        form = Form(1, recipe["jpeg_quality"], False, recipe["patch_px"])
        for count in workers:
            yield {"stage": "cut", "workers": count} | _cutting(collection, form, count, seconds)
        examples = _some(collection, form)
        pixels = [decode(example["encoded"]) for example in examples]
        stack = np.stack(pixels)
        writer = ShardWriter(Path(folder), encoding.layout)
        stages: dict[str, Callable[[], Any]] = {
            "image bytes": lambda: [encode(one, recipe["jpeg_quality"]) for one in pixels],
            "decode": lambda: [decode(example["encoded"]) for example in examples],
        }
        if encoding.encoder:
            stages["embed"] = lambda: [encoding.encoder.embed(part) for part in _parts(stack)]
        if encoding.first_stage:
            name = "embed + latents" if encoding.encoder else "latents"
            stages[name] = lambda: [encoding.fields(part, examples) for part in _parts(stack)]
        fields = encoding.fields(stack, examples) if encoding.needs_pixels else {}
        records = [
            {"source": "slide", "mpp": 0.5, "image": example["encoded"], "x": 0, "y": 0}
            | {"label": -1, "text": "", "variant": 0}
            | {name: array[row] for name, array in fields.items()}
            for row, example in enumerate(examples)
        ]
        stages["write"] = lambda: [writer.add("train", record) for record in records]
        for stage, run in stages.items():
            yield {"stage": stage, "workers": 0} | _repeated(run, len(examples), seconds)


def _cutting(collection: Collection, form: Form, workers: int, seconds: float) -> dict[str, Any]:
    with Cutters(workers) as cutters:
        plan = make_plan(collection, cutters)
        calls = [
            (index, collection.origins[index], *rows, form)
            for unit in plan.units
            for index in unit
            for rows in plan.tasks(index, form.patch_px)
        ]
        # Every process has opened its slide before the clock starts.
        list(cutters.map(cut, calls[: 2 * max(1, workers)]))
        patches, start = 0, time.perf_counter()
        while (taken := time.perf_counter() - start) < seconds or not patches:
            for examples in cutters.map(cut, calls):
                patches += len(examples)
                if (taken := time.perf_counter() - start) >= seconds:
                    break
        return {"patches": patches, "seconds": taken, "patches_per_second": patches / taken}


def _some(collection: Collection, form: Form) -> list[dict[str, Any]]:
    with Cutters(0) as cutters:
        plan = make_plan(collection, cutters)
    found: list[dict[str, Any]] = []
    for unit in plan.units:
        for index in unit:
            for rows in plan.tasks(index, form.patch_px):
                found += cut(index, collection.origins[index], *rows, form)
                if len(found) >= MOST:
                    return found[:MOST]
    if not found:
        raise InputError("no patch is kept; lower config.data.min_saturation")
    return found


def _parts(stack: np.ndarray) -> list[np.ndarray]:
    return [stack[start : start + BATCH] for start in range(0, len(stack), BATCH)]


def _repeated(run: Callable[[], Any], count: int, seconds: float) -> dict[str, Any]:
    run()  # compiles
    patches, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds or not patches:
        run()
        patches += count
    return {"patches": patches, "seconds": taken, "patches_per_second": patches / taken}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text, and the slowest stage of what a run does one after the other or at once."""
    lines = [f"{'stage':<17}{'workers':>8}{'patches/s':>11}"]
    lines += [
        f"{row['stage']:<17}{row['workers']:8}{row['patches_per_second']:11.0f}" for row in rows
    ]
    rates = {}
    for row in rows:
        rate = row["patches_per_second"]
        rates[row["stage"]] = max(rate, rates.get(row["stage"], 0.0))
    if "embed + latents" in rates:
        rates.pop("embed", None)  # it is a part of it
    chain = {name: rate for name, rate in rates.items() if name not in ("image bytes", "decode")}
    slowest = min(chain, key=chain.__getitem__)
    lines.append(f"the limit is {slowest}: {chain[slowest]:.0f} patches/s")
    alone = next((r["patches_per_second"] for r in rows if r["stage"] == "cut"), None)
    for row in rows:
        if row["stage"] == "cut" and row["workers"] > 1:
            ratio = row["patches_per_second"] / alone
            lines.append(f"{row['workers']} workers cut {ratio:.2f} times as fast as the first row")
    return "\n".join(lines)
