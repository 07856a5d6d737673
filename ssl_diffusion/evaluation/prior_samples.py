"""Samples of every condition that a prior takes, to be measured."""

import itertools
from collections.abc import Mapping
from functools import partial

import numpy as np
from tqdm import tqdm

from ssl_diffusion.evaluation.grids import GridSet
from ssl_diffusion.evaluation.prior_measures import Sampled
from ssl_diffusion.evaluation.real_grids import RealGrids
from ssl_diffusion.prior.asked import Asked
from ssl_diffusion.prior.model import Prior
from ssl_diffusion.prior.sampling import sample_grids


def sample_sets(
    prior: Prior,
    classes: Mapping[str, list[str]],
    captions: Mapping[str, list[str]],
    train: RealGrids,
    held_out: RealGrids,
    samples: int,
    seed: int,
) -> list[Sampled]:
    """Samples of every condition that the prior takes, with the real grids to compare them with.

    A sentence of a class of label maps is said of one cell of a real grid: there is no set of real
    grids that it tells of, and its samples have none.

    Args:
      prior: from `load_prior`.
      classes: by kind, names of the classes of `RealGrids.classes`.
      captions: sentences by label, or by class of a label map.
      train, held_out: real grids of the size that is sampled.
      samples: of each label, of each name's captions, and of label maps, which are those of the
        held-out grids, in order; without a condition as many as all labels have together.
      seed: of the first; no two conditions begin from the same noise.
    """
    conditions, seeds = prior.spec["conditions"], itertools.count(seed)
    labels, (rows, cols) = classes["label"], train.grids.present.shape[1:]

    def sample(asked: Asked, count: int, what: str) -> np.ndarray:
        found = sample_grids(
            prior,
            asked,
            rows,
            cols,
            samples=count,
            seed=next(seeds),
            progress=partial(tqdm, desc=what, unit="step", leave=False),
        )
        return np.asarray(found, np.float32).reshape(count, rows, cols, -1)

    def of_label(name: str, kind: str, number: int, cells: np.ndarray) -> Sampled:
        return Sampled(
            name=f"{kind} {name}",
            kind=kind,
            grids=GridSet.whole(cells),
            asked=np.full(cells.shape[:3], number),
            train=train.of_class("label", number),
            held_out=held_out.of_class("label", number),
        )

    count = samples * max(1, len(labels))
    cells = sample(Asked(), count, "no condition")
    nothing = np.full(cells.shape[:3], -1)
    sets = [
        Sampled("no condition", "none", GridSet.whole(cells), nothing, train.grids, held_out.grids)
    ]
    if "label" in conditions:
        for number, name in enumerate(labels):
            cells = sample(Asked(label={name: 1.0}), samples, f"label {name}")
            sets.append(of_label(name, "label", number, cells))
    for name, sentences in captions.items():
        # As many of each sentence, up to one; a sentence more than samples is not said.
        shares = [len(part) for part in np.array_split(np.arange(samples), len(sentences))]
        parts = [
            sample(Asked(text=sentence), share, f"text {name}")
            for sentence, share in zip(sentences, shares, strict=True)
            if share
        ]
        cells = np.concatenate(parts)
        if name in labels:
            sets.append(of_label(name, "text", labels.index(name), cells))
        else:
            asked = np.full(cells.shape[:3], classes["label_map"].index(name))
            none = train.grids[:0]
            sets.append(Sampled(name, "cell_text", GridSet.whole(cells), asked, none, none))
    if "label_map" in conditions:
        picks = np.arange(samples) % len(held_out.grids)
        maps = held_out.classes["label_map"][picks].astype(np.int32)
        if (maps >= 0).any():
            cells = [
                sample(Asked(label_map=one), 1, f"label map {number}")
                for number, one in enumerate(tqdm(maps, desc="label maps", unit="map"))
            ]
            grids = GridSet.whole(np.concatenate(cells))
            sets.append(
                Sampled("label maps", "label_map", grids, maps, train.grids, held_out.grids)
            )
    return sets
