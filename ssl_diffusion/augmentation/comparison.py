"""Classifiers trained on every arm, fraction and seed, and scored on the same test patches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from ssl_diffusion.augmentation.arms import (
    ARMS,
    ORDINARY,
    REAL,
    SYNTHETIC,
    Numbered,
    Patches,
)
from ssl_diffusion.augmentation.classifiers import FOLDS, PENALTIES, FineTuning, linear_probe
from ssl_diffusion.augmentation.inputs import Comparison
from ssl_diffusion.augmentation.pixel_labels import MEASURES, measured_labels
from ssl_diffusion.augmentation.runs import Run, kept_run
from ssl_diffusion.augmentation.scores import METRICS, Judge
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.feature_cache import cached_features
from ssl_diffusion.evaluation.spaces import Space

REFERENCES = ("real", "real + ordinary")  # what the other arms are compared with


@dataclass(frozen=True)
class Classifier:
    """`run` trains on patches by a seed; `settings` (JSON) are all else that its result is of."""

    run: Callable[[Patches, int], Run]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Embedded:
    """Embeddings of the pool's images, by kind, and of the test patches; `images` are digests."""

    pool: tuple[Float[np.ndarray, "_ d"], ...]
    test: Float[np.ndarray, "m d"]
    images: dict[str, str]


def embed(compared: Comparison, space: Space, cache: Path) -> Embedded:
    """Embeds the images themselves, of all kinds, once: what records hold is not looked at."""
    sets = [compared.pool.all_of(kind) for kind in (REAL, SYNTHETIC, ORDINARY)]
    sets.append(Numbered("test", len(compared.rows), _test_images(compared)))
    *pool, test = (cached_features(space, one, cache) for one in sets)
    return Embedded(tuple(pool), test, {one.name: one.settings["sha256"] for one in sets})


def linear(compared: Comparison, embedded: Embedded, space: Space) -> Classifier:
    """The linear probe."""
    classes = len(compared.names)

    def run(patches: Patches, seed: int) -> Run:
        rows = np.zeros((len(patches), embedded.test.shape[1]), np.float32)
        for kind, own in enumerate(embedded.pool):
            rows[patches.kind == kind] = own[patches.row[patches.kind == kind]]
        label, group = patches.label, patches.group
        found, penalty = linear_probe(rows, label, group, embedded.test, classes, seed)
        return found, {"C": penalty}

    own = {"penalties": PENALTIES, "folds": FOLDS}
    return Classifier(run, _settings("linear", compared, embedded, space) | own)


def fine_tuned(
    compared: Comparison, embedded: Embedded, space: Space, tuning: FineTuning
) -> Classifier:
    """The network that is fine-tuned; of `embedded` the images' digests alone are used."""
    read_test = _test_images(compared)

    def run(patches: Patches, seed: int) -> Run:
        def read(rows: np.ndarray) -> np.ndarray:
            return compared.pool.mixed(patches.kind[rows], patches.row[rows])

        params = tuning.run(read, patches.label, seed)
        return tuning.probabilities(params, read_test, len(compared.rows)), {}

    own = dict(tuning.settings())
    return Classifier(run, _settings("fine-tuned", compared, embedded, space) | own)


def _settings(name: str, compared: Comparison, embedded: Embedded, space: Space) -> dict[str, Any]:
    about = {"classifier": name, "classes": len(compared.names)}
    return about | {"encoder": space.digest, "images": embedded.images}


def check_arms(compared: Comparison, fractions: Sequence[float], seeds: int) -> None:
    """Raises InputError where an arm has no patch of a class: interpolations of few patches."""
    pool = compared.pool
    for fraction in fractions:
        for seed in range(seeds):
            subset = pool.subset(fraction, seed)
            patches = pool.arm("synthetic", subset)
            if len(np.unique(patches.label)) < len(np.unique(pool.label)):
                raise InputError(
                    f"of {len(subset)} labelled patches (fraction {fraction:g}) {len(patches)} "
                    "variations have both ends among them, none of some class; take larger "
                    "--fractions, or augment with more --per_image or --how=same"
                )


def labels_again(compared: Comparison) -> dict[str, float]:
    """Part of the synthetic and of the ordinary patches whose label, measured again, is another.

    Of labels that are properties of pixels; empty for others.
    """
    settings = compared.facts["labels"]
    if settings["kind"] not in MEASURES:
        return {}
    measured = partial(measured_labels, settings=settings)
    kinds = {"synthetic": SYNTHETIC, "ordinary": ORDINARY}
    return {
        name: float(compared.pool.changed(kind, measured).mean()) for name, kind in kinds.items()
    }


def compare(
    compared: Comparison,
    classifiers: dict[str, Classifier],
    fractions: Sequence[float],
    seeds: int,
    folder: Path,
) -> list[dict[str, Any]]:
    """A row for each classifier, fraction and arm; each run is kept in `folder` as it ends.

    `classifier`, `fraction`, `arm`, `real` (labelled patches), `patches` (of all kinds, the mean
    over seeds), `chosen`, each of METRICS as `Scored.told` has it, and under `minus` the paired
    difference to each of REFERENCES.
    """
    judge = Judge(compared.label, compared.units)
    rows = []
    total = len(classifiers) * len(fractions) * len(ARMS) * seeds
    with tqdm(total=total, desc="classifiers", unit="run") as bar:
        for name, classifier in classifiers.items():
            for fraction in fractions:
                scored, about = {}, {}
                for arm in ARMS:
                    runs, chosen, sizes = [], [], []
                    for seed in range(seeds):
                        subset = compared.pool.subset(fraction, seed)
                        patches = compared.pool.arm(arm, subset)
                        run, what = kept_run(
                            folder, classifier.settings, patches, seed, classifier.run
                        )
                        runs.append(run)
                        chosen.append(what)
                        sizes.append(len(patches))
                        bar.update()
                    scored[arm] = judge.score(runs)
                    # Of interpolations each seed has others, whose both ends are labelled.
                    size = round(np.mean(sizes))
                    about[arm] = {"real": len(subset), "patches": size, "chosen": chosen}
                rows += [
                    {"classifier": name, "fraction": fraction, "arm": arm, **about[arm]}
                    | {metric: scored[arm][metric].told() for metric in METRICS}
                    | {"minus": _differences(scored, arm)}
                    for arm in ARMS
                ]
    return rows


def _differences(scored: dict[str, Any], arm: str) -> dict[str, Any]:
    return {
        other: {metric: scored[arm][metric].minus(scored[other][metric]) for metric in METRICS}
        for other in REFERENCES
        if other != arm
    }


def _test_images(compared: Comparison) -> Callable[[np.ndarray], np.ndarray]:
    def read(rows: np.ndarray) -> np.ndarray:
        return np.stack([compared.test[int(compared.rows[row])]["image"] for row in rows])

    return read
