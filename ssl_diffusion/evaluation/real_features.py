"""What all sections of the report compare with: the real patches of the records, in every space."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from ssl_diffusion.data.records import Records
from ssl_diffusion.evaluation.feature_cache import cached_features
from ssl_diffusion.evaluation.features import one_vector
from ssl_diffusion.evaluation.image_sets import ImageSet, record_images
from ssl_diffusion.evaluation.intervals import evenly
from ssl_diffusion.evaluation.spaces import Space

REFERENCE = 50_000  # training patches that sets are compared with, at most
HELD_OUT, TRAIN = "test", "train"


class RealFeatures:
    """Real patches and their features; what is computed is kept in the folder `cache`.

    The first of `spaces` is that of the records' own encoder: there the stored embeddings are used.

    held_out    ImageSet of the whole held-out split
    reference   ImageSet of the training split, `most` patches of it at most, evenly spaced
    """

    def __init__(
        self, records: Records, spaces: Sequence[Space], cache: Path, most: int = REFERENCE
    ) -> None:
        self.records, self.spaces, self._cache = records, spaces, cache
        self.held_out = record_images(records, HELD_OUT)
        self.reference, self._picked = _spread(record_images(records, TRAIN), most)
        self._kept: dict[tuple[str, str], np.ndarray] = {}

    @property
    def conditioning(self) -> Space:
        """The space of the encoder whose embeddings condition the model."""
        return self.spaces[0]

    def features(self, space: Space, images: ImageSet) -> Float[np.ndarray, "n d"]:
        """Features of any set of images."""
        return cached_features(space, images, self._cache)

    def of_held_out(self, space: Space) -> Float[np.ndarray, "m d"]:
        """Features of the whole held-out split."""
        every = np.arange(len(self.held_out))
        return self._once(space, self.held_out, HELD_OUT, every)

    def of_reference(self, space: Space) -> Float[np.ndarray, "r d"]:
        """Features of the reference."""
        return self._once(space, self.reference, TRAIN, self._picked)

    def _once(
        self, space: Space, images: ImageSet, split: str, indices: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n d"]:
        key = space.name, split
        if key not in self._kept:
            stored = space is self.conditioning
            self._kept[key] = (
                _stored(self.records, split, indices) if stored else self.features(space, images)
            )
        return self._kept[key]

    def centre(self, space: Space) -> Float[np.ndarray, " d"]:
        """The mean feature of the reference, from which cosines are taken."""
        return self.of_reference(space).mean(axis=0, dtype=np.float64).astype(np.float32)


class _Spread(ImageSet):
    """Some images of a set."""

    def __init__(self, images: ImageSet, indices: Int[np.ndarray, " n"]) -> None:
        settings = images.settings | {"count": len(indices), "evenly_spaced_of": len(images)}
        super().__init__(images.name, len(indices), images.size, settings)
        self._images, self._indices = images, indices

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return self._images[int(self._indices[index])]


def _spread(images: ImageSet, most: int) -> tuple[ImageSet, Int[np.ndarray, " n"]]:
    """At most so many of the images, and which they are."""
    indices = evenly(len(images), most)
    few = len(indices) < len(images)
    return _Spread(images, indices) if few else images, indices


def _stored(
    records: Records, split: str, indices: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "n d"]:
    """Stored embeddings at ascending indices."""
    chunks, start = [], 0
    for chunk in stored_vectors(records, split):
        inside = (indices >= start) & (indices < start + len(chunk))
        chunks.append(chunk[indices[inside] - start])
        start += len(chunk)
    return np.concatenate(chunks)


def stored_vectors(records: Records, split: str) -> Iterator[Float[np.ndarray, "c d"]]:
    """The embeddings of a split in chunks, as vectors; a progress bar runs along."""
    source = records.source(split, ("embedding",))
    with tqdm(total=len(source), desc=f"{split} embeddings", unit="patch") as bar:
        for chunk in source.chunks("embedding"):
            yield one_vector(chunk, f"records, split {split}")
            bar.update(len(chunk))
