"""Attention MIL in Flax: ABMIL, CLAM-SB and DSMIL, on bags that are padded to one length.

Each takes `features` float32 [b, n, d] and `mask` bool [b, n], true where an instance is real (one
or more of every bag), and gives an `Output`. What stands in the padding changes nothing. Classes
exclude each other: logits go through a softmax. All begin with a dense layer and ReLU, of one width
for all, so that they compare; none has dropout. Where else they depart from their papers is said
with each.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

Features = Float[Array, "b n d"]
Mask = Bool[Array, "b n"]
Labels = Int[Array, " b"]
Losses = Float[Array, " b"]


class Output(NamedTuple):
    """What a network says of bags.

    logits      [b, classes]
    attention   [b, n, classes], of every class: at least 0, sums to 1 over the real instances and
                is exactly 0 in the padding; ABMIL and CLAM-SB have one for all classes
    """

    logits: Float[Array, "b classes"]
    attention: Float[Array, "b n classes"]


class ABMIL(nn.Module):
    """Gated attention pooling (Ilse et al. 2018, arXiv 1802.04712, eq. 7 and 9).

    The paper has one sigmoid for two classes, and its gates have as many units as it chose for each
    data set; here they have half the width.
    """

    classes: int
    width: int = 128

    def setup(self) -> None:
        self.embed = nn.Dense(self.width)
        self.attend = _GatedAttention(self.width // 2)
        self.classify = nn.Dense(self.classes)

    def __call__(self, features: Features, mask: Mask) -> Output:
        logits, attention, _ = self._pooled(features, mask)
        return Output(logits, jnp.repeat(attention[..., None], self.classes, axis=-1))

    def losses(self, features: Features, mask: Mask, labels: Labels) -> Losses:
        """Cross-entropy of each bag."""
        logits, _, _ = self._pooled(features, mask)
        return _cross_entropy(logits, labels)

    def _pooled(self, features: Features, mask: Mask) -> tuple[Array, Array, Array]:
        """Logits [b, classes], attention [b, n], hidden instances [b, n, width]."""
        hidden = nn.relu(self.embed(features))
        attention = self.attend(hidden, mask)
        return self.classify(jnp.einsum("bn,bnw->bw", attention, hidden)), attention, hidden


class CLAMSB(ABMIL):
    """CLAM with a single branch (Lu et al. 2021, arXiv 2004.09666): ABMIL, and its clustering.

    In training every class has a linear layer that tells its evidence from what is none. Its
    targets are the network's own: for the layer of the bag's class the `cluster` instances of
    highest attention are evidence and as many of the lowest are not; for the other classes, if
    they are `exclusive`, those of highest attention are not. The paper does the latter for subtypes
    that exclude each other, not where one class is the absence of the other ("clam_sb_detection").
    The instance loss weighs `1 - bag_weight`.

    The paper's instance loss is the smooth SVM, here it is cross-entropy; its hidden layer has 512
    units and dropout. Of a bag of fewer than twice `cluster` instances half are highest and half
    lowest; means are over the instances that count.
    """

    cluster: int = 8
    bag_weight: float = 0.7
    exclusive: bool = True

    def setup(self) -> None:
        super().setup()
        self.evidence = nn.Dense(2 * self.classes)

    def losses(self, features: Features, mask: Mask, labels: Labels) -> Losses:
        """The bag's cross-entropy and that of its clustered instances, weighted."""
        logits, attention, hidden = self._pooled(features, mask)
        evidence = self.evidence(hidden).reshape(*mask.shape, self.classes, 2)
        of_class = jax.nn.one_hot(labels, self.classes)[:, None]  # [b, 1, classes]
        highest, high = self._ends(jnp.where(mask, attention, -jnp.inf), mask)
        lowest, low = self._ends(jnp.where(mask, -attention, -jnp.inf), mask)

        def of(chosen: Array) -> Array:
            return jnp.take_along_axis(evidence, chosen[..., None, None], axis=1)

        positive = jnp.broadcast_to(of_class, of(highest).shape[:-1]).astype(int)
        layers = 1.0 if self.exclusive else of_class  # that learn from the highest
        losses = _cross_entropy(of(highest), positive) * high[..., None] * layers
        losses_low = _cross_entropy(of(lowest), jnp.zeros_like(positive))
        losses_low = losses_low * low[..., None] * of_class
        counted = high.sum(axis=1) * (self.classes if self.exclusive else 1) + low.sum(axis=1)
        instance = (losses + losses_low).sum(axis=(1, 2)) / jnp.maximum(counted, 1)
        bag = _cross_entropy(logits, labels)
        return self.bag_weight * bag + (1 - self.bag_weight) * instance

    def _ends(self, scores: Float[Array, "b n"], mask: Mask) -> tuple[Array, Array]:
        """The instances of the highest scores [b, k], and which of them count."""
        size = min(self.cluster, mask.shape[1])
        _, chosen = jax.lax.top_k(jax.lax.stop_gradient(scores), size)
        return chosen, jnp.arange(size) < (mask.sum(axis=1) // 2)[:, None]


class DSMIL(nn.Module):
    """Two streams (Li et al. 2021, arXiv 2011.08939).

    The first classifies every instance and takes, for each class, the highest score, that of the
    critical instance. The second weighs every instance by how its query is like that of the
    critical one (a softmax of dot products) and classifies the sum of values. The bag's logits are
    the mean of both; so is the loss.

    Other than in the paper dot products are divided by the root of the width, instances go through
    a dense layer and ReLU first, classes share a softmax where the paper has a sigmoid for each,
    and the second stream's classifier sees, for each class, the sum of values for that class alone.
    """

    classes: int
    width: int = 128

    def setup(self) -> None:
        self.embed = nn.Dense(self.width)
        self.score = nn.Dense(self.classes)
        self.query = nn.Dense(self.width)
        self.value = nn.Dense(self.width)
        self.classify = nn.DenseGeneral(1, axis=-1, batch_dims=(0,))

    def __call__(self, features: Features, mask: Mask) -> Output:
        critical, pooled, attention = self._streams(features, mask)
        return Output((critical + pooled) / 2, attention)

    def losses(self, features: Features, mask: Mask, labels: Labels) -> Losses:
        """Cross-entropy of each bag, the mean of both streams."""
        critical, pooled, _ = self._streams(features, mask)
        return (_cross_entropy(critical, labels) + _cross_entropy(pooled, labels)) / 2

    def _streams(self, features: Features, mask: Mask) -> tuple[Array, Array, Array]:
        """Logits of both streams [b, classes], attention [b, n, classes]."""
        hidden = nn.relu(self.embed(features))
        scores = jnp.where(mask[..., None], self.score(hidden), -jnp.inf)
        at = scores.argmax(axis=1)  # [b, classes]
        query = self.query(hidden)
        critical = jnp.take_along_axis(query, at[..., None], axis=1)
        alike = jnp.einsum("bnw,bcw->bcn", query, critical) / jnp.sqrt(self.width)
        attention = _masked_softmax(alike, mask[:, None])
        bags = jnp.einsum("bcn,bnw->cbw", attention, self.value(hidden))
        pooled = self.classify(bags)[..., 0].T  # each class has its own weights
        return scores.max(axis=1), pooled, attention.swapaxes(1, 2)


MODELS = {
    "abmil": ABMIL,
    "clam_sb": CLAMSB,
    "clam_sb_detection": partial(CLAMSB, exclusive=False),
    "dsmil": DSMIL,
}


class _GatedAttention(nn.Module):
    """w (tanh(V h) * sigmoid(U h)), softmax over a bag (Ilse et al. 2018, eq. 9), with biases."""

    width: int

    @nn.compact
    def __call__(self, hidden: Float[Array, "b n w"], mask: Mask) -> Float[Array, "b n"]:
        gated = nn.tanh(nn.Dense(self.width)(hidden)) * nn.sigmoid(nn.Dense(self.width)(hidden))
        return _masked_softmax(nn.Dense(1)(gated)[..., 0], mask)


def _masked_softmax(scores: Float[Array, "*b n"], mask: Bool[Array, "*c n"]) -> Array:
    return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)


def _cross_entropy(logits: Float[Array, "*b classes"], labels: Int[Array, "*b"]) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
