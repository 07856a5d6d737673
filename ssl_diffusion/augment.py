"""Makes variations of labelled patches, as records that a classifier can be trained on.

python -m ssl_diffusion.augment --model=DIR --records=DIR --output=DIR --per_image=4

--how=same keeps a patch's embedding and draws other noise; interpolate goes up to half of the way
to another patch of its class, along the arc; prior takes embeddings of the class from --prior. A
variation has the label, the source and the place of the patch that it varies, so that slides stay
groups; all are in split "train". `variations.npz` beside the records says which patch each is of.

The records' `embedding` is the one a patch was asked for with, not that of its image: a probe that
was trained on it would learn the originals. Embed the images anew.

A run that was stopped goes on where it was: the same command again.
"""

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from ssl_diffusion import cli, demo
from ssl_diffusion.augmentation.pixel_labels import KINDS, Labels, read_labels
from ssl_diffusion.augmentation.trained import split_of
from ssl_diffusion.augmentation.variations import (
    HOW,
    check_prior,
    draw_embeddings,
    plan_variations,
)
from ssl_diffusion.augmentation.writing import Work, begin, is_done
from ssl_diffusion.data.records import Records, open_records
from ssl_diffusion.diffusion.sampling import Sampling
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import sha256
from ssl_diffusion.locks import only_one
from ssl_diffusion.models.build import PRECISIONS
from ssl_diffusion.prior.model import Prior, load_prior
from ssl_diffusion.sample import check_embedding, sample
from ssl_diffusion.sampling import define_flags, sampling_of
from ssl_diffusion.weights.folder import WEIGHTS
from ssl_diffusion.weights.model import Model, load_model

FLAGS = flags.FlagValues()
MODEL = flags.DEFINE_string(
    "model", None, "model folder, from train", required=True, flag_values=FLAGS
)
RECORDS = flags.DEFINE_string(
    "records", None, "records folder, from prepare", required=True, flag_values=FLAGS
)
OUTPUT = flags.DEFINE_string(
    "output", None, "folder of the new records", required=True, flag_values=FLAGS
)
PER_IMAGE = flags.DEFINE_integer(
    "per_image", 1, "variations of each patch", lower_bound=1, flag_values=FLAGS
)
WAY = flags.DEFINE_enum("how", "same", [*HOW], "embeddings they are made from", flag_values=FLAGS)
LABELS = flags.DEFINE_enum(
    "labels",
    "class",
    [*KINDS],
    "what is a label: the records' own, or one of pixels or source",
    flag_values=FLAGS,
)
SPLIT = flags.DEFINE_string("split", "train", "whose patches are varied", flag_values=FLAGS)
COUNT = flags.DEFINE_integer(
    "count", 0, "patches that are varied, drawn by the seed; 0 is all", 0, flag_values=FLAGS
)
PRIOR = flags.DEFINE_string("prior", None, "prior's folder, for --how=prior", flag_values=FLAGS)
SEED = flags.DEFINE_integer(
    "seed", 0, "of all draws", lower_bound=0, upper_bound=2**31, flag_values=FLAGS
)
BATCH = flags.DEFINE_integer(
    "batch", 32, "patches denoised at once", lower_bound=1, flag_values=FLAGS
)

define_flags(FLAGS)

NEAR = 0.05  # of an embedding's norm: another device moves it less, another encoder more


def main() -> None:
    """Checks the input, plans, makes unit by unit, joins."""
    output = Path(OUTPUT.value)
    if (WAY.value == "prior") != bool(PRIOR.value):
        raise InputError(
            f"--how={WAY.value} with --prior={PRIOR.value}; --how=prior and --prior=DIR belong "
            "together"
        )
    records = open_records(RECORDS.value)
    model = load_model(MODEL.value, PRECISIONS[FLAGS.precision])
    check_embedding(records.source(SPLIT.value, ("embedding",)), model)
    sampling = sampling_of(model.spec["sampling"], FLAGS)
    labels = labels_of(records)
    cut = as_cut(records)
    wanted = plan_variations(
        cut,
        labels,
        per_image=PER_IMAGE.value,
        how=WAY.value,
        most=COUNT.value,
        seed=SEED.value,
    )
    prior = load_prior(PRIOR.value) if PRIOR.value else None
    if prior:
        classes = np.unique(labels.index[wanted.original])
        check_prior(prior, records, [labels.names[c] for c in classes])
    check_model(model, records)
    told = provenance(records, model, sampling, labels, prior)
    told["unlabelled_left_out"] = int((labels.index[cut] < 0).sum()) if labels else 0
    told |= {"originals": len(np.unique(wanted.original)), "variations": len(wanted)}
    refusal = f"another process makes variations for {output}; wait for its end"
    lock = output.with_name(f".{output.name}.lock")
    with only_one(lock, refusal):
        if is_done(output, told):
            logging.info("variations in %s are there already", output)
        else:
            begin(output, told)
            drawn = draw_embeddings(prior, wanted, labels, SEED.value) if prior else None
            work = Work(records, SPLIT.value, model, labels, wanted, drawn, told, output)
            make(work, sampling)
    lock.unlink(missing_ok=True)


def make(work: Work, sampling: Sampling) -> None:
    """Samples what is not there yet and writes the records."""
    model = work.model
    plan = sampling.plan(model.schedule)
    denoisers = sampling.denoisers(model.schedule, plan, model.denoiser)
    devices = jax.device_count()
    made = partial(sample, model, plan, denoisers, seed=SEED.value)
    work.do(made, -(-BATCH.value // devices) * devices)  # as many on every device
    work.finish()


def as_cut(records: Records) -> np.ndarray:
    """Rows of the split that is varied: patches as they were cut, without flips and turns."""
    if "variant" not in records.features:
        return np.arange(records.count(SPLIT.value))
    chunks = records.source(SPLIT.value, ("variant",)).chunks("variant")
    return np.flatnonzero(np.concatenate([*chunks]) == 0)


def labels_of(records: Records) -> Labels | None:
    """Of the split that is varied; None where the records have none and none are needed."""
    if LABELS.value == "class" and "label" not in records.features and WAY.value == "same":
        return None
    splits = dict.fromkeys(("train", SPLIT.value))  # thresholds are of the training patches
    return read_labels(records, LABELS.value, tuple(splits))[0][SPLIT.value]


def check_model(model: Model, records: Records) -> None:
    """Raises InputError unless the model makes such patches from the records' embeddings."""
    first = records.source(SPLIT.value, ("image", "embedding"))[0]
    if first["image"].shape[0] != model.patch_px:
        raise InputError(
            f"records of {first['image'].shape[0]} px patches, but the model makes "
            f"{model.patch_px} px; use the records it was trained on, or such as these"
        )
    if model.own_encoder is None:
        logging.warning("the model came without its encoder: that it is the records' is believed")
        return
    again = model.encoder.embed(first["image"][None])[0]
    stored = first["embedding"]
    near = NEAR * np.linalg.norm(stored)
    if again.shape != stored.shape or np.linalg.norm(again - stored) > near:
        raise InputError(
            "the records' embeddings are not those of the model's encoder; prepare the records "
            "with it"
        )


def provenance(
    records: Records,
    model: Model,
    sampling: Sampling,
    labels: Labels | None,
    prior: Prior | None,
) -> dict[str, Any]:
    """All that the variations depend on."""
    split = split_of(model.spec, records, "the model", "patches")
    of_patches = "embeddings and labels of patches"
    prior_split = split_of(prior.spec, records, "the prior", of_patches) if prior else None
    trained = demo.resolve(PRIOR.value) / WEIGHTS if prior else None
    return {
        "how": WAY.value,
        "per_image": PER_IMAGE.value,
        "labels": LABELS.value if labels else None,
        "split": SPLIT.value,
        "seed": SEED.value,
        "model": MODEL.value,
        "model_sha256": model.sha256,
        "model_split_sha256": split,
        "prior_sha256": sha256(trained) if trained else None,
        "prior_split_sha256": prior_split,
        "sampling": dataclasses.asdict(sampling)
        | {"guidance_interval": sampling.guidance_interval and [*sampling.guidance_interval]},
        "precision": FLAGS.precision,
        "recipe": records.metadata["recipe"],
    }


if __name__ == "__main__":
    cli.run(main, FLAGS)
