"""What all sections of the report compare with: the real patches of the records, in every space."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from ssl_diffusion.data.records import Records
from ssl_diffusion.evaluation.feature_cache import cached_features
from ssl_diffusion.evaluation.features import one_vector
from ssl_diffusion.evaluation.image_sets import ImageSet, record_images
from ssl_diffusion.evaluation.spaces import Space

REFERENCE = 50_000  # training patches that sets are compared with, at most: evenly spaced ones
HELD_OUT, TRAIN = "test", "train"


class RealFeatures:
    """Real patches and their features; what is computed is kept in the folder `cache`.

    The first of `spaces` is that of the records' own encoder: there the stored embeddings are used.

    held_out    ImageSet of the whole held-out split
    reference   ImageSet of the training split, REFERENCE patches of it at most
    """

    def __init__(self, records: Records, spaces: Sequence[Space], cache: Path) -> None:
        self.records, self.spaces, self._cache = records, spaces, cache
        self.held_out = record_images(records, HELD_OUT)
        self._picked = evenly(records.count(TRAIN), REFERENCE)
        self.reference = record_images(records, TRAIN, self._picked)

    @property
    def conditioning(self) -> Space:
        """The space of the encoder whose embeddings condition the model."""
        return self.spaces[0]

    def features(self, space: Space, images: ImageSet) -> Float[np.ndarray, "n d"]:
        """Features of any set of images."""
        return cached_features(space, images, self._cache)

    @functools.cache  # noqa: B019 - lives as long as the command
    def of_held_out(self, space: Space) -> Float[np.ndarray, "m d"]:
        """Features of the whole held-out split."""
        if space is self.conditioning:
            return np.concatenate(list(stored_vectors(self.records, HELD_OUT)))
        return self.features(space, self.held_out)

    @functools.cache  # noqa: B019
    def of_reference(self, space: Space) -> Float[np.ndarray, "r d"]:
        """Features of the reference."""
        if space is self.conditioning:
            chunks, start = [], 0
            for chunk in stored_vectors(self.records, TRAIN):
                inside = (self._picked >= start) & (self._picked < start + len(chunk))
                chunks.append(chunk[self._picked[inside] - start])
                start += len(chunk)
            return np.concatenate(chunks)
        return self.features(space, self.reference)

    def centre(self, space: Space) -> Float[np.ndarray, " d"]:
        """The mean feature of the reference, from which cosines are taken."""
        return self.of_reference(space).mean(axis=0, dtype=np.float64).astype(np.float32)


def stored_vectors(records: Records, split: str) -> Iterator[Float[np.ndarray, "c d"]]:
    """The embeddings of a split in chunks, as vectors; a progress bar runs along."""
    source = records.source(split, ("embedding",))
    with tqdm(total=len(source), desc=f"{split} embeddings", unit="patch") as bar:
        for chunk in source.chunks("embedding"):
            yield one_vector(chunk, f"records, split {split}")
            bar.update(len(chunk))


def evenly(count: int, most: int) -> Int[np.ndarray, " n"]:
    """Indices of at most `most` of `count` items, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))
