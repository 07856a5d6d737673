"""Measures grids that a prior samples against real held-out ones, and writes the report.

python -m ssl_diffusion.evaluate_prior --model=DIR --records=DIR --samples=64 --output=DIR \\
    --captions=held_out.json

Samples without a condition, of each label, of captions (JSON: label, or class of a label map, ->
sentences worded otherwise than in training) and of label maps of real held-out grids, as far as the
prior was trained with them. Writes report.json, report.html (self-contained), grids.png and
coherence.png.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from ssl_diffusion import cli
from ssl_diffusion.data.grids import Grids, open_grids
from ssl_diffusion.data.records import Records, open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.figures import png_bytes
from ssl_diffusion.evaluation.grid_copying import copying_numbers, nearest_grids
from ssl_diffusion.evaluation.grids import Basis, GridSet
from ssl_diffusion.evaluation.inputs import writable_folder
from ssl_diffusion.evaluation.machine import hardware, versions
from ssl_diffusion.evaluation.prior_figures import coherence_figure, grids_sheet
from ssl_diffusion.evaluation.prior_measures import Sampled, agreement, finite, set_numbers
from ssl_diffusion.evaluation.prior_page import html_page
from ssl_diffusion.evaluation.prior_samples import sample_sets
from ssl_diffusion.evaluation.real_grids import RealGrids, read_real, window_count, windows
from ssl_diffusion.evaluation.written import write_files
from ssl_diffusion.prior.captions import read_captions
from ssl_diffusion.prior.model import Prior, load_prior

FLAGS = flags.FlagValues()
MODEL = flags.DEFINE_string("model", None, "prior's folder", required=True, flag_values=FLAGS)
RECORDS = flags.DEFINE_string(
    "records", None, "records the prior was trained on", required=True, flag_values=FLAGS
)
OUTPUT = flags.DEFINE_string(
    "output", None, "folder to write the report into", required=True, flag_values=FLAGS
)
SAMPLES = flags.DEFINE_integer(
    "samples", 64, "grids of each condition", lower_bound=2, flag_values=FLAGS
)
ROWS = flags.DEFINE_integer(
    "rows", None, "cells of a grid; the prior's window", lower_bound=1, flag_values=FLAGS
)
COLS = flags.DEFINE_integer(
    "cols", None, "cells of a grid; the prior's window", lower_bound=1, flag_values=FLAGS
)
CAPTIONS = flags.DEFINE_string(
    "captions", None, "JSON: class -> [sentence, ...], not those of training", flag_values=FLAGS
)
TEXT_ENCODER = flags.DEFINE_string(
    "text_encoder", None, "its folder; as the prior says by default", flag_values=FLAGS
)
SEED = flags.DEFINE_integer(
    "seed", 0, "of the samples", lower_bound=0, upper_bound=2**31, flag_values=FLAGS
)


def main() -> None:
    """Reads and checks everything, samples, measures, writes."""
    start = time.perf_counter()
    output = writable_folder(OUTPUT.value)
    prior = load_prior(MODEL.value, text_encoder=TEXT_ENCODER.value)
    records = open_records(RECORDS.value)
    check_records(prior, records)
    remarks: list[str] = []
    classes = classes_of(prior, records)
    captions = captions_of(prior, classes, remarks)
    if "vector" in prior.spec["conditions"]:
        remarks.append("The prior takes vectors; that was not measured.")
    rows, cols = ROWS.value or prior.window, COLS.value or prior.window
    grids = open_grids(records, max(rows, cols), ("train", "test"))
    train, held_out = (
        read_real(grids[name], rows, cols, kinds=tuple(classes), clusters=prior.clusters)
        for name in ("train", "test")
    )
    sets = sample_sets(prior, classes, captions, train, held_out, SAMPLES.value, SEED.value)
    sampling_seconds = time.perf_counter() - start

    for one in sets:
        if not one.comparable and one.kind != "cell_text":
            remarks.append(
                f"{one.name}: {len(one.train)} training and {len(one.held_out)} held-out grids, "
                "too few to compare samples with."
            )
    compared = [one for one in sets if one.comparable]
    numbers, curves = {}, {}
    for one in tqdm(compared, desc="against real grids", unit="set"):
        numbers[one.name], curves[one.name] = set_numbers(one)
    add_copying(numbers, compared, train, grids["train"])
    if window_count(grids["train"]) < len(grids["train"]):
        remarks.append(
            f"Copies were looked for in {window_count(grids['train']):,} of "
            f"{len(grids['train']):,} training windows, spread over all."
        )
    report = {
        "rows": rows,
        "cols": cols,
        "samples": SAMPLES.value,
        "seed": SEED.value,
        "grids": {"train": len(train.grids), "held_out": len(held_out.grids)},
        "windows": window_count(grids["train"]),
        "agreement": agreement(sets, classes, train, held_out),
        "sets": numbers,
        "remarks": remarks,
    }
    total = time.perf_counter() - start
    report["seconds"] = {
        "read and sample": sampling_seconds,
        "measure": total - sampling_seconds,
        "total": total,
    }
    report |= {"hardware": hardware(), "versions": versions()}
    palette = prior.spec["conditions"].get("label_map", {}).get("colours", ())
    pictures = {
        "grids.png": png_bytes(grids_sheet(compared, Basis.of(train.grids.flat(), 3), palette)),
        "coherence.png": coherence_figure(curves),
    }
    settings = {"prior": prior.spec, "records": records.metadata["recipe"], "captions": captions}
    report = finite(report)
    write_files(output, report, pictures, html_page(report, pictures, settings))
    logging.info("report: %s", output / "report.html")


def check_records(prior: Prior, records: Records) -> None:
    """Raises InputError unless the records hold the embeddings that the prior makes."""
    if absent := [split for split in ("train", "test") if not records.count(split)]:
        raise InputError(
            f"records in {records.folder} have no split {absent[0]!r}; a prior is measured with "
            "those it was trained on and with others"
        )
    found, expected = records.shape("embedding"), (prior.tokens, prior.dim)
    if found != expected:
        raise InputError(
            f"records with embeddings of shape {list(found)}; the prior makes {list(expected)}: "
            "use the records it was trained on"
        )
    encoder = records.metadata["recipe"].get("encoder_sha256")
    if prior.spec["encoder_sha256"] not in (None, encoder):
        raise InputError(
            "the records' embeddings are of another encoder than the prior makes; use the records "
            "it was trained on"
        )
    if records.metadata["patch_px"] != prior.spec["patch_px"]:
        raise InputError(
            f"records of {records.metadata['patch_px']} px patches; the prior makes embeddings of "
            f"{prior.spec['patch_px']} px: use the records it was trained on"
        )
    if records.metadata["mpp"] != prior.spec["mpp"]:
        raise InputError(
            f"records at {records.metadata['mpp']} µm per pixel, a prior at {prior.spec['mpp']}; "
            "use the records it was trained on"
        )
    known, labels = prior.spec["labels"], [*(records.metadata.get("classes") or ())]
    if known != labels:
        raise InputError(
            f"records with the classes {', '.join(labels) or 'none'}; those that the prior was "
            f"trained on had {', '.join(known) or 'none'}: use these"
        )


def classes_of(prior: Prior, records: Records) -> dict[str, list[str]]:
    """By kind, the classes that cells are judged by: labels, and those of label maps."""
    conditions = prior.spec["conditions"]
    classes = {"label": [*(records.metadata.get("classes") or ())]}
    if "label_map" in conditions:
        classes["label_map"] = [*conditions["label_map"]["classes"]]
    return classes


def captions_of(
    prior: Prior, classes: Mapping[str, list[str]], remarks: list[str]
) -> dict[str, list[str]]:
    """Sentences by label or class of a label map; that there are none is remarked."""
    takes_text = "text" in prior.spec["conditions"]
    if not CAPTIONS.value:
        if takes_text:
            remarks.append("The prior takes text; without --captions that was not measured.")
        return {}
    if not takes_text:
        raise InputError(
            f"--captions={CAPTIONS.value}, but this prior was not trained with text; leave it out"
        )
    captions = read_captions(CAPTIONS.value, [name for names in classes.values() for name in names])
    return {name: said for name, said in captions.items() if said}


def add_copying(
    numbers: dict[str, Any], compared: list[Sampled], train: RealGrids, grids: Grids
) -> None:
    """Adds the section `copying` to each set; the training windows are gone through once."""
    # Samples get the holes of held-out grids: over fewer cells a nearer neighbour is found.
    queries = [one.grids.masked_as(one.held_out) for one in compared]
    queries += [one.held_out for one in compared]
    every = GridSet(
        np.concatenate([one.cells for one in queries]),
        np.concatenate([one.present for one in queries]),
    )
    centre = train.grids.flat().mean(axis=0, dtype=np.float64)
    rows, cols = every.present.shape[1:]
    with tqdm(total=window_count(grids), desc="copies", unit="window") as bar:

        def counted():
            for chunk in windows(grids, rows, cols):
                yield chunk
                bar.update(len(chunk))

        distance = nearest_grids(every, counted(), centre).distance
    parts = np.split(distance, np.cumsum([len(one) for one in queries])[:-1])
    for one, samples, real in zip(
        compared, parts[: len(compared)], parts[len(compared) :], strict=True
    ):
        numbers[one.name]["copying"] = copying_numbers(samples, real)


if __name__ == "__main__":
    cli.run(main, FLAGS)
