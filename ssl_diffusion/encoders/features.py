"""A feature network ready to use: uint8 images in, vectors for Frechet and kernel distances out."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8
from PIL import Image

from ssl_diffusion.devices import local_shardings
from ssl_diffusion.encoders.encoder import on_threads, padded_chunks, spread
from ssl_diffusion.encoders.inception import Inception
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.build import build_named

NETWORKS = {"inception": Inception}
CHUNK = 32  # always padded to this: an image's features do not depend on what it is batched with
RESIZES = ("tensorflow", "clean")


def build_feature_network(architecture: Mapping[str, Any]) -> Inception:
    """Returns the network `architecture["name"]`, "inception"; InputError for another."""
    return build_named("feature network", NETWORKS, architecture)


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """`spec` is its model.json, `digest` the SHA-256 of its weights.

    Images of any size and aspect become squares of `network.size` px by one of RESIZES:
      "tensorflow": bilinear without antialiasing, corner to corner, as the graph of FID itself
        does; distances of most papers were measured so.
      "clean": Pillow's bicubic with antialiasing, in float, as Parmar et al. 2022 (arXiv
        2104.11222) propose: no pixel of a large image is left out.
    Distances of the one and of the other are not comparable. Raises InputError for another.
    """

    network: Inception
    params: PyTree
    spec: Mapping[str, Any]
    digest: str
    resize: str = "tensorflow"

    def __post_init__(self):
        if self.resize not in RESIZES:
            raise InputError(f"resize is {self.resize!r}, expected one of {', '.join(RESIZES)}")

    @cached_property
    def _params_on_each(self) -> PyTree:
        """The parameters on every device of this process."""
        return jax.device_put(self.params, local_shardings()[1])

    def features(self, images: UInt8[np.ndarray, "n h w 3"]) -> dict[int, Float[np.ndarray, "n _"]]:
        """{768: ..., 2048: ...}, one float32 vector per image, none negative.

        Raises InputError for images without pixels.
        """
        if 0 in images.shape[1:]:
            raise InputError(f"images of shape {images.shape[1:]}, expected pixels: [h, w, 3]")
        size = self.network.size
        found = {width: [np.zeros((0, width), np.float32)] for width in self.network.widths}
        at_a_time, rows = spread(len(images), CHUNK)
        params = self.params if rows is None else self._params_on_each
        for chunk, count in padded_chunks(images, at_a_time):
            if self.resize == "clean":
                chunk = on_threads(partial(resize_clean, size=size), chunk)
            chunk = jax.device_put(chunk, rows)
            for width, features in _apply(self.network, params, chunk).items():
                found[width].append(np.asarray(features)[:count])
        return {width: np.concatenate(parts) for width, parts in found.items()}


@partial(jax.jit, static_argnums=0)
def _apply(network: nn.Module, params: PyTree, images: Array) -> dict[int, Array]:
    pixels = resize_tensorflow(images.astype(jnp.float32), network.size)
    # An accelerator's usual shortcut for float32 has 10 bits: distances would differ by device.
    with jax.default_matmul_precision("float32"):
        return network.apply({"params": params}, (pixels - 128.0) / 128.0)


def resize_tensorflow(
    images: Float[Array, "n h w 3"], size: int
) -> Float[Array, "n {size} {size} 3"]:
    """Bilinear as TensorFlow 1 has it: output i lies at i * old / size, and nothing is smoothed.

    So it shifts the image by up to half a pixel, and drops pixels of large ones: a part of the
    definition of FID, not to be mended.
    """
    for axis in (1, 2):
        low, high, fraction = _neighbours(images.shape[axis], size)
        fraction = fraction.reshape(-1, *[1] * (3 - axis))
        first, second = jnp.take(images, low, axis), jnp.take(images, high, axis)
        images = first + (second - first) * fraction
    return images


def _neighbours(
    old: int, new: int
) -> tuple[Int[np.ndarray, "{new}"], Int[np.ndarray, "{new}"], Float[np.ndarray, "{new}"]]:
    """For every output the two inputs it lies between, and where between them, 0 to 1."""
    place = np.arange(new, dtype=np.float32) * np.float32(old / new)
    low = np.minimum(place.astype(int), old - 1)
    return low, np.minimum(low + 1, old - 1), place - low


def resize_clean(
    image: UInt8[np.ndarray, "h w 3"], size: int
) -> Float[np.ndarray, "{size} {size} 3"]:
    """Pillow's antialiased bicubic of every channel in float32, cut to 0..255.

    At edges it overshoots a little, which clean-fid 0.1.35, the code of Parmar et al., cuts off.
    """
    channels = [
        np.asarray(Image.fromarray(channel).resize((size, size), Image.Resampling.BICUBIC))
        for channel in np.moveaxis(image.astype(np.float32), -1, 0)
    ]
    return np.stack(channels, axis=-1).clip(0, 255)
