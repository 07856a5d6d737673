"""The control of synthetic slides: as many ordinary variations of the real ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from ssl_diffusion.data.records import Records
from ssl_diffusion.encoders.augment import strong_augment
from ssl_diffusion.encoders.encoder import SSLEncoder, padded_chunks
from ssl_diffusion.mil.bags import Bag

# Of every patch its own draw: a flip or turn, a crop of 80 % or more, and colours as stains differ.
ORDINARY = {
    "crop": 0.8,
    "brightness": 0.1,
    "contrast": 0.1,
    "saturation": 0.2,
    "hue": 0.02,
    "blur_px": 0.5,
}


def ordinary_copies(
    records: Records, split: str, bags: list[Bag], encoder: SSLEncoder, per_slide: int, seed: int
) -> list[Bag]:
    """`per_slide` bags of each bag: its patches, varied one by one and embedded again."""
    source = records.source(split, ("image",))
    copies = []
    for bag in tqdm(bags, desc="ordinary augmentation", unit="slide"):
        images = np.stack([source[int(row)]["image"] for row in bag.rows])
        for number in range(per_slide):
            key = jax.random.fold_in(jax.random.key(seed), len(copies))
            features = encoder.embed(varied(images, key)).reshape(len(images), -1)
            name = f"{bag.name}#ordinary{number}"
            copies.append(dataclasses.replace(bag, name=name, features=features))
    return copies


def varied(images: UInt8[np.ndarray, "n s s 3"], key: Array) -> UInt8[np.ndarray, "n s s 3"]:
    """Each image with an ordinary variation of its own."""
    parts = []
    for number, (chunk, count) in enumerate(padded_chunks(images)):
        view = np.asarray(_view(jax.random.fold_in(key, number), chunk))
        parts.append(np.clip(np.round((view + 1) * 127.5), 0, 255).astype(np.uint8)[:count])
    return np.concatenate(parts)


@jax.jit
def _view(key: Array, images: Array) -> Float[Array, "n s s 3"]:
    return strong_augment(key, jnp.asarray(images) / 127.5 - 1.0, ORDINARY)
