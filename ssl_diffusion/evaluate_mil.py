"""Measures what synthetic slides bring to attention MIL, and writes the report.

python -m ssl_diffusion.evaluate_mil --records=DIR --synthetic=DIR --output=DIR \\
    --fractions=0.01,0.1,1 --models=abmil,clam_sb,dsmil --seeds=3

Every model is trained on a fraction of the real training slides; on these and the synthetic slides
made of them; on the synthetic ones alone; and on the real ones and as many ordinary variations of
them (flips, turns, crops and colours of every patch, embedded again by the records' encoder). All
are tested on the real slides of the split test, none of which shares a slide or patient with them.
Synthetic slides are those of augment_slides; one is used where all slides that it is made of are
among those trained on. Writes report.json, report.html (self-contained), auc.png and attention.png.

What came of every training is kept in OUTPUT/trainings: the same command goes on where it was
stopped, and trains again only what has changed.
"""

import logging
import time

import numpy as np
from absl import flags
from tqdm import tqdm

from ssl_diffusion import cli
from ssl_diffusion.data.groups import group_of
from ssl_diffusion.data.records import SOURCES, Records, open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.fractions import parse_fractions
from ssl_diffusion.evaluation.inputs import writable_folder
from ssl_diffusion.evaluation.machine import hardware, versions
from ssl_diffusion.evaluation.written import write_page
from ssl_diffusion.files import read_json_lines, sha256, write_json
from ssl_diffusion.mil.bags import PLANTED, SYNTHETIC, Bag, check_classes, read_bags
from ssl_diffusion.mil.experiment import ARMS, REAL, Slides, Trial, chosen_slides, run_trial
from ssl_diffusion.mil.figures import attention_figure, scores_figure
from ssl_diffusion.mil.fit import Settings
from ssl_diffusion.mil.networks import MODELS
from ssl_diffusion.mil.ordinary import ordinary_copies, view_of
from ssl_diffusion.mil.page import html_page
from ssl_diffusion.mil.scores import supervised_recovery
from ssl_diffusion.mil.synthetic import cells_of
from ssl_diffusion.weights.encoder import load_encoder

FLAGS = flags.FlagValues()
RECORDS = flags.DEFINE_string(
    "records", None, "labelled records, one class a source", required=True, flag_values=FLAGS
)
SYNTHETICS = flags.DEFINE_string(
    "synthetic", None, "records of augment_slides", required=True, flag_values=FLAGS
)
OUTPUT = flags.DEFINE_string(
    "output", None, "folder to write the report into", required=True, flag_values=FLAGS
)
FRACTIONS = flags.DEFINE_list(
    "fractions", ["0.01", "0.1", "1"], "of the real training slides", flag_values=FLAGS
)
MODELS_ASKED = flags.DEFINE_list(
    "models", ["abmil", "clam_sb", "dsmil"], f"to train, of {', '.join(MODELS)}", flag_values=FLAGS
)
SEEDS = flags.DEFINE_integer(
    "seeds", 3, "trainings of each; each draws other slides", lower_bound=1, flag_values=FLAGS
)
STEPS = flags.DEFINE_integer(
    "steps", Settings().steps, "of every training", lower_bound=1, flag_values=FLAGS
)
SHOWN = 2  # slides of each class whose attention is drawn


def main() -> None:
    """Reads and checks everything, trains, measures, writes."""
    start = time.perf_counter()
    output = writable_folder(OUTPUT.value)
    fractions, models = parse_fractions(FRACTIONS.value), read_models()
    records = open_records(RECORDS.value)
    made = "Make them with python -m ssl_diffusion.augment_slides."
    synthetic = open_records(SYNTHETICS.value, made)
    check_records(records, synthetic)
    remarks: list[str] = []
    slides = read_slides(records, synthetic, remarks)
    settings = Settings(steps=STEPS.value)
    read_seconds = time.perf_counter() - start

    trials, told = [], []
    arms = 4 if slides.ordinary else 3
    total = len(fractions) * len(models) * arms * SEEDS.value
    with tqdm(total=total, desc="trainings", unit="training") as bar:
        for fraction in fractions:
            count = len(chosen_slides(slides.real, fraction, 0))
            if count != round(fraction * len(slides.real)):
                remarks.append(
                    f"{100 * fraction:g} % of {len(slides.real)} slides became {count}: whole "
                    "slides, and one of each class or more."
                )
            if count == len(slides.real) and SEEDS.value > 1:
                remarks.append(
                    f"At {100 * fraction:g} % all seeds train on the same slides: intervals hold "
                    "the luck of training and of the test slides, not that of the training slides."
                )
            for model in models:
                kept = output / "trainings"
                trial = run_trial(model, fraction, slides, SEEDS.value, settings, bar, kept)
                trials.append(trial)
                told.append(trial.numbers(slides.test) | {"real_slides": count})
            remarks.extend(left_out(trials[-1]))
    told_instances = supervised_recovery(slides.real, slides.test)
    report = {
        "told_instances": told_instances and {k: vars(v) for k, v in told_instances.items()},
        "slides": {
            "real": len(slides.real),
            "synthetic": len(slides.synthetic),
            "ordinary": len(slides.ordinary),
            "test": len(slides.test),
        },
        "seeds": SEEDS.value,
        "trials": told,
        "remarks": [*remarks, *limits(records, synthetic)],
        "seconds": {"read": read_seconds, "total": time.perf_counter() - start},
        "hardware": hardware(),
        "versions": versions(),
        "settings": {
            "training": settings._asdict(),
            "ordinary augmentation": dict(view_of(records)),
            "synthetic slides": synthetic.metadata[SYNTHETIC],
            "planted": records.metadata.get(PLANTED),
            "records": records.metadata["recipe"],
        },
    }
    write_json(output / "report.json", report)  # first: pictures may fail
    pictures = {"auc.png": scores_figure(told, "auc", "AUC")}
    pictures["attention.png"] = attention_picture(records, slides, trials, max(fractions))
    write_page(output, pictures, html_page(report, pictures))
    logging.info("report: %s", output / "report.html")


def read_models() -> list[str]:
    """The flag, each once; InputError for none, or one that is unknown."""
    models = list(dict.fromkeys(MODELS_ASKED.value))
    if not models or not set(models) <= set(MODELS):
        raise InputError(f"--models={','.join(models)}; expected some of {', '.join(MODELS)}")
    return models


def check_records(records: Records, synthetic: Records) -> None:
    """Raises InputError unless the synthetic slides are some of these records' training slides."""
    if SYNTHETIC not in synthetic.metadata:
        raise InputError(
            f"{synthetic.folder} holds no synthetic slides; make them by "
            "ssl_diffusion.augment_slides"
        )
    theirs = synthetic.metadata[SYNTHETIC]["records_sha256"]
    if theirs != (ours := sha256(records.folder / "dataset_info.json")):
        raise InputError(
            f"{synthetic.folder} holds synthetic slides of other records (dataset_info.json with "
            f"SHA-256 {theirs[:12]}) than {records.folder} ({ours[:12]}); make them of these"
        )
    for name in ("classes", "embedding", "patch_px"):
        ours, theirs = records.metadata.get(name), synthetic.metadata.get(name)
        if ours != theirs:
            raise InputError(
                f"real slides with {name} {ours}, synthetic ones with {theirs}; make the synthetic "
                "ones of these records"
            )


def read_slides(records: Records, synthetic: Records, remarks: list[str]) -> Slides:
    """All slides; an ordinary variation for each synthetic one."""
    classes = records.metadata["classes"]
    real, test = read_bags(records, "train"), read_bags(records, "test")
    made = read_bags(synthetic, "train")
    check_apart(records, real, test)
    check_classes(real, classes, "the split train")
    check_classes(test, classes, "the split test")
    check_classes(made, classes, "--synthetic")
    known = {bag.name for bag in real}
    if strangers := [bag for bag in made if not known.issuperset(bag.parents)]:
        raise InputError(
            f"{strangers[0].name} is made of {', '.join(strangers[0].parents)}, of which some are "
            "no training slides here; make the synthetic slides of these records"
        )
    ordinary: list[Bag] = []
    encoder = records.folder / "encoder"
    if encoder.is_dir():
        ordinary = ordinary_copies(
            records, "train", real, made, load_encoder(encoder), view_of(records), 0
        )
    else:
        remarks.append(
            "The records have no encoder beside them, so there was no ordinary augmentation to "
            "compare with."
        )
    px = records.metadata["patch_px"]
    if any(len(cells_of(bag, px).patches) < len(bag) for bag in real):
        remarks.append(
            "The records' patches overlap. Synthetic slides and ordinary variations hold the "
            "patches of one lattice, side by side; real slides hold all."
        )
    by_class = [
        [i for i, bag in enumerate(test) if bag.label == label][:SHOWN]
        for label in reversed(range(len(classes)))
    ]
    return Slides(real, made, ordinary, test, classes, sum(by_class, []))


def check_apart(records: Records, real: list[Bag], test: list[Bag]) -> None:
    """Raises InputError if a test slide, or another one of its patient, is trained on."""
    groups = {one["source"]: one["group"] for one in read_json_lines(records.folder / SOURCES)}

    def of(bag: Bag) -> str:
        return groups.get(bag.name) or group_of(bag.name)

    trained = {of(bag): bag.name for bag in real}
    if shared := [bag for bag in test if of(bag) in trained]:
        raise InputError(
            f"{shared[0].name} is in the split test, and {trained[of(shared[0])]} in train, which "
            f"is of the same {of(shared[0])}; {len(shared)} of {len(test)} test slides are such: "
            "prepare the records with whole sources held out, --split=sources"
        )


def left_out(trial: Trial) -> list[str]:
    """A remark on what is not compared at a fraction."""
    missing = [name for arm, name in ARMS.items() if arm not in trial.arms]
    if not missing:
        return []
    return [
        f"At {100 * trial.fraction:g} %, left out: {', '.join(missing)}. In some draw of real "
        "slides there were no synthetic ones, or none of some class, all of whose parents were "
        "drawn (--interpolate of augment_slides gives a slide several)."
    ]


def limits(records: Records, synthetic: Records) -> list[str]:
    """What the numbers do not say."""
    found = [
        "All trainings have as many steps, whatever they are trained on, and no slides to choose a "
        "step by.",
        "The encoder and the generator may have seen patches of all training slides, without "
        "labels; a fraction is of labelled slides.",
    ]
    split = synthetic.metadata[SYNTHETIC].get("model_split_sha256")
    if split is None or split != records.metadata.get("split_sha256"):
        found.append(
            "The generator was trained elsewhere or by another split: it may know test slides, "
            "without labels."
        )
    if PLANTED in records.metadata:
        found.append(
            "Slides are mosaics of real patches with a planted region, drawn with replacement: a "
            "check of the method, not a diagnosis. Test slides share patches with each other, "
            "which the intervals do not know."
        )
    return found


def attention_picture(
    records: Records, slides: Slides, trials: list[Trial], fraction: float
) -> bytes:
    """Some test slides of each class, the last class first, with the attention of each model."""
    bags = [slides.test[index] for index in slides.shown]
    ends = np.cumsum([len(bag) for bag in bags])[:-1]
    maps = {
        trial.model: np.split(trial.arms[REAL][0].attention, ends)
        for trial in trials
        if trial.fraction == fraction
    }
    return attention_figure(records, "test", bags, maps, slides.classes)


if __name__ == "__main__":
    cli.run(main, FLAGS)
