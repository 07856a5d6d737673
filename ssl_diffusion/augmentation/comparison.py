"""Classifiers trained on every arm, fraction and seed, and scored on the same test patches."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from ssl_diffusion.augmentation.arms import ARMS, ORDINARY, REAL, SYNTHETIC, Patches, embedded
from ssl_diffusion.augmentation.classifiers import FineTuning, linear_probe
from ssl_diffusion.augmentation.inputs import Comparison
from ssl_diffusion.augmentation.scores import METRICS, Judge

REFERENCES = ("real", "real + ordinary")  # what the other arms are compared with
# (training patches, seed) -> (probabilities for the test patches, what was chosen)
Classifier = Callable[[Patches, int], tuple[Float[np.ndarray, "n c"], dict[str, Any]]]


def linear(compared: Comparison, embed: Callable[[np.ndarray], np.ndarray]) -> Classifier:
    """The linear probe; all is embedded here, once."""
    pool, classes = compared.pool, len(compared.names)
    features = [pool.embedded(kind, embed) for kind in (REAL, SYNTHETIC, ORDINARY)]
    test = embedded(_test_images(compared), len(compared.rows), embed, "embed test")

    def classify(patches: Patches, seed: int):
        rows = np.zeros((len(patches), test.shape[1]), test.dtype)
        for kind, own in enumerate(features):
            rows[patches.kind == kind] = own[patches.row[patches.kind == kind]]
        found, penalty = linear_probe(rows, patches.label, patches.group, test, classes, seed)
        return found, {"C": penalty}

    return classify


def fine_tuned(compared: Comparison, tuning: FineTuning) -> Classifier:
    """The network that is fine-tuned."""
    read_test = _test_images(compared)

    def classify(patches: Patches, seed: int):
        def read(rows: np.ndarray) -> np.ndarray:
            return compared.pool.mixed(patches.kind[rows], patches.row[rows])

        params = tuning.run(read, patches.label, seed)
        return tuning.probabilities(params, read_test, len(compared.rows)), {}

    return classify


def compare(
    compared: Comparison,
    classifiers: dict[str, Classifier],
    fractions: Sequence[float],
    seeds: int,
) -> list[dict[str, Any]]:
    """A row for each classifier, fraction and arm.

    `classifier`, `fraction`, `arm`, `patches` (real ones, of all kinds), `chosen`, each of METRICS
    as `Scored.told` has it, and under `minus` the paired difference to each of REFERENCES.
    """
    judge = Judge(compared.label, compared.units)
    rows = []
    total = len(classifiers) * len(fractions) * len(ARMS) * seeds
    with tqdm(total=total, desc="classifiers", unit="run") as bar:
        for name, classify in classifiers.items():
            for fraction in fractions:
                scored, about = {}, {}
                for arm in ARMS:
                    runs, chosen = [], []
                    for seed in range(seeds):
                        subset = compared.pool.subset(fraction, seed)
                        patches = compared.pool.arm(arm, subset)
                        run, what = classify(patches, seed)
                        runs.append(run)
                        chosen.append(what)
                        bar.update()
                    scored[arm] = judge.score(runs)
                    about[arm] = {"real": len(subset), "patches": len(patches), "chosen": chosen}
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
