"""Patches: samples against real ones in every space, their nearest neighbours, and pictures."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from ssl_diffusion.data.records import Records
from ssl_diffusion.evaluation.agreement import estimated, share
from ssl_diffusion.evaluation.copying import NearestTraining, copying
from ssl_diffusion.evaluation.image_sets import ImageSet, array_images
from ssl_diffusion.evaluation.intervals import evenly
from ssl_diffusion.evaluation.near_copies import CANDIDATES, LEAST, Patches, find_copies
from ssl_diffusion.evaluation.patch_figures import (
    component_scatter,
    distance_curves,
    similarity_histogram,
)
from ssl_diffusion.evaluation.patch_numbers import SEED, add_agreement, compare_sets
from ssl_diffusion.evaluation.real_features import RealFeatures, stored_vectors
from ssl_diffusion.evaluation.roundtrip import reconstruct

PAIRS = 24  # shown in the report
SOUGHT, SHOWN_COPIES = 2000, 8  # samples among which copies are looked for; shown

Stage = tuple[Callable, Callable]  # encode, decode of an autoencoder


@dataclasses.dataclass(frozen=True)
class Samples:
    """The images that are judged.

    `wanted` [n] is the index in the held-out split that each was made from; None where they are of
    no patch in particular, and are compared as a set alone.
    """

    images: ImageSet
    wanted: Int[np.ndarray, " n"] | None


@dataclasses.dataclass(frozen=True)
class Pair:
    """A sample, the held-out patch it was asked for, the training patch nearest to that.

    Of unpaired samples the patch is None, and the neighbour is the sample's own. Without training
    patches there are no neighbours. `similarity` is that of the sample to the embedding asked for,
    `nearest_similarity` that of the neighbour to what it is nearest to.
    """

    index: int
    sample: UInt8[np.ndarray, "p p 3"]
    real: UInt8[np.ndarray, "p p 3"] | None
    nearest: UInt8[np.ndarray, "p p 3"] | None
    similarity: float | None
    nearest_similarity: float | None


@dataclasses.dataclass(frozen=True)
class Copy:
    """A sample and a training patch whose pixels agree, how well (0 to 1), and whether too well."""

    index: int
    sample: UInt8[np.ndarray, "p p 3"]
    training: UInt8[np.ndarray, "p p 3"]
    agreement: float
    flagged: bool


@dataclasses.dataclass(frozen=True)
class PatchPictures:
    """What the page shows of the patches; plots are PNGs by name."""

    pairs: list[Pair]
    plots: Mapping[str, bytes]
    copies: list[Copy]


def evaluate_patches(
    real: RealFeatures, samples: Samples, stage: Stage | None, train: Records | None
) -> tuple[dict[str, Any], PatchPictures]:
    """The sections `patch`, `copying` (with `train`, the records of the training patches) and,
    with `stage`, the reconstructions' images; and the pictures.
    """
    paired = samples.wanted is not None
    compared = samples.wanted if paired else evenly(len(real.held_out), len(samples.images))
    patches = np.stack([real.held_out[int(index)] for index in compared])
    sets = {"samples": samples.images}
    if stage:
        sets["reconstructions"] = array_images(reconstruct(*stage, patches), "reconstructions")
    space = real.conditioning
    near = _Neighbours(real, samples, compared, stage, train) if train else None
    if near:
        sets["nearest_train"] = array_images(near.of_real(), "nearest training patches")
    noise = np.random.default_rng(SEED).integers(0, 256, patches.shape, np.uint8)
    sets["noise"] = array_images(noise, "pixel noise")

    section: dict[str, Any] = {
        "count": len(samples.images),
        "held_out": len(real.held_out),
        "paired": paired,
        "spaces": {},
    }
    plots: dict[str, bytes] = {}
    copies: list[Copy] = []
    for one in real.spaces:
        features = {name: real.features(one, images) for name, images in sets.items()}
        features["real"] = real.of_held_out(one)[compared]
        if len(samples.images) > len(compared):
            few = evenly(len(samples.images), len(compared))
            features["samples_equal"] = features["samples"][few]
        numbers = compare_sets(one, features, real.of_reference(one))
        section["spaces"][one.name] = numbers
        if paired and one.name in ("encoder", "judge"):
            gallery, centre = real.of_held_out(one), real.centre(one)
            found = add_agreement(numbers, features, gallery, compared, centre)
            plots[f"similarity_{one.name}"] = similarity_histogram(
                found.similarity, found.similarity_shuffled
            )
            similarity = found.similarity if one is space else similarity
        points = component_scatter(real.of_reference(one), features["real"], features["samples"])
        if points:
            plots[f"components_{one.name}"] = points
    sections = {"patch": section}
    if near:
        numbers, copies = near.copies()
        sections["copying"] = near.numbers() | numbers
        plots["distances"] = distance_curves(near.distances())
    pairs = [
        Pair(
            index=int(compared[i]) if paired else int(i),
            sample=samples.images[int(i)],
            real=patches[i] if paired else None,
            nearest=near.patch(int(i)) if near else None,
            similarity=float(similarity[i]) if paired else None,
            nearest_similarity=float((near.real if paired else near.samples)[i]) if near else None,
        )
        for i in evenly(len(samples.images), PAIRS)
    ]
    return sections, PatchPictures(pairs, plots, copies)


class _Neighbours:
    """The nearest training patches of samples, of real patches, and of training patches decoded."""

    def __init__(
        self,
        real: RealFeatures,
        samples: Samples,
        compared: Int[np.ndarray, " k"],
        stage: Stage | None,
        train: Records,
    ) -> None:
        space, self._train = real.conditioning, train.source("train", ("image",))
        self._images = samples.images, real.held_out
        of_samples, of_held_out = real.features(space, samples.images), real.of_held_out(space)
        queries = [of_held_out, of_samples]
        if stage:
            every = evenly(len(self._train), len(compared))
            images = np.stack([self._patch(index) for index in every.tolist()])
            copies = array_images(reconstruct(*stage, images), "training patches decoded")
            queries.append(real.features(space, copies))
        self._sought = [evenly(len(images), SOUGHT) for images in self._images]
        suspects = [of_samples[self._sought[0]], of_held_out[self._sought[1]]]
        centre = real.centre(space)
        found = NearestTraining(np.concatenate(queries), centre)
        candidates = NearestTraining(np.concatenate(suspects), centre, CANDIDATES)
        for chunk in stored_vectors(train, "train"):
            found.update(chunk)
            candidates.update(chunk)
        ends = np.cumsum([len(one) for one in queries])[:-1]
        held_out, self.samples, *rest = np.split(found.similarity[:, 0], ends)
        index_held_out, self._index_samples, *_ = np.split(found.index[:, 0], ends)
        # Samples of no patch in particular are compared with all of them.
        self._paired = samples.wanted is not None
        self.real = held_out[compared] if self._paired else held_out
        self._index_real = index_held_out[compared]
        self._copies = rest[0] if rest else None
        self._candidates = np.split(candidates.index, [len(suspects[0])])

    def of_real(self) -> UInt8[np.ndarray, "k p p 3"]:
        """The training patches nearest to the real ones."""
        return np.stack([self._patch(index) for index in self._index_real.tolist()])

    def patch(self, index: int) -> UInt8[np.ndarray, "p p 3"]:
        """The training patch nearest to the real patch of one sample, or to the sample itself."""
        return self._patch(int((self._index_real if self._paired else self._index_samples)[index]))

    def numbers(self) -> dict[str, Any]:
        return copying(self.samples, self.real, self._copies, paired=self._paired)

    def distances(self) -> dict[str, Float[np.ndarray, " _"]]:
        found = {"samples": 1 - self.samples, "real": 1 - self.real}
        return found if self._copies is None else found | {"copies": 1 - self._copies}

    def copies(self) -> tuple[dict[str, Any], list[Copy]]:
        """Samples whose pixels are those of a training patch; the SHOWN_COPIES likeliest to see.

        At most SOUGHT samples and as many held-out patches are looked at, evenly spaced ones.
        Nothing where there are too few held-out patches to tell what chance does.
        """
        sought, known = self._sought
        if len(known) < 2 * LEAST:
            logging.warning("%d held-out patches: too few to look for copied pixels", len(known))
            return {}, []
        samples, held_out = (
            Patches(np.stack([images[index] for index in indices.tolist()]), candidates)
            for images, indices, candidates in zip(
                self._images, self._sought, self._candidates, strict=True
            )
        )
        found = find_copies(samples, held_out, self._patch)
        numbers = {
            "sought": len(sought),
            "flagged": share(found.flagged),
            "flagged_samples": sought[found.flagged].tolist(),
            "flagged_held_out": share(found.held_out_flagged),
            "flagged_held_out_of": len(found.held_out_flagged),
            "agreement": estimated(found.agreement),
            "threshold": found.threshold,
        }
        return numbers, [
            Copy(
                index=int(sought[i]),
                sample=samples.images[i],
                training=self._patch(match),
                agreement=float(found.agreement[i]),
                flagged=bool(found.flagged[i]),
            )
            for i, match in found.shown(SHOWN_COPIES)
        ]

    def _patch(self, index: int) -> UInt8[np.ndarray, "p p 3"]:
        """One training patch."""
        return self._train[index]["image"]
