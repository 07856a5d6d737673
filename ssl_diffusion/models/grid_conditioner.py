"""From labels, text, measurements and painted maps to what the grid's denoiser attends to."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ssl_diffusion.models.layers import MLP

KINDS = ("label", "text", "vector", "label_map")

Conditions = Mapping[str, Float[Array, "b _"] | Int[Array, "b _ _"]]
"""By kind, of those that a prior has:

    label      [b, classes]  share of each class in the grid
    text       [b, dim]      embedding of a sentence by the text encoder
    vector     [b, names]    measurements, standardised
    label_map  [b, h, w]     class of each cell, -1 where it is not said
"""


class GridConditioner(nn.Module):
    """`apply({"params": p}, conditions, given) -> {"tokens": [b m width], "cells": [b h w width]}`.

    `given` says which of `kinds`, in their order, an example has; nothing else is looked at.
    Each kind has an encoder of its own and its own token, or a learned one where it is not given; a
    label map becomes what is added to each cell ("cells", left out where the prior has no maps).
    One more token is always the same. A field of 0 is a kind that the prior has not.

    Attributes:
      width: of tokens and cells.
      classes: of labels.
      text: numbers of a sentence's embedding.
      vector: numbers that are measured.
      map_classes: of label maps.
    """

    width: int
    classes: int = 0
    text: int = 0
    vector: int = 0
    map_classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, conditions: Conditions, given: Bool[Array, "b kinds"]) -> dict[str, Array]:
        init = nn.initializers.normal(1.0)
        has = dict(zip(self.kinds, given.T, strict=True))
        encoders = {
            # Shares sum to 1 and sentences have norm 1: kernels of unit variance make tokens so.
            "label": nn.Dense(self.width, kernel_init=init, name="label"),
            "text": nn.Dense(self.width, kernel_init=init, name="text"),
            "vector": MLP(2 * self.width, self.width, nn.gelu, name="vector"),
        }
        null = self.param("null", init, (1 + len(encoders), self.width))
        tokens = [jnp.broadcast_to(null[0], (len(given), self.width))]
        for row, (kind, encode) in enumerate(encoders.items(), start=1):
            if kind in self.kinds:
                token = encode(conditions[kind])
                tokens.append(jnp.where(has[kind][:, None], token, null[row]))
        context = {"tokens": jnp.stack(tokens, axis=1)}
        if self.map_classes:
            said = jnp.where(has["label_map"][:, None, None], conditions["label_map"], -1)
            embed = nn.Embed(1 + self.map_classes, self.width, embedding_init=init, name="cells")
            context["cells"] = embed(1 + said)
        return context

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of condition that it knows."""
        sizes = dict(
            zip(KINDS, (self.classes, self.text, self.vector, self.map_classes), strict=True)
        )
        return tuple(kind for kind, size in sizes.items() if size)
