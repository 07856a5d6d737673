"""An encoder ready to use: uint8 patches in, embeddings out, in chunks of one compiled size."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree, UInt8

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

    def embed(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n tokens dim"]:
        """Embeddings as the network gives them (not normalised).

        Raises InputError unless the images have the size the encoder was made for.
        """
        size = self.spec["image_size"]
        if images.shape[1:] != (size, size, 3):
            raise InputError(
                f"patches of shape {images.shape[1:]}, expected ({size}, {size}, 3) by this encoder"
            )
        chunks = [
            np.zeros(
                (0, self.spec["embedding"]["tokens"], self.spec["embedding"]["dim"]), np.float32
            )
        ]
        mean, std = (np.asarray(self.spec[name], np.float32) for name in ("mean", "std"))
        for start in range(0, len(images), CHUNK):
            chunk = images[start : start + CHUNK]
            padded = np.concatenate(
                [chunk, np.zeros((CHUNK - len(chunk), size, size, 3), np.uint8)]
            )
            output = _embed(self.network, self.params, padded, mean, std)
            chunks.append(np.asarray(output)[: len(chunk)])
        return np.concatenate(chunks)

    def reinitialised(self, seed: int) -> "SSLEncoder":
        """The same architecture with fresh parameters: the control for what training brought."""
        image = jnp.zeros((1, self.spec["image_size"], self.spec["image_size"], 3))
        params = jax.jit(self.network.init)(jax.random.key(seed), image)["params"]
        return dataclasses.replace(self, params=params)


def normalise(images: Float[Any, "n h w 3"], mean: Any, std: Any) -> Float[Any, "n h w 3"]:
    """Images in [0, 1] -> the encoder's input, channel by channel."""
    return (images - jnp.asarray(mean)) / jnp.asarray(std)


@partial(jax.jit, static_argnums=0)
def _embed(network: nn.Module, params: PyTree, images, mean, std):
    return network.apply({"params": params}, normalise(images / 255.0, mean, std))
