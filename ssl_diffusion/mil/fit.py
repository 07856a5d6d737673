"""Training a MIL network on bags, and what it then says of whole bags."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ssl_diffusion.mil.bags import Bag
from ssl_diffusion.mil.networks import MODELS

SMALLEST = 32  # instances that a bag is padded to; then powers of two, each compiled once


class Settings(NamedTuple):
    """How networks are trained: always so many steps, whatever the number of bags.

    Attributes:
      steps: of AdamW, the learning rate following a cosine to 0.
      batch: bags a step; the class of each is drawn first, all alike, and then the bag.
      share: of a bag's instances that are seen in a step, drawn anew. Half of them keeps networks
        from knowing training slides by heart; whole bags are judged.
      instances: the most that are seen of a bag in a step.
      learning_rate: at the beginning.
      weight_decay: of AdamW.
      width: of the hidden layer.
    """

    steps: int = 600
    batch: int = 8
    share: float = 0.5
    instances: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    width: int = 128

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with gradients clipped to norm 1."""
        rate = optax.cosine_decay_schedule(self.learning_rate, self.steps)
        adamw = optax.adamw(rate, weight_decay=self.weight_decay)
        return optax.chain(optax.clip_by_global_norm(1.0), adamw)


DEFAULT = Settings()


class Prediction(NamedTuple):
    """What a network says of one whole bag: probabilities [classes], attention [n, classes]."""

    probabilities: Float[np.ndarray, " classes"]
    attention: Float[np.ndarray, "n classes"]


class Fitted(NamedTuple):
    """A trained network; features are standardised by the training instances' mean and std."""

    network: nn.Module
    params: PyTree
    mean: Float[np.ndarray, " d"]
    std: Float[np.ndarray, " d"]

    def predict(self, bags: Sequence[Bag]) -> list[Prediction]:
        """Of each bag, whole."""
        found = []
        for bag in bags:
            features, mask = _padded([(bag.features - self.mean) / self.std])
            probabilities, attention = _predict(self.network, self.params, features, mask)
            found.append(
                Prediction(np.asarray(probabilities[0]), np.asarray(attention[0, : len(bag)]))
            )
        return found


def fit(
    name: str,
    bags: Sequence[Bag],
    classes: int,
    *,
    settings: Settings = DEFAULT,
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Fitted:
    """Trains a network from a fresh start; the same bags and seed give the same.

    Args:
      name: key of `networks.MODELS`.
      bags: to train on; one or more of each class that is to be told.
      classes: how many there are.
      settings: see `Settings`.
      seed: of the parameters, the bags drawn and the instances drawn.
      progress: wraps the steps.
    """
    network = MODELS[name](classes, settings.width)
    every = np.concatenate([bag.features for bag in bags])
    mean, std = every.mean(axis=0), np.maximum(every.std(axis=0), 1e-6)
    features = [(bag.features - mean) / std for bag in bags]
    labels = np.array([bag.label for bag in bags])
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    rng = np.random.default_rng(seed)
    params = _init(network, features[0].shape[1], jax.random.key(seed))
    state = settings.optimizer().init(params)
    for _ in (progress or iter)(range(settings.steps)):
        groups = rng.integers(len(by_class), size=settings.batch)
        drawn = [int(rng.choice(by_class[group])) for group in groups]
        chosen = [_some(features[index], settings, rng) for index in drawn]
        batch = *_padded(chosen), jnp.asarray(labels[drawn])
        params, state = _step(network, settings, params, state, batch)
    return Fitted(network, params, mean, std)


def padded_size(count: int) -> int:
    """The length that a bag of `count` instances is padded to."""
    return max(SMALLEST, 1 << (count - 1).bit_length())


def _some(features: np.ndarray, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    count = min(math.ceil(settings.share * len(features)), settings.instances)
    return features[rng.permutation(len(features))[:count]]


def _padded(bags: Sequence[np.ndarray]) -> tuple[Array, Array]:
    """Features [b, n, d] filled up with zeros, and the mask [b, n] of what is none of these."""
    size = padded_size(max(map(len, bags)))
    features = np.zeros((len(bags), size, bags[0].shape[1]), np.float32)
    for row, bag in zip(features, bags, strict=True):
        row[: len(bag)] = bag
    mask = np.arange(size) < np.array([[len(bag)] for bag in bags])
    return jnp.asarray(features), jnp.asarray(mask)


@partial(jax.jit, static_argnums=(0, 1))
def _init(network: nn.Module, dim: int, key: Array) -> PyTree:
    bag = jnp.zeros((1, SMALLEST, dim)), jnp.ones((1, SMALLEST), bool), jnp.zeros(1, int)
    return network.init(key, *bag, method="losses")["params"]


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _step(
    network: nn.Module, settings: Settings, params: PyTree, state: PyTree, batch: tuple
) -> tuple[PyTree, PyTree]:
    def loss(params: PyTree) -> Array:
        return network.apply({"params": params}, *batch, method="losses").mean()

    updates, state = settings.optimizer().update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


@partial(jax.jit, static_argnums=0)
def _predict(network: nn.Module, params: PyTree, features: Array, mask: Array):
    output = network.apply({"params": params}, features, mask)
    return jax.nn.softmax(output.logits), output.attention
