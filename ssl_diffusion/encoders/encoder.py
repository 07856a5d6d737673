"""An encoder ready to use: uint8 patches in, embeddings out, in chunks of one compiled size."""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, PyTree, UInt8
from PIL import Image

from ssl_diffusion.devices import local_shardings
from ssl_diffusion.errors import InputError

CHUNK = (
    64  # always padded to this: a patch's embedding then does not depend on what it is batched with
)
RESIZES = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclasses.dataclass(frozen=True)
class SSLEncoder:
    """`spec` is its model.json: `image_size` px, `mean`, `std` of input in [0, 1], `embedding`.

    Patches of another size are resized to `image_size` by its `image_resize` ("bicubic" where it
    says none), see `resized`.
    """

    network: nn.Module
    params: PyTree
    spec: Mapping[str, Any]

    @property
    def patch_tokens(self) -> tuple[int, int]:
        """How many patch tokens the network has at its `image_size`, and their dimension."""
        return (self.spec["image_size"] // self.network.patch_size) ** 2, self.network.patch_dim

    @functools.cached_property
    def _params_on_each(self) -> PyTree:
        """The parameters on every device of this process."""
        return jax.device_put(self.params, local_shardings()[1])

    def embed(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n tokens dim"]:
        """Embeddings as the network gives them (not normalised).

        Raises InputError unless the images are squares.
        """
        shape = self.spec["embedding"]["tokens"], self.spec["embedding"]["dim"]
        chunks = self._in_chunks("__call__", images)
        return np.concatenate([np.zeros((0, *shape), np.float32), *chunks])

    def embed_with_patches(
        self, images: UInt8[np.ndarray, "n h w 3"]
    ) -> tuple[Float[np.ndarray, "n tokens dim"], Float[np.ndarray, "n patches width"]]:
        """Embeddings, and the patch tokens after the last norm, of one image or more.

        Raises InputError as `embed` does.
        """
        embeddings, patches = zip(*self._in_chunks("with_patches", images), strict=True)
        return np.concatenate(embeddings), np.concatenate(patches)

    def _in_chunks(self, method: str, images: np.ndarray) -> Iterator[Any]:
        """What a method of the network gives, `CHUNK` images at a time."""
        size, rule = self.spec["image_size"], self.spec.get("image_resize", "bicubic")
        mean, std = (np.asarray(self.spec[name], np.float32) for name in ("mean", "std"))
        check_squares(images)
        at_a_time, rows = spread(len(images), CHUNK)
        params = self.params if rows is None else self._params_on_each
        for chunk, count in padded_chunks(images, at_a_time):
            chunk = jax.device_put(resized(chunk, size, rule), rows)
            output = _apply(self.network, method, params, chunk, mean, std)
            yield jax.tree.map(lambda array, count=count: np.asarray(array)[:count], output)

    def reinitialised(self, seed: int) -> "SSLEncoder":
        """The same architecture with fresh parameters: the control for what training brought."""
        image = jnp.zeros((1, self.spec["image_size"], self.spec["image_size"], 3))
        params = jax.jit(self.network.init)(jax.random.key(seed), image)["params"]
        return dataclasses.replace(self, params=params)


def spread(count: int, chunk: int) -> tuple[int, NamedSharding | None]:
    """How `count` images go through a network: (how many at a time, where their rows lie).

    `chunk` on each of this process's devices at a time: every device runs what it would run alone,
    so that a vector does not depend on how many there are. What is one chunk stays on one device,
    and so does everything where there is but one: None.
    """
    devices = jax.local_device_count()
    if devices == 1 or count <= chunk:
        return chunk, None
    return chunk * devices, local_shardings()[0]


def check_squares(images: np.ndarray) -> None:
    """Raises InputError unless the images are squares."""
    if images.shape[1] != images.shape[2] or not images.shape[1]:
        raise InputError(f"patches of shape {images.shape[1:]}, expected squares: [size, size, 3]")


def padded_chunks(
    images: UInt8[np.ndarray, "n h w 3"], size: int = CHUNK
) -> Iterator[tuple[UInt8[np.ndarray, "chunk h w 3"], int]]:
    """(`size` images, how many of them are no padding) after each other."""
    for start in range(0, len(images), size):
        chunk = images[start : start + size]
        padding = np.zeros((size - len(chunk), *images.shape[1:]), np.uint8)
        yield np.concatenate([chunk, padding]), len(chunk)


def resized(
    images: UInt8[np.ndarray, "n s s 3"], size: int, rule: str
) -> UInt8[np.ndarray, "n {size} {size} 3"]:
    """Images at `size` px, antialiased, by `rule`, a key of RESIZES; as they are if they have it.

    Pillow does it on the host, image by image and in integers, as published pipelines do: the
    pixels depend on the image alone, not on batch, device or number format.
    """
    found = images.shape[1]
    if found == size:
        return images
    _say_resized(found, size, rule)

    def one(image: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(image).resize((size, size), RESIZES[rule]))

    return on_threads(one, images)


def on_threads(
    function: Callable[[np.ndarray], np.ndarray], images: Iterable[np.ndarray]
) -> np.ndarray:
    """What a function makes of each image, stacked; Pillow lets other threads run meanwhile."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return np.stack(list(pool.map(function, images)))


@functools.cache  # once, not with every chunk
def _say_resized(found: int, size: int, rule: str) -> None:
    logging.info("patches of %d px are resized to the encoder's %d px (%s)", found, size, rule)


def normalise(images: Float[Any, "n h w 3"], mean: Any, std: Any) -> Float[Any, "n h w 3"]:
    """Images in [0, 1] -> the encoder's input, channel by channel."""
    return (images - jnp.asarray(mean)) / jnp.asarray(std)


@partial(jax.jit, static_argnums=(0, 1))
def _apply(network: nn.Module, method: str, params: PyTree, images: Array, mean: Array, std: Array):
    images = normalise(images / 255.0, mean, std)
    return network.apply({"params": params}, images, method=method)
