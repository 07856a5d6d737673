"""Measures what synthetic slides bring to attention MIL, and writes the report.

python -m ssl_diffusion.evaluate_mil --records=DIR --synthetic=DIR --output=DIR \\
    --fractions=0.01,0.1,1 --models=abmil,clam_sb,dsmil --seeds=3

Every model is trained on a fraction of the real training slides; on these and the synthetic slides
made of them; on the synthetic ones alone; and on the real ones and as many ordinary variations of
them (flips, turns, crops and colours of every patch, embedded again by the records' encoder). All
are tested on the real slides of the split test. Synthetic slides are those of augment_slides; one
is used where all slides that it is made of are among those trained on. Writes report.json,
report.html (self-contained), auc.png and attention.png.
"""

import logging
import time
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from ssl_diffusion import cli
from ssl_diffusion.data.records import Records, open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.inputs import writable_folder
from ssl_diffusion.evaluation.machine import hardware, versions
from ssl_diffusion.files import replacing, write_json
from ssl_diffusion.mil.bags import PLANTED, SYNTHETIC, Bag, check_classes, read_bags
from ssl_diffusion.mil.experiment import REAL, Slides, Trial, chosen_slides, run_trial
from ssl_diffusion.mil.figures import attention_figure, scores_figure
from ssl_diffusion.mil.fit import Settings
from ssl_diffusion.mil.networks import MODELS
from ssl_diffusion.mil.ordinary import ORDINARY, ordinary_copies
from ssl_diffusion.mil.page import html_page
from ssl_diffusion.mil.scores import supervised_recovery
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
MODELS_ASKED = flags.DEFINE_list("models", [*MODELS], "to train", flag_values=FLAGS)
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
    fractions = read_fractions()
    if unknown := [name for name in MODELS_ASKED.value if name not in MODELS]:
        raise InputError(f"--models has {unknown[0]!r}; expected some of {', '.join(MODELS)}")
    records, synthetic = open_records(RECORDS.value), open_records(SYNTHETICS.value)
    check_records(records, synthetic)
    remarks: list[str] = []
    slides = read_slides(records, synthetic, remarks)
    settings = Settings(steps=STEPS.value)
    read_seconds = time.perf_counter() - start

    trials, told = [], []
    arms = 4 if slides.ordinary else 3
    total = len(fractions) * len(MODELS_ASKED.value) * arms * SEEDS.value
    with tqdm(total=total, desc="trainings", unit="training") as bar:
        for fraction in fractions:
            count = len(chosen_slides(slides.real, fraction, 0))
            if count != round(fraction * len(slides.real)):
                remarks.append(
                    f"{fraction:.3g} of {len(slides.real)} slides became {count}: whole slides, "
                    "and one of each class or more."
                )
            for model in MODELS_ASKED.value:
                trials.append(run_trial(model, fraction, slides, SEEDS.value, settings, bar))
                told.append(trials[-1].numbers(slides.test) | {"real_slides": count})
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
        "remarks": [*remarks, *limits(records)],
        "seconds": {"read": read_seconds, "total": time.perf_counter() - start},
        "hardware": hardware(),
        "versions": versions(),
        "settings": {
            "training": settings._asdict(),
            "ordinary augmentation": ORDINARY,
            "synthetic slides": synthetic.metadata[SYNTHETIC],
            "planted": records.metadata.get(PLANTED),
            "records": records.metadata["recipe"],
        },
    }
    pictures = {"auc.png": scores_figure(told, "auc", "AUC")}
    pictures["attention.png"] = attention_picture(records, slides, trials, max(fractions))
    write_report(output, report, pictures)
    logging.info("report: %s", output / "report.html")


def read_fractions() -> list[float]:
    """The flag; InputError unless they are numbers above 0, up to 1."""
    try:
        fractions = [float(text) for text in FRACTIONS.value]
    except ValueError:
        fractions = []
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise InputError(
            f"--fractions={','.join(FRACTIONS.value)}; expected numbers above 0 up to 1, as 0.1,1"
        )
    return fractions


def check_records(records: Records, synthetic: Records) -> None:
    """Raises InputError unless the synthetic slides are some of these records' training slides."""
    if SYNTHETIC not in synthetic.metadata:
        raise InputError(
            f"{synthetic.folder} holds no synthetic slides; make them by "
            "ssl_diffusion.augment_slides"
        )
    for name in ("classes", "embedding", "patch_px"):
        ours, theirs = records.metadata.get(name), synthetic.metadata.get(name)
        if ours != theirs:
            raise InputError(
                f"real slides with {name} {ours}, synthetic ones with {theirs}; make the synthetic "
                "ones of these records"
            )


def read_slides(records: Records, synthetic: Records, remarks: list[str]) -> Slides:
    """All slides; the ordinary variations, as many of each as there are synthetic ones."""
    classes = records.metadata["classes"]
    real, test = read_bags(records, "train"), read_bags(records, "test")
    made = read_bags(synthetic, "train")
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
        per_slide = synthetic.metadata[SYNTHETIC]["per_slide"]
        ordinary = ordinary_copies(records, "train", real, load_encoder(encoder), per_slide, 0)
    else:
        remarks.append(
            "The records have no encoder beside them, so there was no ordinary augmentation to "
            "compare with."
        )
    return Slides(real, made, ordinary, test, classes)


def limits(records: Records) -> list[str]:
    """What the numbers do not say."""
    found = [
        "All trainings have as many steps, whatever they are trained on, and no slides to choose a "
        "step by.",
        "The encoder and the generator may have seen patches of all training slides, without "
        "labels; a fraction is of labelled slides.",
    ]
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
    by_class = [
        [i for i, bag in enumerate(slides.test) if bag.label == label][:SHOWN]
        for label in reversed(range(len(slides.classes)))
    ]
    shown = [index for indices in by_class for index in indices]
    maps = {
        trial.model: [trial.first[REAL][i].attention[:, slides.test[i].label] for i in shown]
        for trial in trials
        if trial.fraction == fraction
    }
    bags = [slides.test[index] for index in shown]
    return attention_figure(records, "test", bags, maps, slides.classes)


def write_report(output: Path, report: dict[str, Any], pictures: dict[str, bytes]) -> None:
    """All files; the page last, so that a page never stands beside numbers of another run."""
    for name, content in pictures.items():
        with replacing(output / name) as temporary:
            temporary.write_bytes(content)
    write_json(output / "report.json", report)
    with replacing(output / "report.html") as temporary:
        temporary.write_text(html_page(report, pictures), encoding="utf-8")


if __name__ == "__main__":
    cli.run(main, FLAGS)
