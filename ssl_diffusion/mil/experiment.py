"""Real slides against real and synthetic ones, at several sizes: what is trained on what."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ssl_diffusion.mil.bags import Bag
from ssl_diffusion.mil.fit import Prediction, Settings, fit
from ssl_diffusion.mil.scores import attention_recovery, compare

REAL = "real"
ARMS = {
    REAL: "real",
    "real_synthetic": "real + synthetic",
    "synthetic": "synthetic alone",
    "real_ordinary": "real + ordinary augmentation",
}


@dataclasses.dataclass(frozen=True)
class Slides:
    """All that is trained on and tested with; `ordinary` is empty where nothing can embed it."""

    real: Sequence[Bag]
    synthetic: Sequence[Bag]
    ordinary: Sequence[Bag]
    test: Sequence[Bag]
    classes: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Trial:
    """Trainings of one model on one fraction.

    arms    probabilities of the test slides, by arm and seed
    first   what each arm's network of the first seed says of the test slides
    counts  training slides of each arm, by seed
    """

    model: str
    fraction: float
    arms: Mapping[str, Float[np.ndarray, "seeds n classes"]]
    first: Mapping[str, Sequence[Prediction]]
    counts: Mapping[str, list[int]]

    def numbers(self, test: Sequence[Bag]) -> dict[str, Any]:
        """What report.json says of it."""
        labels = np.array([bag.label for bag in test])
        arms: dict[str, Any] = compare(self.arms, labels, REAL)
        for arm, entry in arms.items():
            found = attention_recovery(test, [one.attention for one in self.first[arm]])
            entry["attention"] = found and {name: vars(one) for name, one in found.items()}
            entry["slides"] = self.counts[arm]
        return {"model": self.model, "fraction": self.fraction, "arms": arms}


def chosen_slides(bags: Sequence[Bag], fraction: float, seed: int) -> list[Bag]:
    """A share of the slides of every class, drawn by the seed, at least one of each.

    A larger fraction holds all of a smaller one's slides.
    """
    rng = np.random.default_rng(seed)
    labels = np.array([bag.label for bag in bags])
    chosen: list[Bag] = []
    for label in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == label))
        chosen += [bags[int(i)] for i in order[: max(1, round(fraction * len(order)))]]
    return chosen


def training_sets(slides: Slides, chosen: Sequence[Bag]) -> dict[str, list[Bag]]:
    """What each arm trains on: the chosen real slides, and variations of no others than these."""
    names = {bag.name for bag in chosen}

    def of_chosen(bags: Iterable[Bag]) -> list[Bag]:
        return [bag for bag in bags if names.issuperset(bag.parents)]

    real, synthetic = list(chosen), of_chosen(slides.synthetic)
    sets = {REAL: real, "real_synthetic": real + synthetic, "synthetic": synthetic}
    if slides.ordinary:
        sets["real_ordinary"] = real + of_chosen(slides.ordinary)
    return sets


def run_trial(
    model: str, fraction: float, slides: Slides, seeds: int, settings: Settings, bar: Any
) -> Trial:
    """Trains a model on every arm, by every seed; `bar` counts the trainings.

    Every seed draws other slides. An arm that for some seed lacks slides of a class (all synthetic
    ones have parents that were not chosen) is left out.
    """
    drawn = [
        training_sets(slides, chosen_slides(slides.real, fraction, seed)) for seed in range(seeds)
    ]
    arms: dict[str, np.ndarray] = {}
    first: dict[str, list[Prediction]] = {}
    counts: dict[str, list[int]] = {}
    for arm in drawn[0]:
        if any(len({bag.label for bag in sets[arm]}) < len(slides.classes) for sets in drawn):
            bar.update(seeds)
            continue
        counts[arm] = [len(sets[arm]) for sets in drawn]
        found = []
        for seed, sets in enumerate(drawn):
            fitted = fit(model, sets[arm], len(slides.classes), settings=settings, seed=seed)
            predictions = fitted.predict(slides.test)
            first.setdefault(arm, predictions)
            found.append(np.stack([one.probabilities for one in predictions]))
            bar.update()
        arms[arm] = np.stack(found)
    return Trial(model, fraction, arms, first, counts)
