"""Denoisers of the published sizes, with random weights: values do not change the time."""

import dataclasses
import math
from functools import cached_property
from operator import itemgetter
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ssl_diffusion.diffusion.denoiser import Denoiser, make_denoiser
from ssl_diffusion.diffusion.schedule import Schedule, make_schedule
from ssl_diffusion.models.build import PRECISIONS, build_network
from ssl_diffusion.training.recipes import DIT_XL, UNET
from ssl_diffusion.weights.model import Apply, project

SIZES: dict[str, tuple[dict[str, Any], tuple[int, int, int], int]] = {  # fields, latent, context
    "unet": (UNET, (64, 64, 3), 512),
    "dit": (DIT_XL, (32, 32, 16), 1152),
    "small": (
        {
            "name": "unet",
            "base_channels": 32,
            "channel_multipliers": (1, 2),
            "blocks_per_level": 1,
            "attention_levels": (1,),
            "heads": 1,
            "out_channels": 3,
        },
        (16, 16, 3),
        64,
    ),
}
"""Of the U-Net of configs/bracs.py, the DiT of the pan-cancer model, and a small one."""


@dataclasses.dataclass(frozen=True)
class PublishedDenoiser:
    """A patch model as stitching takes it, whose embeddings are its context tokens.

    Attributes:
      name: of SIZES.
      dtype: of parameters and arithmetic, of PRECISIONS.
      tokens: of a context.
      params: of the network; None until `filled`.
    """

    name: str
    dtype: str
    tokens: int = 1
    params: PyTree = None
    factor = 4

    @cached_property
    def network(self) -> nn.Module:
        """The network."""
        return build_network(SIZES[self.name][0], PRECISIONS[self.dtype])

    @property
    def spec(self) -> dict[str, Any]:
        """What of model.json stitching asks for."""
        return {"embedding": {"tokens": self.tokens, "dim": SIZES[self.name][2]}, "mpp": None}

    @property
    def patch_px(self) -> int:
        """Pixels of a window."""
        return SIZES[self.name][1][0] * self.factor

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return SIZES[self.name][1][2]

    @cached_property
    def schedule(self) -> Schedule:
        """The published noise table."""
        return make_schedule("ldm_linear")

    @cached_property
    def shapes(self) -> PyTree:
        """Of the parameters, in their number format."""
        _, latent, width = SIZES[self.name]
        inputs = jnp.zeros((1, *latent)), jnp.zeros(1), jnp.zeros((1, self.tokens, width))
        shapes = jax.eval_shape(self.network.init, jax.random.key(0), *inputs)["params"]
        dtype = jnp.dtype(PRECISIONS[self.dtype].params)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)

    def filled(self) -> "PublishedDenoiser":
        """The same with random parameters, of variance 1 / fan-in."""
        rng = np.random.default_rng(0)

        def fill(leaf: jax.ShapeDtypeStruct) -> Array:
            scale = 1 / math.sqrt(max(math.prod(leaf.shape[:-1]), 1))
            values = rng.standard_normal(leaf.shape, np.float32)
            return jnp.asarray(values * np.float32(scale), leaf.dtype)

        return dataclasses.replace(self, params=jax.tree.map(fill, self.shapes))

    def context(self, embedding: Float[Any, "n tokens width"]) -> PyTree:
        """What the layers make of context tokens, once for all steps."""
        return project(self.params, jnp.asarray(embedding), PRECISIONS[self.dtype].compute)

    def denoiser(self, guidance: float) -> Denoiser:
        """The denoiser, of eps."""
        null = jnp.zeros((1, self.tokens, SIZES[self.name][2]))
        return make_denoiser(
            Apply(self.network),
            self.params,
            self.schedule,
            "eps",
            jax.tree.map(itemgetter(0), self.context(null)),
            guidance,
        )

    def decode(self, latent: Array) -> Array:
        """There is no first stage."""
        raise NotImplementedError
