"""REPA: a layer of the denoiser is drawn towards the SSL encoder's patch tokens of the clean image.

Yu et al. 2024, arXiv 2410.06940, eq. 8: a small network projects the layer's features of the noisy
latent, place by place, to what the encoder says of that place; the loss is minus the mean cosine
between them. It is used in training only.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ssl_diffusion.errors import InputError
from ssl_diffusion.models.layers import Dense

SETTINGS = {"layer", "hidden", "weight"}


class Projector(nn.Module):
    """Three linear layers with SiLU between them (the paper's appendix)."""

    hidden: int
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b {self.width}"]:
        x = nn.silu(Dense(self.hidden, name="linear_1")(x))
        x = nn.silu(Dense(self.hidden, name="linear_2")(x))
        return Dense(self.width, name="linear_3")(x)


class Alignment:
    """The loss of one layer of `network` against tokens [count, dim], a square of them.

    `settings` are the layer's name in the parameters (a block, "transformer_blocks_7" or
    "middle_block_2"), the projector's `hidden` width, and the loss's `weight`. Raises InputError
    for other settings and for tokens that make no square, and from `init` for a layer that is not
    there.
    """

    def __init__(self, settings: Mapping[str, Any], network: nn.Module, tokens: tuple[int, int]):
        if {*settings} != SETTINGS:
            raise InputError(
                f"config.objective.repa holds {', '.join(sorted(settings))}, expected "
                f"{', '.join(sorted(SETTINGS))}"
            )
        hidden, weight = settings["hidden"], settings["weight"]
        if not isinstance(hidden, int) or hidden < 1:
            raise InputError(f"config.objective.repa.hidden is {hidden!r}, expected a width")
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise InputError(
                f"config.objective.repa.weight is {weight!r}, expected a number, 0 or more"
            )
        count, dim = tokens
        self.side = math.isqrt(count)
        if self.side**2 != count:
            raise InputError(f"{count} patch tokens, expected a square number of them")
        self.layer, self.weight = settings["layer"], weight
        self.network, self.projector = network, Projector(hidden, dim)

    def init(self, key: Array, params: PyTree, *inputs: Array) -> PyTree:
        """The projector's parameters, given the network's and what it is called with."""
        names = [name for name in params if "block" in name]
        if self.layer not in names:
            raise InputError(
                f"config.objective.repa.layer is {self.layer!r}, expected one of {', '.join(names)}"
            )
        _, hidden = jax.eval_shape(self.apply, params, *inputs)
        return self.projector.init(key, jnp.zeros((1, hidden.shape[-1])))["params"]

    def apply(self, params: PyTree, *inputs: Any) -> tuple[Array, Array]:
        """(the network's output, the layer's features [b h w c])."""

        def wanted(module: nn.Module, method: str) -> bool:
            return module.name == self.layer and method == "__call__"

        output, kept = self.network.apply(
            {"params": params}, *inputs, capture_intermediates=wanted, mutable=["intermediates"]
        )
        (hidden,) = kept["intermediates"][self.layer]["__call__"]
        if hidden.ndim == 3:  # a transformer's row of tokens, of a square latent
            side = math.isqrt(hidden.shape[1])
            hidden = hidden.reshape(len(hidden), side, side, -1)
        return output, hidden

    def loss(
        self, params: PyTree, hidden: Float[Array, "b h w c"], tokens: Float[Array, "b n d"]
    ) -> Float[Array, " b"]:
        """Minus the mean cosine of each example; where the grids differ, on the tokens' own."""
        projected = self.projector.apply({"params": params}, hidden.astype(jnp.float32))
        shape = len(projected), self.side, self.side, projected.shape[-1]
        projected = jax.image.resize(projected, shape, "linear").reshape(tokens.shape)
        return -_cosine(projected, tokens.astype(jnp.float32)).mean(-1)


def _cosine(a: Float[Array, "b n d"], b: Float[Array, "b n d"]) -> Float[Array, "b n"]:
    norms = jnp.square(a).sum(-1) * jnp.square(b).sum(-1)
    return (a * b).sum(-1) * jax.lax.rsqrt(jnp.maximum(norms, 1e-24))


def make_alignment(
    settings: Mapping[str, Any] | None, network: nn.Module, tokens: tuple[int, int] | None
) -> Alignment | None:
    """None where `config.objective.repa` is; InputError where there are no tokens."""
    if not settings:
        return None
    if tokens is None:
        raise InputError(
            "config.objective.repa aligns to patch tokens, and there are none; set "
            "config.data.patch_tokens and prepare records with it"
        )
    return Alignment(settings, network, tokens)
