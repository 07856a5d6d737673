"""Bags: the embeddings of a slide's patches under one label, out of records.

CLAM's and TRIDENT's .h5 features become records by `ssl_diffusion.prepare`, and so bags here.
"""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from ssl_diffusion.data.records import Records
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.features import one_vector

PLANTED, SYNTHETIC = "planted", "synthetic"  # sections of the records' metadata


@dataclasses.dataclass(frozen=True)
class Bag:
    """One slide.

    name       its source in the records
    label      index of its class
    features   of its patches, the tokens of each end to end
    x, y       corners of its patches, pixels at the records' resolution
    rows       its patches in the split of the records
    planted    which patches make the label, where that is known (`planted` in the records'
               metadata); None elsewhere
    parents    the real slides it was made of; itself where it is one
    """

    name: str
    label: int
    features: Float[np.ndarray, "n d"]
    x: Int[np.ndarray, " n"]
    y: Int[np.ndarray, " n"]
    rows: Int[np.ndarray, " n"]
    planted: Bool[np.ndarray, " n"] | None
    parents: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.features)


def read_bags(records: Records, split: str) -> list[Bag]:
    """One bag for each labelled source of a split, in the order of the records.

    Sources without a label are left out, and the log says how many.

    Raises:
      InputError: records without labels or embeddings, or whose embeddings are not finite; a source
        whose patches have several labels.
    """
    classes = records.metadata.get("classes") or ()
    if not classes or "label" not in records.features:
        raise InputError(
            f"records in {records.folder} have no labels; prepare them from folders of classes, "
            "with a manifest or with annotations: a slide's class is that of its patches"
        )
    variant = ["variant"] if "variant" in records.features else []
    fields = ("source", "x", "y", "label", "embedding", *variant)
    source = records.source(split, fields)
    columns: dict[str, list[tuple]] = {}
    for row in tqdm(range(len(source)), desc=f"{split} patches", unit="patch"):
        patch = source[row]
        if not patch.get("variant", 0):  # a bag holds a patch once, as it was cut
            facts = row, *(patch[name] for name in ("x", "y", "label", "embedding"))
            columns.setdefault(patch["source"], []).append(facts)
    regions = (records.metadata.get(PLANTED) or {}).get("regions")
    parents = (records.metadata.get(SYNTHETIC) or {}).get("parents", {})
    bags, unlabelled = [], 0
    for name, patches in columns.items():
        rows, x, y, labels, embedding = (np.array(values) for values in zip(*patches, strict=True))
        found = np.unique(labels).tolist()
        if len(found) > 1:
            names = ", ".join(classes[i] if i >= 0 else "none" for i in found)
            raise InputError(
                f"{name} in {records.folder} has patches of several classes ({names}); expected "
                "one for a whole slide: a bag has one label, prepare the records with the slides'"
            )
        if found[0] < 0:
            unlabelled += 1
            continue
        features = one_vector(embedding, f"{name} in {records.folder}")
        planted = None if regions is None else _inside(x, y, regions.get(name))
        of = tuple(parents.get(name, [name]))
        bags.append(Bag(name, int(found[0]), features, x, y, rows, planted, of))
    if unlabelled:
        logging.warning("%d sources of split %s have no label: left out", unlabelled, split)
    return bags


def check_classes(bags: Sequence[Bag], classes: Sequence[str], what: str) -> None:
    """Raises InputError unless there is a bag of every class, and two classes or more."""
    counts = np.bincount([bag.label for bag in bags], minlength=len(classes))
    if len(classes) < 2 or not counts.all():
        told = ", ".join(f"{name}: {count}" for name, count in zip(classes, counts, strict=True))
        raise InputError(
            f"{what} has slides of these classes: {told or 'none'}; expected two classes, and a "
            "slide of each: give more slides, or prepare without the class that has none"
        )


def _inside(x: np.ndarray, y: np.ndarray, region: list[int] | None) -> Bool[np.ndarray, " n"]:
    """Which corners lie in a region [x, y, width, height]; none in no region."""
    if region is None:
        return np.zeros(len(x), bool)
    left, top, width, height = region
    return (x >= left) & (x < left + width) & (y >= top) & (y < top + height)
