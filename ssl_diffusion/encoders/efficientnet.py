"""EfficientNet-Lite (Tan & Le 2019, arXiv 1905.11946, and its authors' variant for small devices).

The variant leaves squeeze-and-excitation out, has ReLU6 for activation, and keeps stem and head as
wide as Lite0's, however wide the rest is. Trained on the classes of ImageNet, it is a judge that
shares neither objective nor data with a self-supervised encoder.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_diffusion.errors import InputError
from ssl_diffusion.models.layers import BatchStatistics

EPSILON = 1e-3  # of every norm, as published
STAGES = (  # Tan & Le 2019, table 1: kernel, stride, expansion
    (3, 1, 1),
    (3, 2, 6),
    (5, 2, 6),
    (3, 2, 6),
    (5, 1, 6),
    (5, 2, 6),
    (3, 1, 6),
)


class Depthwise(nn.Module):
    """A convolution of each channel by itself, padded as ConvNorm says, as a sum of shifted images.

    XLA fuses the sum. Its own convolution of as many groups as channels takes 3 to 15 times as long
    on a CPU.
    """

    kernel: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        size, stride = self.kernel, self.stride
        _, height, width, channels = x.shape
        shape = (size, size, 1, channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(self.dtype)
        pads = jax.lax.padtype_to_pads((height, width), (size, size), (stride, stride), "SAME")
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        down, right = (stride * (-(-side // stride) - 1) + 1 for side in (height, width))
        return sum(
            kernel[i, j, 0] * x[:, i : i + down : stride, j : j + right : stride]
            for i in range(size)
            for j in range(size)
        )


class ConvNorm(nn.Module):
    """Convolution, normalisation by recorded statistics, and ReLU6 unless `linear`.

    Padding is TensorFlow's: of an odd number of pixels, more lie below and to the right.
    `depthwise` sees each channel alone.
    """

    channels: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    linear: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 {self.channels}"]:
        if self.depthwise:
            conv = Depthwise(self.kernel, self.stride, self.dtype, name="conv")
        else:
            size = (self.kernel, self.kernel)
            conv = nn.Conv(
                self.channels, size, self.stride, use_bias=False, dtype=self.dtype, name="conv"
            )
        x = conv(x)
        x = BatchStatistics(EPSILON, dtype=self.dtype, name="bn")(x)
        return x if self.linear else nn.relu6(x)


class MBConv(nn.Module):
    """Expand, convolve every channel by itself, project: Sandler et al. 2018, arXiv 1801.04381.

    The input is added where the output has its shape.
    """

    channels: int
    kernel: int
    stride: int
    expansion: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 {self.channels}"]:
        y, hidden = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            y = ConvNorm(hidden, dtype=self.dtype, name="expand")(y)
        y = ConvNorm(
            hidden, self.kernel, self.stride, depthwise=True, dtype=self.dtype, name="depthwise"
        )(y)
        y = ConvNorm(self.channels, linear=True, dtype=self.dtype, name="project")(y)
        return x + y if x.shape == y.shape else y


class EfficientNetLite(nn.Module):
    """Normalised image [b, size, size, 3] -> embedding [b, 1, head]: the mean over positions.

    Attributes:
      depths: blocks of each of the seven STAGES.
      widths: channels of each stage.
      stem: channels of the first convolution.
      head: channels of the last, and so of the embedding.

    The classifier is no part of it. An image's side is a multiple of 32 px, by which the stages
    reduce it. Raises InputError for other than seven stages.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem: int = 32
    head: int = 1280
    dtype: Any = jnp.float32

    patch_size = 32
    size_step = 32

    def __post_init__(self):
        super().__post_init__()
        if not len(self.depths) == len(self.widths) == len(STAGES) or 0 in self.depths:
            raise InputError(
                f"EfficientNetLite: depths {self.depths}, widths {self.widths}; expected blocks "
                f"and channels of {len(STAGES)} stages"
            )

    @property
    def dim(self) -> int:
        """Channels of the embedding."""
        return self.head

    @property
    def patch_dim(self) -> int:
        """Channels of a position after the head."""
        return self.head

    def __call__(self, image: Float[Array, "b size size 3"]) -> Float[Array, "b 1 {self.head}"]:
        return self.with_patches(image)[0]

    @nn.compact
    def with_patches(
        self, image: Float[Array, "b size size 3"]
    ) -> tuple[Float[Array, "b 1 {self.head}"], Float[Array, "b n {self.head}"]]:
        """The embedding, and the positions after the head, row by row of the image."""
        x = image.astype(self.dtype)
        x = ConvNorm(self.stem, kernel=3, stride=2, dtype=self.dtype, name="stem")(x)
        index = 0
        for depth, width, (kernel, stride, expansion) in zip(
            self.depths, self.widths, STAGES, strict=True
        ):
            for first in (True, *[False] * (depth - 1)):
                block = MBConv(
                    width,
                    kernel,
                    stride if first else 1,
                    expansion,
                    self.dtype,
                    name=f"blocks_{index}",
                )
                x, index = block(x), index + 1
        x = ConvNorm(self.head, dtype=self.dtype, name="head")(x).astype(jnp.float32)
        patches = x.reshape(x.shape[0], -1, self.head)
        return patches.mean(1, keepdims=True), patches
