"""Text encoders: tokens of a sentence -> one vector.

`Bert` is the sentence encoder (Devlin et al. 2019, arXiv 1810.04805, pooled as Reimers & Gurevych
2019, arXiv 1908.10084); `ClipText` the text tower of CLIP (Radford et al. 2021, arXiv 2103.00020)
and its descendants. Both are called with token ids and a mask, True where there is text, which
every row has; padding stands behind the text. What they return is not normalised.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ssl_diffusion.encoders.vit import ACTIVATIONS, Block
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.build import build_named
from ssl_diffusion.models.layers import MLP, Attention, Dense


class PostNormBlock(nn.Module):
    """Attention and MLP, each added to its input and then normalised (Vaswani et al. 2017)."""

    heads: int
    mlp_ratio: float
    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], mask: Bool[Array, "b 1 n"]
    ) -> Float[Array, "b n c"]:
        width = x.shape[-1]
        norm = partial(nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        attention = Attention(self.heads, qkv_bias=True, dtype=self.dtype, name="attn")
        hidden = round(width * self.mlp_ratio)
        mlp = MLP(hidden, width, ACTIVATIONS["gelu"], dtype=self.dtype, name="mlp")
        x = norm(name="norm1")(x + attention(x, mask=mask))
        return norm(name="norm2")(x + mlp(x))


class Bert(nn.Module):
    """Ids and mask [b, n] -> the mean over the text's last hidden states [b, width].

    Attributes:
      vocabulary: how many tokens there are.
      positions: how many tokens a sentence may have at most.
      width, depth, heads: channels, blocks, attention heads.
      mlp_ratio: hidden features of the MLP over `width`.
      segments: rows of the table of segments; a sentence alone is the first.
      epsilon: of every LayerNorm.
    """

    vocabulary: int
    positions: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    segments: int = 2
    epsilon: float = 1e-12
    dtype: Any = jnp.float32

    @property
    def dim(self) -> int:
        """Channels of the embedding."""
        return self.width

    def __call__(self, ids: Int[Array, "b n"], mask: Bool[Array, "b n"]) -> Float[Array, "b c"]:
        weights = mask[..., None].astype(jnp.float32)
        return (self.hidden(ids, mask) * weights).sum(1) / weights.sum(1)

    @nn.compact
    def hidden(self, ids: Int[Array, "b n"], mask: Bool[Array, "b n"]) -> Float[Array, "b n c"]:
        """The last hidden state of every token."""
        learned = partial(self.param, init_fn=nn.initializers.normal(0.02))
        tokens = learned("token_embed", shape=(self.vocabulary, self.width))
        positions = learned("pos_embed", shape=(self.positions, self.width))
        segments = learned("segment_embed", shape=(self.segments, self.width))
        x = tokens[ids] + positions[: ids.shape[1]] + segments[0]
        x = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
        block = partial(PostNormBlock, self.heads, self.mlp_ratio, self.epsilon, self.dtype)
        for index in range(self.depth):
            x = block(name=f"blocks_{index}")(x, mask[:, None])
        return x.astype(jnp.float32)


class ClipText(nn.Module):
    """Ids and mask [b, n] -> the projected state of the token that ends the text, [b, projection].

    A token attends to itself and to those before it, so that what stands behind the end does not
    matter and the mask is not read.

    Attributes:
      vocabulary, positions, width, depth, heads, mlp_ratio, epsilon: as in `Bert`.
      projection: channels of the embedding, which images of the same CLIP have.
      end: the token that ends a text; its first occurrence counts.
      mlp: the activation, "gelu" or "quick_gelu".

    Raises InputError for another activation.
    """

    vocabulary: int
    positions: int
    width: int
    depth: int
    heads: int
    projection: int
    end: int
    mlp_ratio: float = 4.0
    mlp: str = "quick_gelu"
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        if self.mlp not in ACTIVATIONS:
            raise InputError(
                f"ClipText: mlp is {self.mlp!r}, expected one of {', '.join(ACTIVATIONS)}"
            )

    @property
    def dim(self) -> int:
        """Channels of the embedding."""
        return self.projection

    @nn.compact
    def __call__(self, ids: Int[Array, "b n"], mask: Bool[Array, "b n"]) -> Float[Array, "b d"]:
        learned = partial(self.param, init_fn=nn.initializers.normal(0.02))
        tokens = learned("token_embed", shape=(self.vocabulary, self.width))
        positions = learned("pos_embed", shape=(self.positions, self.width))
        count, length = ids.shape
        x = tokens[ids] + positions[:length]
        causal = jnp.broadcast_to(jnp.tri(length, dtype=bool), (count, length, length))
        block = partial(
            Block, self.heads, self.mlp_ratio, self.mlp, epsilon=self.epsilon, dtype=self.dtype
        )
        for index in range(self.depth):
            x = block(name=f"blocks_{index}")(x, causal)
        x = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
        x = x[jnp.arange(count), jnp.argmax(ids == self.end, axis=1)]
        x = Dense(self.projection, use_bias=False, dtype=self.dtype, name="projection")(x)
        return x.astype(jnp.float32)


TEXT_NETWORKS = {"bert": Bert, "clip_text": ClipText}


def build_text_network(architecture: dict[str, Any]) -> Bert | ClipText:
    """Returns the text encoder `architecture["name"]`, "bert" or "clip_text"; the rest its fields.

    Raises InputError as `models.build.build` does, and for another name.
    """
    return build_named("text encoder", TEXT_NETWORKS, architecture)
