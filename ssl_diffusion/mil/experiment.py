"""Real slides against real and synthetic ones, at several sizes: what is trained on what."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

import ssl_diffusion
from ssl_diffusion.files import replacing
from ssl_diffusion.mil.bags import Bag
from ssl_diffusion.mil.fit import Settings, fit
from ssl_diffusion.mil.scores import attention_recovery, compare, recovery_of

REAL, ORDINARY = "real", "real_ordinary"  # what the other arms are compared with
ARMS = {
    REAL: "real",
    "real_synthetic": "real + synthetic",
    "synthetic": "synthetic alone",
    ORDINARY: "real + ordinary augmentation",
}


@dataclasses.dataclass(frozen=True)
class Slides:
    """All that is trained on and tested with.

    `ordinary` holds one for each of `synthetic`, in their order; none where nothing can embed it.
    `shown` are the test slides whose attention is kept for pictures.
    """

    real: Sequence[Bag]
    synthetic: Sequence[Bag]
    ordinary: Sequence[Bag]
    test: Sequence[Bag]
    classes: Sequence[str]
    shown: Sequence[int] = ()

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Of each slide by its name: of all that a training reads of it."""
        every = [*self.real, *self.synthetic, *self.ordinary, *self.test]
        return {bag.name: _digest(bag) for bag in every}


class Outcome(NamedTuple):
    """What is kept of one training.

    probabilities  of each test slide
    recovery       `scores.recovery_of` the test slides; None where nothing is known to be planted
    attention      of the `shown` slides' patches for the slide's class, one slide after the other
    """

    probabilities: Float[np.ndarray, "n classes"]
    recovery: Float[np.ndarray, "bags 2"] | None
    attention: Float[np.ndarray, " patches"]


@dataclasses.dataclass(frozen=True)
class Trial:
    """Trainings of one model on one fraction.

    arms    what came of each training, by arm and seed
    counts  training slides of each arm, by seed
    added   of these, how many are not the real ones
    """

    model: str
    fraction: float
    arms: Mapping[str, Sequence[Outcome]]
    counts: Mapping[str, list[int]]
    added: Mapping[str, list[int]]

    def numbers(self, test: Sequence[Bag]) -> dict[str, Any]:
        """What report.json says of it."""
        labels = np.array([bag.label for bag in test])
        told = {
            arm: np.stack([one.probabilities for one in found]) for arm, found in self.arms.items()
        }
        arms: dict[str, Any] = compare(
            told, labels, [arm for arm in (REAL, ORDINARY) if arm in told]
        )
        for arm, entry in arms.items():
            entry["attention"] = None
            if self.arms[arm][0].recovery is not None:
                recovery = np.stack([one.recovery for one in self.arms[arm]])
                found = attention_recovery(test, recovery)
                entry["attention"] = {name: vars(one) for name, one in found.items()}
            entry["slides"], entry["added"] = self.counts[arm], self.added[arm]
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


def training_sets(slides: Slides, chosen: Sequence[Bag]) -> dict[str, tuple[list[Bag], list[Bag]]]:
    """What each arm trains on: real slides, and variations of these alone.

    A synthetic slide is used where all slides it is made of are chosen. The ordinary variations are
    those of the same slides, as many of each as there are synthetic ones.
    """
    names = {bag.name for bag in chosen}
    used = [i for i, bag in enumerate(slides.synthetic) if names.issuperset(bag.parents)]
    real, synthetic = list(chosen), [slides.synthetic[i] for i in used]
    sets = {REAL: (real, []), "real_synthetic": (real, synthetic), "synthetic": ([], synthetic)}
    if slides.ordinary:
        sets[ORDINARY] = real, [slides.ordinary[i] for i in used]
    return sets


def run_trial(
    model: str,
    fraction: float,
    slides: Slides,
    seeds: int,
    settings: Settings,
    bar: Any,
    kept: Path,
) -> Trial:
    """Trains a model on every arm, by every seed; `bar` counts the trainings.

    Every seed draws other slides. Left out is an arm that for some seed lacks slides of a class,
    or has none but the real ones (all variations have parents that were not chosen): it would be
    compared with itself. What came of every training is kept in the folder `kept` and read from
    there when it is asked for again, with the same slides and settings.
    """
    drawn = [
        training_sets(slides, chosen_slides(slides.real, fraction, seed)) for seed in range(seeds)
    ]
    arms: dict[str, list[Outcome]] = {}
    counts: dict[str, list[int]] = {}
    added: dict[str, list[int]] = {}
    for arm in drawn[0]:
        sets = [real + more for real, more in (each[arm] for each in drawn)]
        extra = [len(each[arm][1]) for each in drawn]
        lacking = any(len({bag.label for bag in bags}) < len(slides.classes) for bags in sets)
        if lacking or (arm != REAL and 0 in extra):
            bar.update(seeds)
            continue
        counts[arm], added[arm] = [len(bags) for bags in sets], extra
        arms[arm] = []
        for seed, bags in enumerate(sets):
            file = kept / f"{model}-{arm}-{fraction:g}-{seed}.npz"
            arms[arm].append(outcome(file, model, bags, slides, settings, seed))
            bar.update()
    return Trial(model, fraction, arms, counts, added)


def outcome(
    file: Path, model: str, bags: Sequence[Bag], slides: Slides, settings: Settings, seed: int
) -> Outcome:
    """What comes of a training; read from `file` where that is of the same slides and settings."""
    asked = {
        "model": model,
        "settings": settings._asdict(),
        "seed": seed,
        "classes": list(slides.classes),
        "trained on": [slides.digests[bag.name] for bag in bags],
        "tested on": [slides.digests[bag.name] for bag in slides.test],
        "shown": list(slides.shown),
        "version": ssl_diffusion.__version__,
    }
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    if (known := _read(file, digest)) is not None:
        return known
    fitted = fit(model, bags, len(slides.classes), settings=settings, seed=seed)
    predictions = fitted.predict(slides.test)
    maps = [predictions[i].attention[:, slides.test[i].label] for i in slides.shown]
    found = Outcome(
        np.stack([one.probabilities for one in predictions]),
        recovery_of(slides.test, [one.attention for one in predictions]),
        np.concatenate([*maps, np.zeros(0, np.float32)]),
    )
    with replacing(file) as temporary:
        whole = {name: value for name, value in found._asdict().items() if value is not None}
        np.savez(temporary, digest=np.array(digest), **whole)
    return found


def _read(file: Path, digest: str) -> Outcome | None:
    """None where there is no such file, it is of something else, or cannot be read."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if str(arrays["digest"]) != digest:
                return None
            recovery = arrays["recovery"] if "recovery" in arrays else None
            return Outcome(arrays["probabilities"], recovery, arrays["attention"])
    except Exception:  # a damaged file raises what zip and its parts happen to; it is made again
        return None


def _digest(bag: Bag) -> str:
    found = hashlib.sha256(json.dumps([bag.name, bag.label, bag.features.shape]).encode())
    found.update(np.ascontiguousarray(bag.features))
    found.update(b"" if bag.planted is None else bag.planted.tobytes())
    return found.hexdigest()
