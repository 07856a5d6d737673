"""The training sets that are compared: real patches, synthetic ones, and ordinary augmentations."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8
from tqdm import tqdm

from ssl_diffusion.augmentation.examples import Examples
from ssl_diffusion.augmentation.variations import NONE
from ssl_diffusion.encoders.augment import augment
from ssl_diffusion.evaluation.image_sets import ImageSet

REAL, SYNTHETIC, ORDINARY = 0, 1, 2
ARMS = {
    "real": (REAL,),
    "synthetic": (SYNTHETIC,),
    "real + synthetic": (REAL, SYNTHETIC),
    "real + ordinary": (REAL, ORDINARY),
}
# Flips and turns, a crop, colour jitter as is usual for slides; hue is nearly left alone.
VIEW = {
    "crop": 0.6,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 0.02,
    "blur_px": 0.5,
}
# For labels that are measured of pixels, which other colours or small crops would change: flips,
# turns, and crops so mild that about one label in a hundred changes.
KEEPING = dict.fromkeys(VIEW, 0.0) | {"crop": 0.9}
CHUNK = 64  # images at once, always: one compilation


@dataclass(frozen=True)
class Patches:
    """Training patches of any kind; `row` is a number in the pool, see `Pool.images`."""

    kind: Int[np.ndarray, " n"]
    row: Int[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]
    group: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True)
class Pool:
    """Real labelled patches that have variations, these, and as many ordinary views.

    Attributes:
      real, synthetic: sources of images.
      originals: rows of `real` that are in the pool, sorted.
      varied: place in `originals` of the patch that each synthetic one varies; -1 leaves it out.
        Ordinary view number k is one of the patch that synthetic patch number k varies: there are
        as many of both, patch by patch.
      partner: place in `originals` of the patch that it was interpolated towards, -1 for none.
      label, group: of `originals`.
      view: how ordinary views are made, see `encoders.augment`.
      seed: of the ordinary views.
    """

    real: Examples
    synthetic: Examples
    originals: Int[np.ndarray, " n"]
    varied: Int[np.ndarray, " m"]
    partner: Int[np.ndarray, " m"]
    label: Int[np.ndarray, " n"]
    group: Int[np.ndarray, " n"]
    view: Mapping[str, float]
    seed: int = 0

    def subset(self, fraction: float, seed: int) -> Int[np.ndarray, " k"]:
        """Places in `originals` of a part of each class, at least two patches; sorted.

        Smaller parts of one seed lie within larger ones.
        """
        rng = np.random.default_rng(seed)
        chosen = []
        for c in np.unique(self.label):
            own = rng.permutation(np.flatnonzero(self.label == c))
            chosen.append(own[: max(2, round(fraction * len(own)))])
        return np.sort(np.concatenate(chosen))

    def is_raised(self, fraction: float) -> bool:
        """Whether a subset has more of some class than its fraction, which would be less than 2."""
        return bool((np.round(fraction * np.unique(self.label, return_counts=True)[1]) < 2).any())

    def arm(self, name: str, chosen: Int[np.ndarray, " k"]) -> Patches:
        """The training set of an arm, of the chosen originals and what was made of them alone.

        What was interpolated knows the labels of both its ends: both have to be chosen.
        """
        own = np.isin(self.varied, chosen)
        own &= (self.partner == NONE) | np.isin(self.partner, chosen)
        of_chosen = np.flatnonzero(own)
        parts = [
            (kind, chosen if kind == REAL else of_chosen, chosen)
            if kind == REAL
            else (kind, of_chosen, self.varied[of_chosen])
            for kind in ARMS[name]
        ]
        origin = np.concatenate([origin for _, _, origin in parts])
        return Patches(
            kind=np.concatenate([np.full(len(rows), kind) for kind, rows, _ in parts]),
            row=np.concatenate([rows for _, rows, _ in parts]),
            label=self.label[origin],
            group=self.group[origin],
        )

    def images(self, kind: int, rows: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k h w 3"]:
        """Real patches by their place in `originals`, the others by the synthetic patch's row."""
        if kind == SYNTHETIC:
            return _read(self.synthetic, rows)
        if kind == REAL:
            return _read(self.real, self.originals[rows])
        return self._views(rows)

    def mixed(
        self, kinds: Int[np.ndarray, " k"], rows: Int[np.ndarray, " k"]
    ) -> UInt8[np.ndarray, "k h w 3"]:
        """Images of several kinds, in order."""
        images: np.ndarray | None = None
        for kind in np.unique(kinds):
            some = self.images(int(kind), rows[kinds == kind])
            if images is None:
                images = np.zeros((len(kinds), *some.shape[1:]), np.uint8)
            images[kinds == kind] = some
        return images

    def all_of(self, kind: int) -> "Numbered":
        """All images of a kind, by the numbers that `images` takes."""
        count = len(self.originals) if kind == REAL else len(self.varied)
        name = ("real", "synthetic", "ordinary")[kind]
        return Numbered(name, count, partial(self.images, kind))

    def changed(
        self, kind: int, measured: Callable[[np.ndarray], Int[np.ndarray, " k"]]
    ) -> Bool[np.ndarray, " m"]:
        """Which patches of a kind have, measured again, another label than the one they take."""
        found = np.zeros(len(self.varied), bool)
        inside = np.flatnonzero(self.varied != NONE)
        for first in tqdm(range(0, len(inside), CHUNK), desc="labels again", leave=False):
            rows = inside[first : first + CHUNK]
            found[rows] = measured(self.images(kind, rows)) != self.label[self.varied[rows]]
        return found[inside]

    def _views(self, rows: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k h w 3"]:
        views = []
        for first in range(0, len(rows), CHUNK):
            some = rows[first : first + CHUNK]
            filled = np.resize(some, CHUNK)
            real = _read(self.real, self.originals[self.varied[filled]])
            views.append(
                np.asarray(self._view(jnp.asarray(filled), jnp.asarray(real)))[: len(some)]
            )
        return np.concatenate(views)

    @cached_property
    def _view(self) -> Callable[[Array, Array], Array]:
        root = jax.random.key(self.seed)

        @jax.jit
        @jax.vmap
        def view(row: Array, image: Array) -> Array:
            made = augment(jax.random.fold_in(root, row), image / 127.5 - 1.0, self.view)
            return jnp.clip(jnp.round((made + 1) * 127.5), 0, 255).astype(jnp.uint8)

        return view


class Numbered(ImageSet):
    """Images that a function gives for some of the numbers 0 to `count` - 1."""

    def __init__(self, name: str, count: int, images: Callable[[np.ndarray], np.ndarray]):
        self._images = images
        height, width = images(np.arange(1)).shape[1:3]
        super().__init__(name, count, (height, width), {"kind": "made", "format": None})

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return self._images(np.array([index]))[0]

    def _read(self, indices: range, pool: ThreadPoolExecutor) -> list[np.ndarray]:
        del pool  # views are made many at once
        return [*self._images(np.array(indices))]


def _read(source: Examples, rows: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k h w 3"]:
    return np.stack([source[int(row)]["image"] for row in rows])
