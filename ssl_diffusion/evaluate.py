"""Measures samples and a stitched image against held-out patches, and writes the report.

python -m ssl_diffusion.evaluate --model=DIR --records=DIR --samples=DIR --stitched=image.tif \\
    --train=WORKDIR --timings=timings.json --output=DIR

Writes report.json, report.html (self-contained), large_image.png, patches.png and loss.png. At
least one of --samples (from ssl_diffusion.sample) and --stitched (from ssl_diffusion.generate, with
--reference) is needed; --train adds the loss curve, --timings (JSON: stage -> seconds) the times.
"""

import functools
import logging
import operator
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from ssl_diffusion import cli, demo
from ssl_diffusion.data.picture import Picture
from ssl_diffusion.data.records import Records, Source, open_records
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.data.split import read_split
from ssl_diffusion.encoders.augment import views_of
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation import inputs, measures
from ssl_diffusion.evaluation.agreement import paired_similarity
from ssl_diffusion.evaluation.features import one_vector
from ssl_diffusion.evaluation.figures import labelled_row, labelled_sheet, loss_curve, png_bytes
from ssl_diffusion.evaluation.frechet import Moments
from ssl_diffusion.evaluation.machine import hardware, versions
from ssl_diffusion.evaluation.report import LargeImage, Pair, html_page
from ssl_diffusion.evaluation.roundtrip import reconstruct, reconstruct_region
from ssl_diffusion.evaluation.seams import border_lines
from ssl_diffusion.files import read_json, replacing, write_json
from ssl_diffusion.stitching.reference import embed_image
from ssl_diffusion.stitching.windows import window_origins
from ssl_diffusion.weights.model import Model, load_model

FLAGS = flags.FlagValues()
MODEL = flags.DEFINE_string(
    "model", None, "model folder, as train exports it", required=True, flag_values=FLAGS
)
RECORDS = flags.DEFINE_string(
    "records", None, "records the model was trained on", required=True, flag_values=FLAGS
)
SAMPLES = flags.DEFINE_string("samples", None, "folder of ssl_diffusion.sample", flag_values=FLAGS)
STITCHED = flags.DEFINE_string(
    "stitched", None, ".tif or .png of ssl_diffusion.generate --reference", flag_values=FLAGS
)
TRAIN = flags.DEFINE_string("train", None, "workdir of the training run", flag_values=FLAGS)
TIMINGS = flags.DEFINE_string(
    "timings", None, "JSON with the seconds of each stage before this one", flag_values=FLAGS
)
OUTPUT = flags.DEFINE_string(
    "output", None, "folder to write the report into", required=True, flag_values=FLAGS
)

STAGES = ("install", "prepare", "train", "sample", "stitch")
ENCODER_VIEWS = 4  # augmented views of each held-out patch
PAIRS = 24  # shown in the report
SEED = 0  # of views, noise images and the random encoder: a report can be made again exactly


def main() -> None:
    """Reads and checks everything, measures, writes."""
    start = time.perf_counter()
    output = inputs.writable_folder(OUTPUT.value)
    if not SAMPLES.value and not STITCHED.value:
        raise InputError("nothing to evaluate: give --samples, --stitched or both")
    model, records = load_model(MODEL.value), open_records(RECORDS.value)
    held_out = records.source("test", ("image", "embedding"))
    report: dict[str, Any] = {}
    settings: dict[str, Any] = {"model": model.spec}
    indices = np.arange(len(held_out))
    if SAMPLES.value:
        indices, samples, settings["samples"] = inputs.read_samples(
            Path(SAMPLES.value), len(held_out), model.patch_px
        )
    if STITCHED.value:
        stitched, settings["stitched"] = inputs.read_stitched(Path(STITCHED.value))
        reference = open_image(settings["stitched"]["reference"])
        picture = reference.at(model.mpp, settings["stitched"].get("reference_mpp"))
        picture.check_region(*settings["stitched"]["region"])
    for name in ("samples", "stitched"):
        if name in settings and settings[name].get("model_sha256") != model.sha256:
            raise InputError(f"--{name} was made with another model; make it again with this one")
    if SAMPLES.value and settings["samples"].get("recipe") != records.metadata["recipe"]:
        raise InputError("--samples was made from other records; sample from these")
    losses = None
    if TRAIN.value:
        losses, report["train"] = inputs.read_training(Path(TRAIN.value))
        if report["train"].get("model_sha256") != model.sha256:
            raise InputError("--train is the run of another model; give this one's workdir")
    timings = read_json(TIMINGS.value, "timings") if TIMINGS.value else {}
    check_records(model, records, held_out)

    logging.info("evaluate: encoder and autoencoder on %d held-out patches", len(indices))
    real = np.stack([held_out[int(index)]["image"] for index in indices])
    reconstructions = reconstruct(model.encode, model.decode, real)
    large, pairs = None, []
    trained = functools.reduce(operator.add, map(Moments.of, vectors(records, "train")))
    if SAMPLES.value:
        images = real, samples, reconstructions
        sections, pairs = evaluate_patches(model, records, trained, indices, *images)
        report |= sections
    if STITCHED.value:
        report["large_image"], large = evaluate_large_image(
            model, records, trained, picture, stitched, settings["stitched"]
        )
    report["autoencoder"] = measures.autoencoder_numbers(real, reconstructions)
    report["encoder"] = evaluate_encoder(model, real)
    seconds = {stage: timings.get(stage) for stage in STAGES}
    seconds["evaluate"] = time.perf_counter() - start
    seconds["total"] = sum(value for value in seconds.values() if value is not None)
    report |= {"seconds": seconds, "hardware": hardware(), "versions": versions()}
    write_report(output, report, large, pairs, losses, settings)
    logging.info("report: %s", output / "report.html")


def evaluate_patches(
    model: Model,
    records: Records,
    trained: Moments,
    indices: Int[np.ndarray, " n"],
    real: UInt8[np.ndarray, "n h w 3"],
    samples: UInt8[np.ndarray, "n h w 3"],
    reconstructions: UInt8[np.ndarray, "n h w 3"],
) -> tuple[dict[str, Any], list[Pair]]:
    """The sections `patch` and `copying`, and the pairs to show."""
    train = records.source("train", ("image", "embedding"))
    gallery = np.concatenate(list(vectors(records, "test")))
    noise = np.random.default_rng(SEED).integers(0, 256, real.shape, np.uint8)
    every = np.linspace(0, len(train) - 1, min(len(real), len(train))).astype(int)
    trained_on = np.stack([train[int(index)]["image"] for index in every])
    copies = reconstruct(model.encode, model.decode, trained_on)

    def embed(images: UInt8[np.ndarray, "k h w 3"], what: str) -> Float[np.ndarray, "k d"]:
        return one_vector(model.encoder.embed(images), what)

    embedded = embed(samples, "samples")
    sections, nearest = measures.patch_numbers(
        gallery=gallery,
        wanted=indices,
        samples=embedded,
        reconstructions=embed(reconstructions, "reconstructions"),
        noise=embed(noise, "noise images"),
        copies=embed(copies, "training patches through the autoencoder"),
        train=vectors(records, "train"),
        trained=trained,
    )
    similarity = paired_similarity(embedded, gallery[indices], trained.mean.astype(np.float32))
    shown = np.unique(np.linspace(0, len(indices) - 1, min(PAIRS, len(indices))).astype(int))
    pairs = [
        Pair(
            index=int(indices[i]),
            real=real[i],
            sample=samples[i],
            nearest=train[int(nearest.index[i])]["image"],
            similarity=float(similarity[i]),
            nearest_similarity=float(nearest.similarity[i]),
        )
        for i in shown
    ]
    return sections, pairs


def evaluate_large_image(
    model: Model,
    records: Records,
    trained: Moments,
    picture: Picture,
    stitched: UInt8[np.ndarray, "h w 3"],
    settings: dict[str, Any],
) -> tuple[dict[str, Any], LargeImage]:
    """The section `large_image`, and the pictures to show."""
    x, y, width, height = settings["region"]
    real = picture.read(x, y, width, height)
    patch, window = model.patch_px, model.patch_px // model.factor
    images = {
        "real": real,
        "stitched": stitched,
        "reconstruction": reconstruct_region(
            model.encode, model.decode, real, model.factor, tile_px=2 * patch
        ),
    }

    def cells(image: UInt8[np.ndarray, "h w 3"], what: str) -> Float[np.ndarray, "cells d"]:
        grid = embed_image(image, model.encoder.embed, patch, patch)
        return one_vector(grid.reshape(-1, *grid.shape[2:]), what)

    def lines(size: int) -> np.ndarray:
        spacing = settings.get("grid_stride_px", patch)
        squares = [(window_origins(size, patch, spacing), patch)]
        if settings.get("scheme") != "shifted":  # whose borders lie elsewhere at every step
            canvas = -(-size // model.factor)
            windows = window_origins(canvas, window, settings["stride"]) * model.factor
            squares.append((windows, patch))
        return border_lines(size, *squares)

    numbers = measures.large_image_numbers(
        images=images,
        embeddings={name: cells(image, f"{name} image") for name, image in images.items()},
        lines_y=lines(height),
        lines_x=lines(width),
        centre=trained.mean.astype(np.float32),
    )
    name = demo.resolve(picture.path).name
    held_out = is_held_out(records, name, settings["region"])
    numbers |= {"seconds": settings["seconds"], "held_out": held_out}
    origin = f"{name}, corner at x {x}, y {y} px"
    return numbers, LargeImage(
        **images, cell_px=patch, mpp=picture.mpp, origin=origin, held_out=held_out
    )


def is_held_out(records: Records, name: str, region: list[int]) -> bool | None:
    """Whether held-out blocks cover the region (x, y, width, height px) of the image called `name`.

    None when the records do not tell: they were split by folder, or without this image.
    """
    file = records.folder / "split.json"
    if not file.is_file() or name not in (split := read_split(file)).held_out:
        return None
    x, y, width, height = region
    covered = sum(
        max(0, min(x + width, block_x + split.block_px) - max(x, block_x))
        * max(0, min(y + height, block_y + split.block_px) - max(y, block_y))
        for block_x, block_y in split.held_out[name]
    )
    return covered == width * height


def evaluate_encoder(model: Model, images: UInt8[np.ndarray, "n h w 3"]) -> dict[str, Any]:
    """The section `encoder`."""
    views = views_of(images, model.encoder.spec["augmentation"], ENCODER_VIEWS, SEED)
    random_encoder = model.encoder.reinitialised(SEED)
    return measures.encoder_numbers(model.encoder.embed, random_encoder.embed, images, views)


def vectors(records: Records, split: str) -> Iterator[Float[np.ndarray, "c d"]]:
    """The embeddings of a split in chunks, as vectors; a progress bar runs along."""
    source = records.source(split, ("embedding",))
    with tqdm(total=len(source), desc=f"{split} embeddings", unit="patch") as bar:
        for chunk in source.chunks("embedding"):
            yield one_vector(chunk, f"records, split {split}")
            bar.update(len(chunk))


def check_records(model: Model, records: Records, held_out: Source) -> None:
    """Raises InputError unless the records have the split and the encoder of the model."""
    # A converted model says nothing of splits: it was trained elsewhere.
    split = model.spec.get("trained", {}).get("split_sha256")
    if "trained" in model.spec and split != records.metadata.get("split_sha256"):
        raise InputError(
            "the model was trained with another split, and may know patches that are held out in "
            "these records; use the records it was trained on"
        )
    first = held_out[0]
    if first["image"].shape[0] != model.patch_px:
        raise InputError(
            f"records of {first['image'].shape[0]} px patches, but the model makes "
            f"{model.patch_px} px; use the records it was trained on"
        )
    again = one_vector(model.encoder.embed(first["image"][None]), "first held-out patch")[0]
    stored = first["embedding"].reshape(-1)
    # Another device or number format moves an embedding a little; another encoder, far.
    near = 0.05 * np.linalg.norm(stored)
    if again.shape != stored.shape or np.linalg.norm(again - stored) > near:
        raise InputError(
            "the records' embeddings are not those of the model's encoder; use the records "
            "it was trained on"
        )


def write_report(
    output: Path,
    report: dict[str, Any],
    large: LargeImage | None,
    pairs: list[Pair],
    losses: list[tuple[int, float]] | None,
    settings: dict[str, Any],
) -> None:
    """All files; the page last, so that a page never stands beside numbers of another run."""
    pictures = {"loss.png": loss_curve(losses)} if losses else {}
    if large:
        row = [large.real, large.reconstruction, large.stitched]
        pictures["large_image.png"] = png_bytes(
            labelled_row(row, ["real", "reconstruction", "stitched"])
        )
    if pairs:
        rows = [[pair.real, pair.sample, pair.nearest] for pair in pairs]
        labels = [f"real | sample {pair.similarity:.2f} | nearest" for pair in pairs]
        pictures["patches.png"] = png_bytes(labelled_sheet(rows, labels, columns=4, zoom=2))
    for name, content in pictures.items():
        with replacing(output / name) as temporary:
            temporary.write_bytes(content)
    write_json(output / "report.json", report)
    page = html_page(
        report, large=large, pairs=pairs, loss_png=pictures.get("loss.png"), settings=settings
    )
    with replacing(output / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    cli.run(main, FLAGS)
