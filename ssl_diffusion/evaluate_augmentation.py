"""Trains classifiers on real and on synthetic patches, tests them on real ones, and reports.

python -m ssl_diffusion.evaluate_augmentation --records=REAL --synthetic=DIR --labels=class \\
    --output=DIR

`--synthetic` is from `augment`. Trained on real patches, on synthetic ones, on both, and on real
patches with as many ordinary augmentations: what synthetic data has to beat. These are flips,
turns, crops and colours; where the label is measured of pixels (haematoxylin, tissue; of H&E
alone), flips, turns and mild crops, which leave it as it is. All networks that are fine-tuned train
for the same number of steps. Tested on the records' split "test".

Writes report.json, report.html (self-contained), scores.png and sheet.png. What is trained and
embedded is kept in OUTPUT/runs and OUTPUT/features: a run that was killed goes on from there.
"""

import logging
import time
from typing import Any

import numpy as np
from absl import flags

from ssl_diffusion import cli
from ssl_diffusion.augmentation.classifiers import PENALTIES, FineTuning
from ssl_diffusion.augmentation.comparison import (
    check_arms,
    compare,
    embed,
    fine_tuned,
    labels_again,
    linear,
)
from ssl_diffusion.augmentation.encoders import conditioned, open_encoder
from ssl_diffusion.augmentation.inputs import Comparison, read_comparison
from ssl_diffusion.augmentation.page import html_page, score_figure, variation_sheet
from ssl_diffusion.augmentation.pixel_labels import KINDS
from ssl_diffusion.data.records import open_records
from ssl_diffusion.encoders.encoder import SSLEncoder
from ssl_diffusion.evaluation.figures import png_bytes
from ssl_diffusion.evaluation.fractions import parse_fractions
from ssl_diffusion.evaluation.inputs import writable_folder
from ssl_diffusion.evaluation.machine import hardware, versions
from ssl_diffusion.evaluation.written import write_files

FLAGS = flags.FlagValues()
RECORDS = flags.DEFINE_string(
    "records", None, "real records, with splits train and test", required=True, flag_values=FLAGS
)
SYNTHETIC = flags.DEFINE_string(
    "synthetic", None, "variations of them, from augment", required=True, flag_values=FLAGS
)
OUTPUT = flags.DEFINE_string(
    "output", None, "folder to write the report into", required=True, flag_values=FLAGS
)
LABELS = flags.DEFINE_enum(
    "labels", "class", [*KINDS], "what the classifiers tell apart", flag_values=FLAGS
)
ENCODER = flags.DEFINE_string(
    "encoder", None, "encoder of the classifiers; the records' own by default", flag_values=FLAGS
)
FRACTIONS = flags.DEFINE_list(
    "fractions", "0.01,0.1,1", "parts of the labelled patches that are real", flag_values=FLAGS
)
SEEDS = flags.DEFINE_integer(
    "seeds", 3, "runs of each: draws of the part, of training", lower_bound=1, flag_values=FLAGS
)
STEPS = flags.DEFINE_integer(
    "steps", 150, "of fine-tuning, the same for all; 0 leaves it out", 0, flag_values=FLAGS
)
BATCH = flags.DEFINE_integer("batch", 32, "of fine-tuning", lower_bound=1, flag_values=FLAGS)

SHEET = 12  # originals that are shown
MEANING = {
    "linear": "Logistic regression of the encoder's embeddings, standardised, classes balanced; "
    "its penalty is chosen by cross-validation over groups of the training patches.",
    "fine-tuned": "The encoder's network with a linear head, all of it trained for {steps} steps "
    "on batches of {batch}: the same for every row, so that more data is not more training.",
}


def main() -> None:
    """Reads and checks everything, trains and scores, writes."""
    start = time.perf_counter()
    output = writable_folder(OUTPUT.value)
    fractions = parse_fractions(FRACTIONS.value)
    real = open_records(RECORDS.value)
    synthetic = open_records(SYNTHETIC.value, "Make them with python -m ssl_diffusion.augment.")
    compared = read_comparison(real, synthetic, LABELS.value)
    check_arms(compared, fractions, SEEDS.value)
    encoder, space = open_encoder(ENCODER.value, real)
    embedded = embed(compared, space, output / "features")
    classifiers = {"linear": linear(compared, embedded, space)}
    about: dict[str, Any] = {"linear": {"meaning": MEANING["linear"], "penalties": [*PENALTIES]}}
    remarks = compared.remarks
    if conditioned(space, real):
        remarks.append(
            "The classifiers' encoder is the one whose embeddings the variations were made from; "
            "--encoder=DIR takes another."
        )
    if STEPS.value and isinstance(encoder, SSLEncoder):
        tuning = FineTuning(encoder, len(compared.names), STEPS.value, BATCH.value)
        classifiers["fine-tuned"] = fine_tuned(compared, embedded, space, tuning)
        meaning = MEANING["fine-tuned"].format(**tuning.settings())
        about["fine-tuned"] = {"meaning": meaning, **tuning.settings()}
    else:
        remarks.append("No network was fine-tuned.")
    prepared = time.perf_counter()
    remarks.append(
        "Each interval is of one difference: where there is none, one in twenty excludes 0 still."
    )
    if SEEDS.value == 1:
        remarks.append(
            "Of one seed, intervals do not hold which patches are labelled and how training went."
        )
    if few := [f"{f:g}" for f in fractions if compared.pool.is_raised(f)]:
        remarks.append(
            f"Of each class two patches at least are labelled: at {', '.join(few)} that is more "
            "than the fraction asked for."
        )
    changed = labels_again(compared)
    if changed:
        remarks.append(
            f"Measured again, {changed['synthetic']:.1%} of the synthetic patches and "
            f"{changed['ordinary']:.1%} of the ordinary views have another label than the one they "
            "are trained with, that of their original."
        )
    if 1 in fractions and SEEDS.value > 1:
        remarks.append(
            "At fraction 1 all seeds train on the same labelled patches: intervals hold the luck "
            "of training and of the test, not that of which patches are labelled."
        )
    rows = compare(compared, classifiers, fractions, SEEDS.value, output / "runs")
    ended = time.perf_counter()
    chance = 1 / len(np.unique(compared.label))
    highs = [row["balanced_accuracy"]["high"] for row in rows]
    if any(high is not None and high < chance for high in highs):
        remarks.append(
            f"Some scores are below chance ({chance:.2f}): the training patches do not stand for "
            "the test patches, as where few slides differ by more than the class."
        )
    report = {
        **compared.facts,
        "encoder": {"folder": ENCODER.value or "the records' own", **space.settings},
        "classifiers": about,
        "ordinary": dict(compared.pool.view),
        "labels_changed": changed,
        "fractions": fractions,
        "seeds_of_each": SEEDS.value,
        "rows": rows,
        "remarks": remarks,
        "seconds": {"read and embed": prepared - start, "train and score": ended - prepared},
        "hardware": hardware(),
        "versions": versions(),
    }
    pictures = {
        "scores.png": score_figure(rows),
        "sheet.png": png_bytes(sheet(compared)),
    }
    settings = {
        "comparison": compared.facts,
        "classifiers": about,
        "ordinary views": report["ordinary"],
    }
    settings |= {"encoder": report["encoder"], "records": real.metadata["recipe"]}
    write_files(output, report, pictures, html_page(report, pictures, settings))
    logging.info("report: %s", output / "report.html")


def sheet(compared: Comparison) -> np.ndarray:
    """Originals spread over the pool, with up to three of their variations each."""
    pool = compared.pool
    varied, each = np.unique(pool.varied[pool.varied >= 0], return_counts=True)
    picks = np.linspace(0, len(varied) - 1, min(SHEET, len(varied))).astype(int)
    groups, names = [], []
    most = min(3, int(each.min()))
    for pick in varied[picks]:
        rows = np.flatnonzero(pool.varied == pick)[:most]
        groups.append([*pool.images(0, np.array([pick])), *pool.images(1, rows)])
        names.append(compared.names[pool.label[pick]])
    return variation_sheet(groups, names)


if __name__ == "__main__":
    cli.run(main, FLAGS)
