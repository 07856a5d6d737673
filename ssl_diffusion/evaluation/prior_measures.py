"""All measures of one set of sampled grids, and how well the sets show what was asked for."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ssl_diffusion.evaluation.coherence import Coherence, coherence, coherence_gap
from ssl_diffusion.evaluation.diversity import diversity
from ssl_diffusion.evaluation.grid_frechet import frechet_numbers
from ssl_diffusion.evaluation.grids import GridSet
from ssl_diffusion.evaluation.probe import Probe, told, within_grids
from ssl_diffusion.evaluation.real_grids import RealGrids, main_class

JUDGED = {  # by kind of condition: the classes that tell, and what is told besides cells
    "label": ("label", "grids"),
    "text": ("label", "grids"),
    "cell_text": ("label_map", ""),
    "label_map": ("label_map", "layout_ignored"),
}


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Samples of one condition, and the real grids that they are compared with.

    name            of the condition, for people
    kind            "none", "label", "text" (of labels), "cell_text" (of classes of label maps) or
                    "label_map"
    grids           the samples
    asked           class of each cell that was asked for, as the prior numbers those of the kind
                    (of texts: of what they are said of); -1 where nothing was
    train, held_out real grids of the same condition, none for "cell_text"
    """

    name: str
    kind: str
    grids: GridSet
    asked: Int[np.ndarray, "n rows cols"]
    train: GridSet
    held_out: GridSet

    @property
    def comparable(self) -> bool:
        """Whether there are enough real grids of this condition to compare with."""
        return len(self.train) > 1 and len(self.held_out) > 1


def set_numbers(sampled: Sampled) -> tuple[dict[str, Any], dict[str, Coherence]]:
    """(sections frechet, coherence and diversity of the report, the curves to draw).

    All is seen from the mean of the real training cells of the same condition. The controls: real
    held-out grids (the best that can be expected), and their cells shuffled across grids.
    """
    centre = sampled.train.flat().mean(axis=0, dtype=np.float64)
    real = coherence(sampled.train, centre, seed=1)
    curves = {
        "samples": coherence(sampled.grids, centre, seed=2),
        "held_out": coherence(sampled.held_out, centre, seed=3),
        "shuffled": coherence(sampled.held_out.shuffled(), centre, seed=4),
    }
    numbers: dict[str, Any] = {
        "samples": len(sampled.grids),
        "train": len(sampled.train),
        "held_out": len(sampled.held_out),
        "frechet": frechet_numbers(sampled.grids, sampled.held_out, sampled.train),
        "coherence": {name: curve.numbers() for name, curve in curves.items()},
        "coherence_gap": {
            name: dataclasses.asdict(coherence_gap(curve, real)) for name, curve in curves.items()
        },
        "diversity": {
            name: dataclasses.asdict(diversity(grids, sampled.train, centre))
            for name, grids in (("samples", sampled.grids), ("held_out", sampled.held_out))
        },
    }
    numbers["coherence"]["train"] = real.numbers()
    return numbers, curves | {"train": real}


def _told_of(
    probe: Probe,
    samples: GridSet,
    asked: Int[np.ndarray, "n rows cols"],
    *,
    held_out: GridSet,
    held_out_classes: Int[np.ndarray, "m rows cols"],
    unconditional: GridSet,
    part: str,
) -> dict[str, Any]:
    """Agreement of samples with what was asked for, its ceiling and what ignores it.

    cells            of samples, cell by cell
    grids            by a vote of a grid's cells, where `part` is this
    layout_ignored   cells against each grid's map with its cells shuffled, where `part` is this
    held_out         real held-out cells with their own classes: what the probe can tell
    unconditional    unconditional samples, given what was asked for in turn: a prior that ignores
                     its condition

    In each stand `shuffled` and `chance` (see `probe.Told`). What cannot be counted is left out.
    """
    found = probe.cells(samples)
    turns = np.resize(np.random.default_rng(0).permutation(len(asked)), len(unconditional))
    parts = {
        "cells": (found, asked),
        "held_out": (probe.cells(held_out), held_out_classes),
        "unconditional": (probe.cells(unconditional), asked[turns]),
    }
    if part == "grids":
        parts["grids"] = (probe.grids(samples), asked[:, :1, :1])
    if part == "layout_ignored":
        parts["layout_ignored"] = (found, within_grids(asked))
    return {
        name: dataclasses.asdict(told(classes, wanted, len(probe.known)))
        for name, (classes, wanted) in parts.items()
        if ((classes >= 0) & (wanted >= 0)).any()
    }


def agreement(
    sets: Sequence[Sampled],
    classes: Mapping[str, Sequence[str]],
    train: RealGrids,
    held_out: RealGrids,
) -> dict[str, Any]:
    """The section `agreement`, by kind of condition, where there are two classes or more.

    Sentences of a class of label maps are said of one cell of a real grid, drawn by chance; of the
    others they tell less. So beside their agreement stands `expected`, what real grids would reach,
    and `label`: whether the grid is one of the label that such cells are of.
    """
    probes: dict[str, Probe] = {}
    found: dict[str, Any] = {}
    for kind, (judged, part) in JUDGED.items():
        own = [one for one in sets if one.kind == kind]
        known = train.classes[judged][train.grids.present] if own else np.array([-1])
        if len(np.unique(known[known >= 0])) < 2:
            continue
        if judged not in probes:
            probes[judged] = Probe(train.grids.flat(), known, classes[judged])
        samples = GridSet.whole(np.concatenate([one.grids.cells for one in own]))
        asked = np.concatenate([one.asked for one in own])
        found[kind] = _told_of(
            probes[judged],
            samples,
            asked,
            held_out=held_out.grids,
            held_out_classes=held_out.classes[judged],
            unconditional=next(one.grids for one in sets if one.kind == "none"),
            part=part,
        )
        if kind == "cell_text":
            shares = _shares_where_said(train, np.unique(asked))
            found[kind]["expected"] = float(np.mean(shares))
            if "label" in probes:
                labels = _labels_of(train)[asked[:, :1, :1]]
                probe = probes["label"]
                of_grids = told(probe.grids(samples), labels, len(probe.known))
                found[kind]["label"] = dataclasses.asdict(of_grids)
    return found


def _shares_where_said(train: RealGrids, classes: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Share of a class in grids drawn by that share: those where it is said of a cell."""
    maps = train.classes["label_map"].reshape(len(train.grids), -1)
    counts = (maps[..., None] == classes).sum(axis=1)
    shares = counts / np.maximum((maps >= 0).sum(axis=1), 1)[:, None]
    return (shares**2).sum(axis=0) / np.maximum(shares.sum(axis=0), 1e-12)


def _labels_of(train: RealGrids) -> Int[np.ndarray, " k"]:
    """The label that most cells of each class of label maps have, -1 without any."""
    cell, label = (train.classes[kind].reshape(-1) for kind in ("label_map", "label"))
    return np.array(
        [main_class(label[cell == number][None, None])[0] for number in range(cell.max() + 1)]
    )


def finite(value: Any) -> Any:
    """The same with None for what is not a finite number: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
