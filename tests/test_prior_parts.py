"""What a prior is made of: whitening, clusters, captions, tables of measurements, its networks."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grid_records import write

from ssl_diffusion.data.grids import open_grids
from ssl_diffusion.data.records import open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.grid_conditioner import GridConditioner
from ssl_diffusion.models.grid_transformer import GridTransformer, distance_bias
from ssl_diffusion.prior.captions import choose, read_captions
from ssl_diffusion.prior.clusters import COLOURS, NO_CLASS, colours, fit_clusters
from ssl_diffusion.prior.vectors import fit_standard, read_vectors, standardise
from ssl_diffusion.prior.whitening import fit_whitening


def perturbed(params):
    """Without the zeros of an initialisation, behind which nothing is seen."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: leaf + jnp.asarray(0.2 * rng.standard_normal(leaf.shape, np.float32)), params
    )


# Whitening


def test_white_components_are_white_and_lead_back():
    rng = np.random.default_rng(0)
    mixed = 5 + rng.standard_normal((4000, 6)) @ rng.standard_normal((6, 6))
    embedding = mixed.reshape(4000, 2, 3).astype(np.float32)
    whitening, share = fit_whitening(embedding, 6)
    white = whitening.to_white(embedding)
    np.testing.assert_allclose(np.cov(white.T), np.eye(6), atol=2e-3)
    np.testing.assert_allclose(whitening.to_embedding(white, 2), embedding, atol=1e-3)
    assert share == pytest.approx(1)


def test_the_components_that_are_kept_are_the_leading_ones():
    rng = np.random.default_rng(0)
    spread = np.array([3.0, 2.0, 0.1])
    embedding = (rng.standard_normal((3000, 3)) * spread)[:, None].astype(np.float32)
    whitening, share = fit_whitening(embedding, 2)
    assert whitening.whiten.shape == (3, 2)
    assert share == pytest.approx((9 + 4) / (9 + 4 + 0.01), abs=1e-3)
    lost = embedding - whitening.to_embedding(whitening.to_white(embedding), 1)
    assert lost.std(axis=(0, 1)) == pytest.approx([0, 0, 0.1], abs=0.02)


@pytest.mark.parametrize(
    "embedding, match",
    [(np.zeros((3, 1, 4)), "3 training embeddings for 4"), (np.ones((9, 1, 4)), "are the same")],
)
def test_what_cannot_be_whitened_is_refused(embedding, match):
    with pytest.raises(InputError, match=match):
        fit_whitening(embedding, 4)


# Clusters


def test_clusters_are_of_their_label_the_largest_first():
    rng = np.random.default_rng(0)
    centres = np.eye(4)
    which = np.repeat([0, 1, 2, 3], [20, 60, 50, 30])
    embedding = (centres[which] + 0.01 * rng.standard_normal((160, 4)))[:, None]
    names, clusters = fit_clusters(embedding, which // 2, ("x", "y"), 2, seed=0)
    assert names == ("x 0", "x 1", "y 0", "y 1")
    np.testing.assert_array_equal(clusters.labels, [0, 0, 1, 1])
    found = clusters.of(embedding)
    assert [set(found[which == k].tolist()) for k in range(4)] == [{1}, {0}, {2}, {3}]
    # Of another label than its nearest centre's, the nearest of that label's.
    other = clusters.of(embedding[:1], np.array([1]))
    assert other[0] in (2, 3) and clusters.of(embedding[:1], np.array([7]))[0] == -1
    near = clusters.of(np.array([[[0.1, 0, 9, 0]]]))  # lengths do not count
    assert near[0] == 2


def test_without_labels_there_are_clusters_of_all():
    rng = np.random.default_rng(0)
    names, clusters = fit_clusters(rng.standard_normal((50, 1, 3)), np.full(50, -1), (), 3, 0)
    assert names == ("cell 0", "cell 1", "cell 2")
    assert set(clusters.labels.tolist()) == {NO_CLASS}
    with pytest.raises(InputError, match="2 training patches of 'cell' for 3 clusters"):
        fit_clusters(rng.standard_normal((2, 1, 3)), np.full(2, -1), (), 3, 0)


def test_colours_differ():
    many = colours(len(COLOURS) + 40)
    assert len({*many}) == len(many) and many[: len(COLOURS)] == COLOURS
    assert all(len(colour) == 7 and int(colour[1:], 16) >= 0 for colour in many)


# Captions


def test_captions_of_label_and_cell_and_own_text_may_be_said():
    facts = np.array([[0, 1, -1], [0, -1, 0], [-1, -1, -1], [0, 1, -1]])
    captions = {"a": ["an a", "one a"], "q": ["a q"]}
    choices, keys = choose(facts, captions, ("a",), ("p", "q"), ("own words",))
    said = [
        {choices.sentences[i] for i in choices.table[key, : choices.counts[key]]} for key in keys
    ]
    assert said == [{"an a", "one a", "a q"}, {"an a", "one a", "own words"}, set()] + [said[0]]


@pytest.mark.parametrize(
    "content, match",
    [
        ("[]", "are none; expected"),
        ('{"a": "one"}', "are none; expected"),
        ('{"b": ["one"]}', "are of b; the classes are a"),
        ('{"a": [" "]}', "hold an empty sentence"),
        ("{", "captions"),
    ],
)
def test_captions_that_are_none_are_refused(content, match, tmp_path):
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(InputError, match=match):
        read_captions(tmp_path / "captions.json", ("a",))


# Vectors


def test_rows_belong_to_sources_or_to_patches(tmp_path):
    cells = np.arange(4.0).reshape(2, 2, 1).repeat(2, -1)
    grids = {"train": [("s.png", cells, {}), ("t.png", cells, {})]}
    opened = open_grids(open_records(write(tmp_path / "r", grids, dim=2)), 2, ("train",))["train"]
    (tmp_path / "v.csv").write_text("source,A,B\nt.png,1,2.5\n")
    table = read_vectors(tmp_path / "v.csv")
    assert table.names == ("A", "B") and table.values.tolist() == [[1, 2.5]]
    assert table.of(opened).tolist() == [-1] * 4 + [0] * 4
    (tmp_path / "v.csv").write_text("source,x,y,A\ns.png,8,0,1\nt.png,0,8,2\n")
    assert read_vectors(tmp_path / "v.csv").of(opened).tolist() == [-1, 0, -1, -1, -1, -1, 1, -1]


@pytest.mark.parametrize(
    "content, match",
    [
        ("", "begin with the columns none"),
        ("name,A\n", "begin with the columns name, A"),
        ("source,A,A\ns,1,2\n", "begin with the columns source, A, A"),
        ("source,A\n", "has no rows"),
        ("source,A\ns,nan\n", "line 2: 1 numbers, 0 of them finite"),
        ("source,A\ns,1e39\n", "line 2: 1 numbers, 0 of them finite"),
        ("source,A\ns,1\ns,2\n", "line 3: .*is there already"),
        ("source,A\ns,1,2\n", "line 2: 2 numbers"),
        ("source,A\ns,x\n", "line 2: could not convert"),
        ("source,x,y,A\ns,1.5,0,1\n", "line 2: invalid literal"),
    ],
)
def test_tables_that_are_none_are_refused(content, match, tmp_path):
    (tmp_path / "v.csv").write_text(content)
    with pytest.raises(InputError, match=match):
        read_vectors(tmp_path / "v.csv")


def test_measurements_are_standardised_by_those_of_training():
    values = np.exp(np.random.default_rng(0).standard_normal((500, 3))).astype(np.float32) - 0.05
    values = np.maximum(values, 0)
    values[:, 2] = 1.1
    values = np.concatenate([values, np.full((1, 3), 9, np.float32)])  # not of training
    mean, std = fit_standard(values, np.arange(500), True, ("A", "B", "C"))
    found = standardise(values[:500], mean, std, True)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(found.std(0), [1, 1, 0], atol=1e-3)  # a constant stays 0
    with pytest.raises(InputError, match="measurements of B below 0"):
        fit_standard(np.array([[1.0, 1.0], [1.0, -1.0]]), np.arange(1), True, ("A", "B"))


# Networks


def test_attention_begins_near_for_some_heads_and_far_for_others():
    bias = distance_bias(3, 4)
    assert bias.shape == (3, 7, 7) and (bias[:, 3, 3] == 0).all()
    np.testing.assert_allclose(bias[:, 3, 5], [-4, -2, -1])
    np.testing.assert_allclose(bias[0], bias[0].T)


def test_a_cell_sees_where_the_others_lie():
    """The same cells shifted within the window give the same; turned by 90 degrees they do not."""
    network = GridTransformer(window=4, width=16, depth=2, heads=2)
    grid = jax.random.normal(jax.random.key(0), (1, 2, 3, 5))
    context = {"tokens": jnp.ones((1, 2, 16))}
    fresh = jax.jit(network.init)(jax.random.key(1), grid, jnp.zeros(1), context)
    params = perturbed(fresh["params"])

    @jax.jit
    def run(grid, **more):
        time = jnp.full(1, 300.0)
        return network.apply({"params": params}, grid, time, context | more)

    alone = run(grid)
    around = jnp.full((1, 4, 4, 5), 7.0).at[:, 1:3, 1:].set(grid)
    present = jnp.zeros((1, 4, 4), bool).at[:, 1:3, 1:].set(True)
    np.testing.assert_allclose(run(around, present=present)[:, 1:3, 1:], alone, atol=1e-4)
    turned = jnp.swapaxes(run(jnp.swapaxes(grid, 1, 2)), 1, 2)
    assert jnp.abs(turned - alone).max() > 1e-2


def test_what_is_not_given_is_not_looked_at():
    network = GridConditioner(width=8, classes=2, text=3, vector=4, map_classes=5)
    assert network.kinds == ("label", "text", "vector", "label_map")
    rng = np.random.default_rng(0)

    def said(seed):
        rng = np.random.default_rng(seed)
        floats = {"label": 2, "text": 3, "vector": 4}
        conditions = {k: jnp.asarray(rng.random((1, n)), jnp.float32) for k, n in floats.items()}
        return conditions | {"label_map": jnp.asarray(rng.integers(0, 5, (1, 6, 6)))}

    every = jnp.ones((1, 4), bool)
    params = perturbed(jax.jit(network.init)(jax.random.key(0), said(0), every)["params"])
    run = jax.jit(lambda conditions, given: network.apply({"params": params}, conditions, given))
    whole = run(said(0), every)
    assert whole["tokens"].shape == (1, 4, 8) and whole["cells"].shape == (1, 6, 6, 8)
    for kind, name in enumerate(network.kinds):
        given = every.at[0, kind].set(False)
        without = run(said(0), given)
        other = said(0) | {name: said(int(rng.integers(1, 99)))[name]}
        jax.tree.map(np.testing.assert_array_equal, without, run(other, given))
        differs = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), run(other, every), whole)
        assert differs["cells" if name == "label_map" else "tokens"] > 1e-3
        changed = [float(jnp.abs(without["tokens"][0, t] - whole["tokens"][0, t]).max()) > 1e-3
                   for t in range(4)]  # fmt: skip
        assert changed == [False, *(t == kind for t in range(3))]


def test_a_prior_without_conditions_has_one_token():
    network = GridConditioner(width=8)
    params = network.init(jax.random.key(0), {}, jnp.zeros((3, 0), bool))["params"]
    context = network.apply({"params": params}, {}, jnp.zeros((3, 0), bool))
    assert context["tokens"].shape == (3, 1, 8) and "cells" not in context
    assert json.dumps(network.kinds) == "[]"
