"""What is compared, read and checked: real records, synthetic ones made of them, and labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from ssl_diffusion.augmentation.arms import Pool
from ssl_diffusion.augmentation.examples import Examples
from ssl_diffusion.augmentation.pixel_labels import Labels, read_labels
from ssl_diffusion.augmentation.places import Places, read_places
from ssl_diffusion.augmentation.variations import NONE, Variations, read_variations
from ssl_diffusion.augmentation.writing import TOLD
from ssl_diffusion.data.records import Records
from ssl_diffusion.errors import InputError


@dataclass(frozen=True)
class Comparison:
    """Everything that classifiers are trained on and tested with.

    Attributes:
      pool: real patches that have variations, and what was made of them.
      test: source of the test patches' images, `rows` those that have a label, `label` theirs.
      units: number of the slide, block or patch that each of these is resampled with.
      unit: what that is.
      names: of the classes.
      facts: for the report.
      remarks: what a reader has to know, sentences.
    """

    pool: Pool
    test: Examples
    rows: Int[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]
    units: Int[np.ndarray, " n"]
    unit: str
    names: tuple[str, ...]
    facts: dict[str, Any]
    remarks: list[str]


def read_comparison(real: Records, synthetic: Records, kind: str, seed: int = 0) -> Comparison:
    """Reads and checks all; images are read later, as they are needed.

    Args:
      real: records with splits train and test.
      synthetic: from `augment`, of the same.
      kind: of labels, see `read_labels`.
      seed: of the ordinary views.

    Raises:
      InputError: synthetic patches that were made of other records, or of patches that are not for
        training; labels other than those that variations were made within; one class only.
    """
    told = check_provenance(real, synthetic, kind)
    wanted = read_variations(synthetic.folder)
    places = {split: read_places(real, split) for split in ("train", "test")}
    check_places(synthetic, wanted, places)
    labels, settings = read_labels(real, kind)
    train, test = labels["train"], labels["test"]
    originals = np.unique(wanted.original)
    originals = originals[train.index[originals] >= 0]
    known = np.flatnonzero((test.index >= 0) & np.isin(test.index, train.index[originals]))
    for where, index in (("varied training", train.index[originals]), ("test", test.index[known])):
        _check_classes(train.names, index, where, kind)
    varied = np.searchsorted(originals, wanted.original)
    inside = np.isin(wanted.original, originals)
    groups = places["train"].slides
    if len(np.unique(groups[originals])) < 3:  # too few slides to choose a penalty by
        groups = places["train"].blocks
    pool = Pool(
        real=real.source("train", ("image",)),
        synthetic=synthetic.source("train", ("image",)),
        originals=originals,
        varied=np.where(inside, varied, NONE),
        label=train.index[originals],
        group=groups[originals],
        seed=seed,
    )
    at = _at(places["test"], known)
    unit, units = at.units()
    unseen = not set(places["test"].slide) & set(places["train"].slide)
    facts = {
        "labels": settings,
        "classes": list(train.names),
        "train": {"patches": len(originals), "counts": _counts(train, originals)},
        "test": {"patches": len(known), "counts": _counts(test, known)},
        "test_slides": len(set(at.slide)),
        "test_slides_unseen": unseen,
        "split_by": real.metadata.get("split_by"),
        "bootstrap_over": unit,
        "bootstrap_units": len(np.unique(units)),
        "variations": int(inside.sum()),
        "augmentation": told,
    }
    remarks = _remarks(facts, told, real, train)
    source = real.source("test", ("image",))
    return Comparison(
        pool, source, known, test.index[known], units, unit, train.names, facts, remarks
    )


def check_provenance(real: Records, synthetic: Records, kind: str) -> dict[str, Any]:
    """How the synthetic patches were made; InputError unless they are training patches' of `real`.

    Those that were interpolated or drawn within classes have to be judged by these classes.
    """
    told = synthetic.metadata.get(TOLD)
    if not told:
        raise InputError(
            f"{synthetic.folder} holds no variations; make them with python -m "
            "ssl_diffusion.augment"
        )
    if told["recipe"] != real.metadata["recipe"]:
        raise InputError(
            f"the variations in {synthetic.folder} were made of other records than "
            f"{real.folder}; compare them with those"
        )
    if told["split"] != "train":
        raise InputError(
            f"the variations in {synthetic.folder} were made of split {told['split']!r}: who is "
            "trained on them knows what is tested; make them of split 'train'"
        )
    if told["how"] != "same" and told["labels"] != kind:
        raise InputError(
            f"the variations in {synthetic.folder} were made within classes of "
            f"{told['labels']!r}; take --labels={told['labels']}, or augment with --labels={kind}"
        )
    return told


def check_places(synthetic: Records, wanted: Variations, places: dict[str, Places]) -> None:
    """Raises InputError unless each variation is where its original is, and no test patch is."""
    own, train, test = read_places(synthetic, "train"), places["train"], places["test"]
    if len(wanted) != len(own.x) or wanted.original.max(initial=-1) >= len(train.x):
        raise InputError(
            f"{synthetic.folder} has {len(own.x)} patches, {len(wanted)} in its list of "
            f"variations of {len(train.x)} patches; make them again"
        )
    rows = wanted.original
    same = (own.source == train.source[rows]) & (own.x == train.x[rows]) & (own.y == train.y[rows])
    if not same.all():
        row = int(np.flatnonzero(~same)[0])
        raise InputError(
            f"synthetic patch {row} is of {own.source[row]}, its original of "
            f"{train.source[rows[row]]} or elsewhere; make the variations again of these records"
        )
    tested = set(zip(test.source, test.x, test.y, strict=True))
    used = set(zip(own.source, own.x, own.y, strict=True))
    if shared := tested & used:
        raise InputError(
            f"{len(shared)} synthetic patches are of test patches (first {min(shared)[0]}): who is "
            "trained on them knows what is tested; make them of split 'train'"
        )


def _at(places: Places, rows: Int[np.ndarray, " n"]) -> Places:
    return Places(
        places.source[rows], places.x[rows], places.y[rows], places.slide[rows], places.block_px
    )


def _check_classes(names: tuple[str, ...], index: np.ndarray, where: str, kind: str) -> None:
    found = [names[c] for c in np.unique(index)]
    if len(found) < 2:
        raise InputError(
            f"{where} patches of {len(found)} class ({', '.join(found) or 'none'}) by "
            f"--labels={kind}; expected two or more to tell apart"
        )


def _counts(labels: Labels, rows: Int[np.ndarray, " n"]) -> dict[str, int]:
    return Labels(labels.names, labels.index[rows]).counts()


def _remarks(
    facts: dict[str, Any], told: dict[str, Any], real: Records, train: Labels
) -> list[str]:
    """What a reader has to know, from whether slides are unseen to what was left out."""
    remarks = []
    if facts["test_slides_unseen"]:
        remarks.append(f"Test patches are of {facts['test_slides']} slides that no one trained on.")
    else:
        remarks.append(
            "Test patches are of blocks that were held out of slides that are trained on: scores "
            "tell nothing of other slides."
        )
    if facts["test_slides_unseen"] and facts["bootstrap_over"] != "slides":
        remarks.append(
            f"{facts['test_slides']} test slides are too few to resample: intervals are over "
            f"{facts['bootstrap_over']} and do not hold how slides differ."
        )
    if facts["bootstrap_over"] == "patches":
        remarks.append(
            "There are too few slides and blocks to resample: intervals are over patches, as if "
            "neighbours were independent, and too narrow."
        )
    if told["how"] != "same":
        remarks.append(
            "Variations were made with the labels of all training patches: at fractions below 1 "
            "the synthetic arms have seen more labels than the real one."
        )
    split = told.get("model_split_sha256")
    if split != real.metadata.get("split_sha256"):
        remarks.append(
            "The generator was trained elsewhere or by another split: it may know test patches, "
            "if it has seen these slides at all."
        )
    if left_out := int((train.index < 0).sum()):
        remarks.append(f"{left_out:,} training patches without a label were left out.")
    return remarks
