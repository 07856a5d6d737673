"""An encoder ready to use: uint8 patches in, embeddings out, in chunks of one compiled size."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from ssl_diffusion.errors import InputError

CHUNK = (
    64  # always padded to this: a patch's embedding then does not depend on what it is batched with
)


@dataclasses.dataclass(frozen=True)
class SSLEncoder:
    """`spec` is its model.json: `image_size` px, `mean`, `std` of input in [0, 1], `embedding`."""

    network: nn.Module
    params: PyTree
    spec: Mapping[str, Any]

    @property
    def patch_tokens(self) -> tuple[int, int]:
        """How many patch tokens the network has at its `image_size`, and their dimension."""
        return (self.spec["image_size"] // self.network.patch_size) ** 2, self.network.dim

    def embed(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n tokens dim"]:
        """Embeddings as the network gives them (not normalised).

        Raises InputError unless the images have the size the encoder was made for.
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
        size = self.spec["image_size"]
        if images.shape[1:] != (size, size, 3):
            raise InputError(
                f"patches of shape {images.shape[1:]}, expected ({size}, {size}, 3) by this encoder"
            )
        mean, std = (np.asarray(self.spec[name], np.float32) for name in ("mean", "std"))
        for start in range(0, len(images), CHUNK):
            chunk = images[start : start + CHUNK]
            padded = np.concatenate(
                [chunk, np.zeros((CHUNK - len(chunk), size, size, 3), np.uint8)]
            )
            output = _apply(self.network, method, self.params, padded, mean, std)
            count = len(chunk)
            yield jax.tree.map(lambda array, count=count: np.asarray(array)[:count], output)

    def reinitialised(self, seed: int) -> "SSLEncoder":
        """The same architecture with fresh parameters: the control for what training brought."""
        image = jnp.zeros((1, self.spec["image_size"], self.spec["image_size"], 3))
        params = jax.jit(self.network.init)(jax.random.key(seed), image)["params"]
        return dataclasses.replace(self, params=params)


def normalise(images: Float[Any, "n h w 3"], mean: Any, std: Any) -> Float[Any, "n h w 3"]:
    """Images in [0, 1] -> the encoder's input, channel by channel."""
    return (images - jnp.asarray(mean)) / jnp.asarray(std)


@partial(jax.jit, static_argnums=(0, 1))
def _apply(network: nn.Module, method: str, params: PyTree, images: Array, mean: Array, std: Array):
    images = normalise(images / 255.0, mean, std)
    return network.apply({"params": params}, images, method=method)
