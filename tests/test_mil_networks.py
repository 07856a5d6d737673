"""The networks of attention MIL: padding, order, and their formulas worked out in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_diffusion.mil.networks import ABMIL, CLAMSB, DSMIL

DIM, WIDTH, CLASSES = 6, 8, 3
SIZES = (5, 9, 1)  # instances of the bags
NETWORKS = {
    "abmil": ABMIL(CLASSES, WIDTH),
    "clam_sb": CLAMSB(CLASSES, WIDTH, cluster=2, bag_weight=0.6),
    "clam_sb_detection": CLAMSB(CLASSES, WIDTH, cluster=2, bag_weight=0.6, exclusive=False),
    "dsmil": DSMIL(CLASSES, WIDTH),
}


def filled_up(length: int, seed: int):
    """The three bags in a length of so many, and what fills them up is not zero."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((3, length, DIM)).astype(np.float32)
    real = np.random.default_rng(0).standard_normal((3, 9, DIM)).astype(np.float32)
    for row, bag, size in zip(features, real, SIZES, strict=True):
        row[:size] = bag[:size]
    mask = np.arange(length) < np.array(SIZES)[:, None]
    return features, mask, np.array([0, 2, 1])


BAGS = filled_up(12, seed=1)


def params_of(name):
    """Parameters without the zeros of an initialisation."""
    network = NETWORKS[name]
    shapes = jax.eval_shape(
        lambda key: network.init(key, *map(jnp.asarray, BAGS), method="losses"), jax.random.key(0)
    )
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda leaf: 0.5 * rng.standard_normal(leaf.shape).astype(np.float32), shapes["params"]
    )


@functools.partial(jax.jit, static_argnums=0)
def _apply(network, params, features, mask, labels):
    output = network.apply({"params": params}, features, mask)
    losses = network.apply({"params": params}, features, mask, labels, method="losses")
    return output.logits, output.attention, losses


def apply(name, bags):
    """(logits, attention, losses) as numpy arrays."""
    return [np.asarray(array) for array in _apply(NETWORKS[name], params_of(name), *bags)]


@pytest.mark.parametrize("name", ["abmil", "clam_sb", "dsmil"])
def test_attention_sums_to_one_over_the_real_instances(name):
    _, attention, _ = apply(name, BAGS)
    assert attention.shape == (3, 12, CLASSES)
    np.testing.assert_allclose(attention.sum(axis=1), 1, atol=1e-6)
    assert (attention[~BAGS[1]] == 0).all()
    assert (attention[BAGS[1]] > 0).all()


@pytest.mark.parametrize("name", ["abmil", "clam_sb", "dsmil"])
def test_a_bag_does_not_depend_on_its_padding(name):
    logits, attention, losses = apply(name, BAGS)
    longer = apply(name, filled_up(17, seed=3))
    np.testing.assert_allclose(longer[0], logits, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(longer[1][:, :12], attention, atol=1e-6)
    np.testing.assert_allclose(longer[2], losses, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["abmil", "clam_sb", "dsmil"])
def test_the_order_of_instances_does_not_matter(name):
    features, mask, labels = BAGS
    order = np.random.default_rng(2).permutation(12)
    logits, attention, losses = apply(name, BAGS)
    shuffled = apply(name, (features[:, order], mask[:, order], labels))
    np.testing.assert_allclose(shuffled[0], logits, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(shuffled[1], attention[:, order], atol=1e-6)
    np.testing.assert_allclose(shuffled[2], losses, rtol=2e-5, atol=2e-5)


def softmax(x):
    exponent = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponent / exponent.sum(axis=-1, keepdims=True)


def dense(params, x):
    return x @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)


def pooled(params, bag):
    """(attention, logits, hidden) of one bag [n, d] by gated attention (Ilse et al., eq. 7, 9)."""
    hidden = np.maximum(dense(params["embed"], bag), 0)
    gate = params["attend"]
    tanh = np.tanh(dense(gate["Dense_0"], hidden))
    sigmoid = 1 / (1 + np.exp(-dense(gate["Dense_1"], hidden)))
    attention = softmax(dense(gate["Dense_2"], tanh * sigmoid)[:, 0])
    return attention, dense(params["classify"], attention @ hidden), hidden


def real_bags():
    """(index, label, instances) of each bag, without its padding."""
    for index, size in enumerate(SIZES):
        yield index, int(BAGS[2][index]), BAGS[0][index, :size].astype(np.float64)


def test_abmil_is_gated_attention_pooling():
    logits, attention, losses = apply("abmil", BAGS)
    for index, label, bag in real_bags():
        weights, expected, _ = pooled(params_of("abmil"), bag)
        np.testing.assert_allclose(attention[index, : len(bag), 1], weights, atol=1e-5)
        np.testing.assert_allclose(logits[index], expected, atol=1e-5)
        np.testing.assert_allclose(losses[index], -np.log(softmax(expected)[label]), atol=1e-5)


@pytest.mark.parametrize("name", ["clam_sb", "clam_sb_detection"])
def test_clam_clusters_the_ends_of_its_attention(name):
    params, (_, _, losses) = params_of(name), apply(name, BAGS)
    for index, label, bag in real_bags():
        attention, logits, hidden = pooled(params, bag)
        evidence = dense(params["evidence"], hidden).reshape(len(bag), CLASSES, 2)
        order = np.argsort(-attention)
        count = min(2, len(bag) // 2)  # of a bag of one there is neither end
        terms = [
            -np.log(softmax(evidence[i, c])[int(c == label)])
            for i in order[:count]
            for c in (range(CLASSES) if NETWORKS[name].exclusive else [label])
        ]
        terms += [-np.log(softmax(evidence[i, label])[0]) for i in order[::-1][:count]]
        instance = np.mean(terms) if terms else 0.0
        expected = 0.6 * -np.log(softmax(logits)[label]) + 0.4 * instance
        np.testing.assert_allclose(losses[index], expected, atol=1e-5)


def test_dsmil_weighs_by_the_critical_instance():
    params, (logits, attention, losses) = params_of("dsmil"), apply("dsmil", BAGS)
    kernel, bias = (params["classify"][name][..., 0] for name in ("kernel", "bias"))
    for index, label, bag in real_bags():
        hidden = np.maximum(dense(params["embed"], bag), 0)
        scores = dense(params["score"], hidden)
        query, value = (dense(params[name], hidden) for name in ("query", "value"))
        second = np.zeros(CLASSES)
        for c in range(CLASSES):
            weights = softmax(query @ query[scores[:, c].argmax()] / np.sqrt(WIDTH))
            np.testing.assert_allclose(attention[index, : len(bag), c], weights, atol=1e-5)
            second[c] = kernel[c] @ (weights @ value) + bias[c]
        first = scores.max(axis=0)
        np.testing.assert_allclose(logits[index], (first + second) / 2, atol=1e-4)
        terms = [-np.log(softmax(stream)[label]) for stream in (first, second)]
        np.testing.assert_allclose(losses[index], np.mean(terms), atol=1e-4)
