"""Self-distillation without labels: a student learns what its own running average says of a crop.

DINO: Caron et al. 2021, arXiv 2104.14294; equations are theirs. Student and teacher are one network
with a head that gives `prototypes` logits. Of every image there are global crops, which both see,
and local ones, which the student sees alone: it has to tell from a part what the teacher tells
from nearly all of it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ssl_diffusion.models.layers import Dense


class ProjectionHead(nn.Module):
    """Embedding -> (a direction, by three linear layers with GELU; logits, its cosines) (app. C).

    The last layer is weight-normalised (Salimans & Kingma 2016) with all norms at 1, so that the
    logits are cosines and no prototype wins by its length. `step`, optimizer steps taken, is below
    `frozen_steps` as long as the last layer stands still ("its output layer during the first
    epoch", app. C): until then what it would learn is the noise of the start.
    """

    hidden: int
    bottleneck: int
    prototypes: int
    frozen_steps: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "*b c"], step: Int[Array, ""]
    ) -> tuple[Float[Array, "*b {self.bottleneck}"], Float[Array, "*b {self.prototypes}"]]:
        x = nn.gelu(Dense(self.hidden, name="linear_1")(x))
        x = nn.gelu(Dense(self.hidden, name="linear_2")(x))
        x = unit(Dense(self.bottleneck, name="linear_3")(x))
        # Not called a kernel: weight decay of what is normalised would only raise its rate.
        shape = self.prototypes, self.bottleneck
        prototypes = self.param("prototypes", nn.initializers.normal(1.0), shape)
        moving = step >= self.frozen_steps
        prototypes = jnp.where(moving, prototypes, jax.lax.stop_gradient(prototypes))
        return x, x @ unit(prototypes).T


def distillation_loss(
    student: Float[Array, "b views k"],
    teacher: Float[Array, "b globals k"],
    centre: Float[Array, " k"],
    student_temperature: float,
    teacher_temperature: Float[Array, ""] | float,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """(loss, entropy of the teacher) of each image, nats: eq. 3, the mean over its pairs of crops.

    H(softmax((teacher - centre) / teacher_temperature), softmax(student / student_temperature)) for
    every global crop of the teacher and every other crop of the student, whose first crops are the
    global ones in the same order. The loss is that entropy plus what the student is off by.
    """
    log_p = jax.nn.log_softmax((teacher - centre) / teacher_temperature)
    p = jnp.exp(log_p)
    log_q = jax.nn.log_softmax(student / student_temperature)
    pairs = -jnp.einsum("bgk,bvk->bgv", p, log_q)
    others = 1.0 - jnp.eye(*pairs.shape[1:])
    entropy = -(p * log_p).sum(-1).mean(-1)
    return (pairs * others).sum((1, 2)) / others.sum(), entropy


def teacher_momentum(step: Int[Array, ""] | int, steps: int, first: float) -> Float[Array, ""]:
    """Of the update after `step` of `steps` steps: from `first` to 1, half a cosine (sec. 3.1)."""
    return 1 - (1 - first) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / steps, 1.0)))


def warmed_up(
    step: Int[Array, ""] | int, first: float, last: float, steps: int
) -> Float[Array, ""]:
    """The teacher's temperature: from `first` to `last` in a line over `steps` steps (app. C)."""
    return first + (last - first) * jnp.minimum(step / max(1, steps), 1.0)


def moved(old: PyTree, new: PyTree, momentum: Float[Array, ""] | float) -> PyTree:
    """momentum old + (1 - momentum) new: the teacher after the student (sec. 3.1), the centre after
    the mean of the teacher's logits over the batch (eq. 4)."""
    return jax.tree.map(lambda a, b: momentum * a + (1 - momentum) * b, old, new)


def crowding(directions: Float[Array, "b d"]) -> Float[Array, " b"]:
    """KoLeo: minus the log of the distance of each unit vector to its nearest in the batch.

    Sablayrolles et al. 2019 (arXiv 1806.03198), eq. 3; DINOv2 (arXiv 2304.07193, sec. 4) adds a
    tenth of it to the loss, of embeddings before the head.
    """
    cosines = directions @ directions.T - 3.0 * jnp.eye(len(directions))
    nearest = jax.lax.stop_gradient(cosines.argmax(axis=1))
    offset = directions - directions[nearest]
    return -0.5 * jnp.log(jnp.square(offset).sum(-1) + 1e-8)


def feature_spread(embedding: Float[Array, "n d"]) -> Float[Array, ""]:
    """Deviation of unit embeddings over n, times sqrt(d): 0 is collapsed, 1 is all directions.

    Chen & He 2021 (arXiv 2011.10566), sec. 4.1.
    """
    return jnp.sqrt(embedding.shape[-1]) * unit(embedding).std(axis=0).mean()


def unit(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Of length 1 along the last axis."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))
