"""The control of synthetic slides: as many ordinary variations of the real ones."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from ssl_diffusion.augmentation.arms import KEEPING
from ssl_diffusion.data.records import Records
from ssl_diffusion.encoders.augment import strong_augment
from ssl_diffusion.encoders.encoder import SSLEncoder, padded_chunks
from ssl_diffusion.mil.bags import PLANTED, Bag
from ssl_diffusion.mil.planted import HAEMATOXYLIN
from ssl_diffusion.mil.synthetic import MARK, cells_of

# Of every patch its own draw: a flip or turn, a crop of 80 % or more, and colours as stains differ.
VIEW = {
    "crop": 0.8,
    "brightness": 0.1,
    "contrast": 0.1,
    "saturation": 0.2,
    "hue": 0.02,
    "blur_px": 0.5,
}


def ordinary_copies(
    records: Records,
    split: str,
    real: list[Bag],
    made: list[Bag],
    encoder: SSLEncoder,
    view: Mapping[str, float],
    seed: int,
) -> list[Bag]:
    """For each synthetic bag one of its own slide: patches varied one by one and embedded again.

    Args:
      records: of the real slides.
      split: theirs.
      real: bags of these.
      made: synthetic bags of these.
      encoder: of the records.
      view: how patches are varied, as `view_of` the records.
      seed: of all variations.

    Returns:
      In the order of `made`, each of the patches on the lattice that synthetic slides have.
    """
    source = records.source(split, ("image",))
    by_name = {bag.name: bag for bag in real}
    copies = []
    for number, one in enumerate(tqdm(made, desc="ordinary augmentation", unit="slide")):
        bag = by_name[one.name.rpartition(MARK)[0]]
        chosen = cells_of(bag, records.metadata["patch_px"]).patches
        images = np.stack([source[int(row)]["image"] for row in bag.rows[chosen]])
        key = jax.random.fold_in(jax.random.key(seed), number)
        features = encoder.embed(varied(images, view, key)).reshape(len(images), -1)
        name = one.name.replace(MARK, "#ordinary")
        planted = None if bag.planted is None else bag.planted[chosen]
        at = {"x": bag.x[chosen], "y": bag.y[chosen], "rows": bag.rows[chosen]}
        copies.append(dataclasses.replace(bag, name=name, features=features, planted=planted, **at))
    return copies


def view_of(records: Records) -> Mapping[str, float]:
    """How patches are varied: where the stain itself makes the label, in nothing of colour."""
    planted = records.metadata.get(PLANTED)
    return KEEPING if planted and planted["kind"] == HAEMATOXYLIN else VIEW


def varied(
    images: UInt8[np.ndarray, "n s s 3"], view: Mapping[str, float], key: Array
) -> UInt8[np.ndarray, "n s s 3"]:
    """Each image with an ordinary variation of its own."""
    make = functools.partial(_view, view=tuple(view.items()))
    parts = []
    for number, (chunk, count) in enumerate(padded_chunks(images)):
        view = np.asarray(make(jax.random.fold_in(key, number), chunk))
        parts.append(np.clip(np.round((view + 1) * 127.5), 0, 255).astype(np.uint8)[:count])
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnames="view")
def _view(
    key: Array, images: Array, *, view: tuple[tuple[str, float], ...]
) -> Float[Array, "n s s 3"]:
    return strong_augment(key, jnp.asarray(images) / 127.5 - 1.0, dict(view))
