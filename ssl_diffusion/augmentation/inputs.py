"""What is compared, read and checked: real records, synthetic ones made of them, and labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from ssl_diffusion.augmentation.arms import KEEPING, VIEW, Pool
from ssl_diffusion.augmentation.examples import Examples
from ssl_diffusion.augmentation.pixel_labels import MEASURES, Labels, read_labels
from ssl_diffusion.augmentation.places import Places, read_places
from ssl_diffusion.augmentation.variations import NONE, Variations, read_variations
from ssl_diffusion.augmentation.writing import TOLD, difference
from ssl_diffusion.data.records import Records
from ssl_diffusion.errors import InputError


@dataclass(frozen=True)
class Comparison:
    """Everything that classifiers are trained on and tested with.

    Attributes:
      pool: real patches that have variations, and what was made of them.
      test: source of the test patches' images, `rows` those that have a label, `label` theirs.
      units: number of the slide, block or patch that each of these is resampled with.
      names: of the classes.
      facts: for the report.
      remarks: what a reader has to know, sentences.
    """

    pool: Pool
    test: Examples
    rows: Int[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]
    units: Int[np.ndarray, " n"]
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
    varied, partner = (_place(originals, rows) for rows in (wanted.original, wanted.partner))
    # Whose partner is none of the labelled patches knows a label that no other arm knows.
    varied[(wanted.partner != NONE) & (partner == NONE)] = NONE
    groups = places["train"].slides
    if len(np.unique(groups[originals])) < 3:  # too few slides to choose a penalty by
        groups = places["train"].blocks
    pool = Pool(
        real=real.source("train", ("image",)),
        synthetic=synthetic.source("train", ("image",)),
        originals=originals,
        varied=varied,
        partner=partner,
        label=train.index[originals],
        group=groups[originals],
        view=KEEPING if kind in MEASURES else VIEW,
        seed=seed,
    )
    at = _at(places["test"], known)
    unit, units = at.units(test.index[known])
    unseen = not set(places["test"].slide) & set(places["train"].slide)
    facts = {
        "labels": settings,
        "classes": list(train.names),
        "train": {"patches": len(originals), "counts": _counts(train, originals)},
        "test": {
            "patches": len(known),
            "counts": _counts(test, known),
            "unlabelled": int((test.index < 0).sum()),
            "of_other_classes": int((test.index >= 0).sum()) - len(known),
        },
        "test_slides": len(set(at.slide)),
        "test_slides_unseen": unseen,
        "split_by": real.metadata.get("split_by"),
        "bootstrap_over": unit,
        "bootstrap_units": len(np.unique(units)),
        "variations": int((varied != NONE).sum()),
        "variations_left_out": int((varied == NONE).sum()),
        "augmentation": told,
    }
    remarks = _remarks(facts, told, real, train)
    source = real.source("test", ("image",))
    return Comparison(pool, source, known, test.index[known], units, train.names, facts, remarks)


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
    if differing := difference(told["recipe"], real.metadata["recipe"]):
        raise InputError(
            f"the variations in {synthetic.folder} were made of other records than "
            f"{real.folder} ({differing}); compare them with those"
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


def _place(originals: Int[np.ndarray, " n"], rows: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
    """Where each of `rows` is in `originals`, NONE where it is not."""
    place = np.minimum(np.searchsorted(originals, rows), len(originals) - 1)
    return np.where(originals[place] == rows, place, NONE)


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
    remarks.append(
        "However variations were made, the generator has seen all training patches of its own, "
        "without their labels: at every share it knows more images than the real arm."
    )
    if told["how"] == "prior":
        remarks.append(
            "The prior was trained on the labels of all its training patches: at fractions below 1 "
            "the synthetic arms have seen more labels than the real one."
        )
        if told.get("prior_split_sha256") != real.metadata.get("split_sha256"):
            remarks.append(
                "The prior was trained elsewhere or by another split: it may know test patches and "
                "their labels, if it has seen these slides at all."
            )
    if told["how"] == "interpolate":
        remarks.append(
            "An interpolated patch counts only where both of its ends are labelled: at fractions "
            "below 1 fewer are left than originals times variations, and as few ordinary views."
        )
    split = told.get("model_split_sha256")
    if split != real.metadata.get("split_sha256"):
        remarks.append(
            "The generator was trained elsewhere or by another split: it may know test patches, "
            "if it has seen these slides at all."
        )
    if facts["labels"]["kind"] == "haematoxylin":
        remarks.append(
            "Haematoxylin is measured by colour deconvolution, for patches stained with H&E; of "
            "other images the labels mean some colour, and no stain."
        )
    test = facts["test"]
    for count, what in (
        (int((train.index < 0).sum()), "training patches without a label"),
        (test["unlabelled"], "test patches without a label"),
        (test["of_other_classes"], "test patches of classes that no varied patch has"),
        (facts["variations_left_out"], "variations of patches (or towards such) without a label"),
    ):
        if count:
            remarks.append(f"{count:,} {what} were left out.")
    return remarks
