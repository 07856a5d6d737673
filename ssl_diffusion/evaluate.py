"""Measures images against real held-out patches, and writes the report.

python -m ssl_diffusion.evaluate --model=DIR --records=DIR --output=DIR \\
    [--samples=WHAT] [--stitched=WHAT] [--judge=DIR] [--networks=DIR,DIR] [--train=WORKDIR]

--samples is a folder of ssl_diffusion.sample, of which each image is of one held-out patch; or, to
be compared as a set alone, a folder of images, records, or one large image. A model without
--samples and --stitched samples held-out patches itself, into OUTPUT/samples. --stitched is an
image of ssl_diffusion.generate --reference, or a folder of them.

Patches are compared in memory: of 50,000 of 256 px, the samples, the real ones, their
reconstructions, their neighbours and the noise beside them take 50 GB; --count asks for fewer.

Writes report.json, report.html (self-contained) and its pictures. Features are kept in --cache, so
that a run that failed, or another report, need not compute them again.
"""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from ssl_diffusion import cli, demo
from ssl_diffusion.data.records import Records, open_records
from ssl_diffusion.encoders.augment import views_of
from ssl_diffusion.encoders.features import RESIZES
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation import checks, inputs, judging, measures
from ssl_diffusion.evaluation.image_sets import array_images
from ssl_diffusion.evaluation.intervals import evenly
from ssl_diffusion.evaluation.large_section import evaluate_large_images, open_stitched
from ssl_diffusion.evaluation.machine import hardware, versions
from ssl_diffusion.evaluation.patch_section import Samples, Stage, evaluate_patches
from ssl_diffusion.evaluation.pinned import pinned
from ssl_diffusion.evaluation.real_features import REFERENCE, RealFeatures
from ssl_diffusion.evaluation.report import Pictures
from ssl_diffusion.evaluation.report_files import write_report
from ssl_diffusion.evaluation.roundtrip import reconstruct
from ssl_diffusion.files import read_json
from ssl_diffusion.held_out_samples import sample_held_out
from ssl_diffusion.weights.encoder import load_encoder
from ssl_diffusion.weights.folder import part_of
from ssl_diffusion.weights.model import Model, load_autoencoder, load_model

FLAGS = flags.FlagValues()
MODEL = flags.DEFINE_string("model", None, "model folder, as train exports it", flag_values=FLAGS)
RECORDS = flags.DEFINE_string(
    "records", None, "real records: what images are compared with", required=True, flag_values=FLAGS
)
SAMPLES = flags.DEFINE_string(
    "samples",
    None,
    "folder of ssl_diffusion.sample, folder of images, records, or a large image",
    flag_values=FLAGS,
)
COUNT = flags.DEFINE_integer(
    "count", 0, "held-out patches to sample, 0 is all", lower_bound=0, flag_values=FLAGS
)
STITCHED = flags.DEFINE_string(
    "stitched", None, "image of generate --reference, or a folder of them", flag_values=FLAGS
)
JUDGE = flags.DEFINE_string(
    "judge",
    None,
    "independent encoder's folder, or none; the demo's for the demo",
    flag_values=FLAGS,
)
NETWORKS = flags.DEFINE_list(
    "networks", [], "folders of further networks: Inception, CLIP, any encoder", flag_values=FLAGS
)
RESIZE = flags.DEFINE_enum(
    "resize", None, [*RESIZES], "of FID's Inception; as its folder says", flag_values=FLAGS
)
UNSEEN = flags.DEFINE_bool(
    "unseen", False, "the records are of a source that was not in training", flag_values=FLAGS
)
TRAIN_RECORDS = flags.DEFINE_string(
    "train_records",
    None,
    "records whose training patches copies are looked for in; --records by default",
    flag_values=FLAGS,
)
REFERENCES = flags.DEFINE_integer(
    "references",
    REFERENCE,
    "training patches that sets are compared with, at most; evenly spaced ones",
    lower_bound=2,
    flag_values=FLAGS,
)
CROP_PX = flags.DEFINE_integer(
    "crop_px", None, "side of the crops of large images", lower_bound=1, flag_values=FLAGS
)
CROP_COUNT = flags.DEFINE_integer(
    "crop_count", None, "crops of each large image", lower_bound=2, flag_values=FLAGS
)
TRAIN = flags.DEFINE_string("train", None, "workdir of the training run", flag_values=FLAGS)
TIMINGS = flags.DEFINE_string(
    "timings", None, "JSON with the seconds of each stage before this one", flag_values=FLAGS
)
CACHE = flags.DEFINE_string(
    "cache", None, "folder that keeps features; OUTPUT/features by default", flag_values=FLAGS
)
OUTPUT = flags.DEFINE_string(
    "output", None, "folder to write the report into", required=True, flag_values=FLAGS
)

STAGES = ("install", "prepare", "train", "sample", "stitch")
COMPARED = 8  # held-out patches that tell the judge from the conditioning encoder
ENCODER_VIEWS = 4  # augmented views of each held-out patch
MEASURED = 1024  # held-out patches that encoder and autoencoder are measured on, at most
SEED = 0  # of views and the random encoder: a report can be made again exactly


def main() -> None:
    """Reads and checks everything, measures, writes."""
    start = time.perf_counter()
    output = inputs.writable_folder(OUTPUT.value)
    check_flags()
    model = load_model(MODEL.value) if MODEL.value else None
    records = open_records(RECORDS.value)
    real, settings = open_real(model, records, output), {}
    train = open_train_records(real)
    report: dict[str, Any] = {
        "remarks": checks.remarks(model, real.spaces, records, train),
    }
    losses = None
    if TRAIN.value:
        losses, report["train"] = inputs.read_training(Path(TRAIN.value))
        if model and report["train"].get("model_sha256") != model.sha256:
            raise InputError("--train is the run of another model; give this one's workdir")
    timings = read_json(TIMINGS.value, "timings") if TIMINGS.value else {}
    stitched = open_stitched(STITCHED.value, model, CROP_PX.value) if STITCHED.value else []
    samples, sampled = open_samples(model, real, output, settings)

    stage = first_stage(model, records)
    pictures = Pictures(losses=losses)
    if samples:
        sections, pictures.patches = evaluate_patches(real, samples, stage, train)
        report |= sections
    if stitched:
        settings["stitched"] = [one.settings for one in stitched]
        report["large_image"], pictures.large = evaluate_large_images(
            real, stitched, model, CROP_PX.value, CROP_COUNT.value
        )
    if model:
        settings["model"] = model.spec
        report |= model_sections(model, real)
    report["pinned"] = pinned(real, samples, report, made_by(model, settings, train), UNSEEN.value)
    seconds = {name: timings.get(name) for name in STAGES}
    if sampled:
        seconds["sample"] = (seconds["sample"] or 0) + sampled
    seconds["evaluate"] = time.perf_counter() - start - sampled
    seconds["total"] = sum(value for value in seconds.values() if value is not None)
    report |= {"seconds": seconds, "hardware": hardware(), "versions": versions()}
    write_report(output, report, pictures, settings)
    logging.info("report: %s", output / "report.html")


def check_flags() -> None:
    """Raises InputError for flags that ask for nothing, or of which one would be passed over."""
    if not (MODEL.value or SAMPLES.value or STITCHED.value):
        raise InputError("nothing to evaluate: give --model, --samples or --stitched")
    if SAMPLES.value and COUNT.present:
        raise InputError("--count is of samples made here; leave it out beside --samples")
    if COUNT.value == 1:
        raise InputError("--count=1; one sample is no set, give 2 or more")
    if not STITCHED.value and (CROP_PX.present or CROP_COUNT.present):
        raise InputError("--crop_px and --crop_count are of large images; give --stitched too")
    if TRAIN_RECORDS.value and not (SAMPLES.value or COUNT.present) and STITCHED.value:
        raise InputError("--train_records is of patches; give --samples or --count too")


def open_real(model: Model | None, records: Records, output: Path) -> RealFeatures:
    """The real records in every space; InputError unless all belongs together."""
    encoder = model.encoder if model else None  # refused first where it came without
    where = records.folder / "encoder"
    if not where.is_dir() and model:
        where = part_of(MODEL.value, "encoder")
    if not where.is_dir():
        raise InputError(
            f"records in {records.folder} have no encoder beside them; give --model, or prepare "
            "them with --encoder"
        )
    encoder = encoder or load_encoder(where)
    patch_px = model.patch_px if model else records.metadata["patch_px"]
    if model:
        checks.check_split(model, records, UNSEEN.value)
    checks.check_encoder(encoder, records, patch_px, "test")
    judge = JUDGE.value or judging.default_judge(records)
    own = judging.conditioning_space(encoder, where)
    further = judging.further_spaces(own, judge, NETWORKS.value, RESIZE.value)
    cache = Path(CACHE.value or output / "features")
    real = RealFeatures(records, [own, *further], cache, REFERENCES.value)
    if judge != judging.NO_JUDGE:
        picks = evenly(len(real.held_out), COMPARED)
        few = np.stack([real.held_out[int(index)] for index in picks])
        judging.check_independent(own, further[0], few)
    return real


def open_train_records(real: RealFeatures) -> Records | None:
    """Where copies are looked for; None, with a word, where nothing says what was trained on."""
    if not TRAIN_RECORDS.value:
        if not UNSEEN.value:
            return real.records
        logging.warning("--unseen without --train_records: copies are not looked for")
        return None
    train = open_records(TRAIN_RECORDS.value)
    checks.check_train_records(train, real.records)
    return train


def open_samples(
    model: Model | None, real: RealFeatures, output: Path, settings: dict[str, Any]
) -> tuple[Samples | None, float]:
    """The samples given, or made here, and the seconds of that; None for large images alone."""
    records, sampled = real.records, 0.0
    if SAMPLES.value:
        folder = demo.resolve(SAMPLES.value)
    elif model and (not STITCHED.value or COUNT.present):
        folder = output / "samples"
        sampled = sample_held_out(model, records, COUNT.value, folder, seed=SEED)
    else:
        return None, sampled
    patch_px = records.metadata["patch_px"]
    if not inputs.is_paired(folder):
        found = inputs.open_images(folder, patch_px, records.metadata["recipe"])
        checks.check_count(found)
        return Samples(found, None), sampled
    indices, images, settings["samples"] = inputs.read_samples(folder, len(real.held_out), patch_px)
    checks.check_made_by(settings["samples"], "samples", model)
    checks.check_made_from(settings["samples"], records)
    found = array_images(images, "samples")
    checks.check_count(found)
    found.settings |= {"kind": "ssl_diffusion.sample", "path": folder.name, "format": "PNG"}
    return Samples(found, indices), sampled


def made_by(model: Model | None, settings: dict[str, Any], train: Records | None) -> dict[str, Any]:
    """What is known of how the images were made: model, settings of samples and stitched images."""
    known = {"model_sha256": model and model.sha256}
    known |= {name: settings[name] for name in ("samples", "stitched") if name in settings}
    if "samples" in known:
        known["samples"] = {
            key: value for key, value in known["samples"].items() if key != "indices"
        }
    known["training_records"] = train and train.folder.name
    return {name: value for name, value in known.items() if value is not None}


def first_stage(model: Model | None, records: Records) -> Stage | None:
    """Encode and decode of the model's autoencoder, or of the records' where there is one."""
    if model:
        return model.encode, model.decode
    folder = records.folder / "autoencoder"
    if not folder.is_dir():
        return None
    stage = load_autoencoder(folder)
    return stage.encode, stage.decode


def model_sections(model: Model, real: RealFeatures) -> dict[str, Any]:
    """The sections `autoencoder` and `encoder`, of held-out patches."""
    indices = evenly(len(real.held_out), MEASURED)
    images = np.stack([real.held_out[int(index)] for index in indices])
    views = views_of(images, model.encoder.spec["augmentation"], ENCODER_VIEWS, SEED)
    random_encoder = model.encoder.reinitialised(SEED)
    return {
        "autoencoder": measures.autoencoder_numbers(
            images, reconstruct(model.encode, model.decode, images)
        ),
        "encoder": measures.encoder_numbers(
            model.encoder.embed, random_encoder.embed, images, views
        ),
    }


if __name__ == "__main__":
    cli.run(main, FLAGS)
