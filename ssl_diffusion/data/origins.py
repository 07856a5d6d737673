"""What records are cut from: origins, each opened and read row by row.

An origin is a slide, a raster, an image, or a list of patches that somebody cut before. It is a
small frozen dataclass that can be sent to another process; what it takes to read it is made by
`open`. Rows are what work is shared in: a row of patches of a picture, or some patches of a list.
Nothing that is read depends on which process reads it, or when.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np

SPLITS = ("train", "val", "test")


class Example(TypedDict, total=False):
    """One patch as it was cut; `split` and one of the first two are always there.

    image      uint8 [patch_px, patch_px, 3], or
    encoded    bytes of a PNG or JPEG file of that size, which become the record's as they are
    split      one of SPLITS
    x, y       corner in pixels at the records' resolution; 0 where nobody knows
    label      name of its class; the origin's where it has none
    text       of this patch; the origin's where it has none
    embedding  float32 [tokens, dim], where the origin brings its own
    latent     float16 [h, w, c], raw, where the origin brings its own
    latent_std float16 [h, w, c], the posterior's deviation, beside a latent that is its mean
    """

    image: np.ndarray
    encoded: bytes
    split: str
    x: int
    y: int
    label: str
    text: str
    embedding: np.ndarray
    latent: np.ndarray
    latent_std: np.ndarray


@runtime_checkable
class Opened(Protocol):
    """An origin that is being read.

    Attributes:
      rows: how many there are to cut; known without reading pixels.
      most: patches that all rows together may hold, at most.
      about: what the description of the data set says of it (JSON): `width`, `height` px and `mpp`
        as the file has them, where it has them, `scale` (its pixels, across and down, for one of
        the records), `picture` (the image file, if `path` is another), `format`, how it was read.
    """

    rows: int
    most: int
    about: dict[str, Any]

    def cut(self, row: int) -> list[Example]:
        """The examples of one row, in order; InputError if it cannot be read."""
        ...


@runtime_checkable
class Origin(Protocol):
    """Something to cut.

    Attributes:
      name: `source` of its records: the path below what was asked for, with slashes.
      path: the file it is read from first.
      split: of all its patches; None where held-out blocks say it patch by patch.
      group: what must not lie in two splits: a patient, a slide, a region; mostly `name`.
      label, text: of all its patches; "" for none.
    """

    name: str
    path: str
    split: str | None
    group: str
    label: str
    text: str

    def open(self) -> Opened:
        """Opens the file; InputError, of which the reason is told, if it cannot be used."""
        ...


@dataclass(frozen=True)
class Collection:
    """Everything that records are to be made of.

    Attributes:
      origins: in the order of the records.
      layout: how it was recognised, in a word, for the log and the description.
      classes: names of the labels, in order; empty without labels.
      embedding: [tokens, dim] of the embeddings that the origins bring; None if they bring none.
      latent: [h, w, c] of the latents that they bring; None if they bring none.
      latent_std: whether their deviations come with them.
      latent_scaling: (shift, scale): scaled = (raw - shift) * scale is about of unit variance.
      settings: what of the reading is the same for all origins, for the description.
    """

    origins: Sequence[Origin]
    layout: str
    classes: tuple[str, ...] = ()
    embedding: tuple[int, int] | None = None
    latent: tuple[int, int, int] | None = None
    latent_std: bool = False
    latent_scaling: tuple[float, float] = (0.0, 1.0)
    settings: dict[str, Any] = field(default_factory=dict)
