"""Layers that the networks share. Parameters are float32; `dtype` is the compute type.

Normalisation statistics and attention's softmax are always float32, whatever `dtype` is: they are
where bfloat16 loses digits, and a small part of the time.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) over space and the channels of a group, in float32.

    Statistics are taken per channel first and then per group, so that only [b, c] arrays are ever
    regrouped, and the normalisation is one multiply-add per element.
    The number of channels must be a multiple of `groups`.
    """

    epsilon: float
    groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"]) -> Float[Array, "b *space c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        flat = x.astype(jnp.float32).reshape(x.shape[0], -1, channels)

        def group_mean(per_channel: Float[Array, "b c"]) -> Float[Array, "b c"]:
            grouped = per_channel.reshape(-1, self.groups, channels // self.groups)
            return jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape).reshape(
                per_channel.shape
            )

        mean = group_mean(flat.mean(1))
        variance = group_mean(jnp.square(flat - mean[:, None]).mean(1))
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        y = flat * factor[:, None] + (bias - mean * factor)[:, None]
        return y.reshape(x.shape).astype(self.dtype)


class BatchStatistics(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) in inference form.

    Mean and variance are parameters: they come with a trained network and are not updated.
    """

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        mean = self.param("mean", nn.initializers.zeros, channels)
        variance = self.param("var", nn.initializers.ones, channels)
        factor = scale / jnp.sqrt(variance + self.epsilon)
        return ((x.astype(jnp.float32) - mean) * factor + bias).astype(self.dtype)


def timestep_embedding(timestep: Float[Array, "b"], width: int) -> Float[Array, "b {width}"]:
    """Sinusoidal embedding, [cos | sin], frequencies 10000^(-k / (width / 2)), float32.

    `timestep` is the 0-based index of the noise level, not a fraction. `width` must be even.
    Vaswani et al. 2017, sec. 3.5, as the diffusion U-Nets of Dhariwal & Nichol 2021 order it.
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(10000.0) / half * jnp.arange(half, dtype=jnp.float32))
    angles = timestep.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Dense(nn.Module):
    """A linear layer over the last axis: nn.Dense, with the leading axes flattened into one.

    So laid out, XLA on CPU takes about a tenth less time for the gradient of a whole network.
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b {self.features}"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)


class Projected(NamedTuple):
    """A context as one cross-attention reads it, see `project_context`.

    Keys and values [b m c] before they are split into heads. With one token there are no keys, and
    the value is the attention's whole output, [b 1 c]: the softmax over one key is 1.
    """

    key: Array | None
    value: Array


Context = Array | Projected | Mapping[str, Any]
"""Tokens [b m width], or what `project_context` made of them."""


def project_context(
    params: Mapping[str, Any], context: Float[Array, "b m width"], dtype: Any
) -> dict[str, Any]:
    """What a network's layers make of the context alone, by their place in its parameters.

    It changes neither with the latent nor with the timestep: a sampler computes it once per window
    instead of at every step. Layers called `attn2` attend to the context, `context_embed` reads its
    mean.
    """

    def dense(layer: Mapping[str, Array], x: Float[Array, "..."]) -> Float[Array, "..."]:
        y = x.astype(dtype) @ layer["kernel"].astype(dtype)
        return y + layer["bias"].astype(dtype) if "bias" in layer else y

    projected: dict[str, Any] = {}
    for name, child in params.items():
        if name == "attn2":
            value = dense(child["to_v"], context)
            one = context.shape[1] == 1
            projected[name] = Projected(
                None if one else dense(child["to_k"], context),
                dense(child["to_out"], value) if one else value,
            )
        elif name == "context_embed":
            projected[name] = dense(child, context.mean(1))
        elif isinstance(child, Mapping) and (part := project_context(child, context, dtype)):
            projected[name] = part
    return projected


def inside(context: Context, name: str) -> Context:
    """The part of a projected context that belongs to the layer `name`; tokens are everyone's."""
    return context[name] if isinstance(context, Mapping) else context


def pooled(embed: "Dense", context: Context) -> Float[Array, "b e"]:
    """`embed` of the mean of the context's tokens, or what it was projected to."""
    if isinstance(context, Mapping):
        return context[embed.name]
    return embed(context.mean(1))


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) of `x` to `context`, or to itself without one.

    The output has the width of `x`, which `heads` must divide. Softmax is float32. Where `mask` is
    False a token may not be attended to; every token must have one that it may attend to. `bias` is
    added to the logits.
    """

    heads: int
    qkv_bias: bool = False
    kernel_init: Callable = nn.initializers.lecun_normal()
    out_init: Callable = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        context: Array | Projected | None = None,
        mask: Bool[Array, "b n m"] | Bool[Array, "b 1 m"] | None = None,
        bias: Float[Array, "heads n m"] | None = None,
    ) -> Float[Array, "b n c"]:
        width = x.shape[-1]
        dense = partial(Dense, width, dtype=self.dtype)
        project = partial(dense, self.qkv_bias, kernel_init=self.kernel_init)
        to_out = dense(kernel_init=self.out_init, name="to_out")
        if isinstance(context, Projected):
            k, v = context
            if k is None:
                return jnp.broadcast_to(v, x.shape)
            q = project(name="to_q")(x)
        else:
            context = x if context is None else context
            q = project(name="to_q")(x)
            k = project(name="to_k")(context)
            v = project(name="to_v")(context)
            if context.shape[1] == 1:
                # As in Projected. XLA drops the unused q and k, which are written above so that
                # their parameters exist.
                return jnp.broadcast_to(to_out(v), x.shape)
        # Scaling q instead of the logits touches fewer numbers.
        q = self._split(q * (width // self.heads) ** -0.5)
        k, v = self._split(k), self._split(v)
        logits = jnp.einsum("bhnf,bhmf->bhnm", q, k, preferred_element_type=jnp.float32)
        if bias is not None:
            logits = logits + bias
        if mask is not None:
            logits = jnp.where(mask[:, None], logits, -jnp.inf)
        weights = nn.softmax(logits).astype(v.dtype)
        y = jnp.einsum("bhnm,bhmf->bhnf", weights, v)
        return to_out(y.swapaxes(1, 2).reshape(x.shape))

    def _split(self, x: Float[Array, "b n c"]) -> Float[Array, "b heads n features"]:
        return x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)


class GEGLU(nn.Module):
    """Gated feed-forward with exact (erf) GELU: Shazeer 2020, arXiv 2002.05202, eq. 6."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        y = Dense(2 * self.hidden, dtype=self.dtype, name="proj")(x)
        value, gate = jnp.split(y, 2, axis=-1)
        return Dense(x.shape[-1], dtype=self.dtype, name="out")(
            value * nn.gelu(gate, approximate=False)
        )


class SwiGLU(nn.Module):
    """Gated feed-forward with SiLU on the gate, which comes first: Shazeer 2020, eq. 6."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        y = Dense(2 * self.hidden, dtype=self.dtype, name="linear_1")(x)
        gate, value = jnp.split(y, 2, axis=-1)
        return Dense(x.shape[-1], dtype=self.dtype, name="linear_2")(nn.silu(gate) * value)


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    hidden: int
    width: int
    activation: Callable
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b {self.width}"]:
        dense = partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        y = self.activation(dense(self.hidden, name="linear_1")(x))
        return dense(self.width, name="linear_2")(y)
