"""Training on bags, and the scores: bags whose answer is known, and scikit-learn's numbers."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from ssl_diffusion.mil import experiment
from ssl_diffusion.mil.bags import Bag
from ssl_diffusion.mil.experiment import Slides, chosen_slides, outcome, run_trial, training_sets
from ssl_diffusion.mil.fit import Settings, fit, padded_size
from ssl_diffusion.mil.scores import (
    attention_recovery,
    auc,
    balanced_accuracy,
    compare,
    recovery_of,
    supervised_recovery,
)

DIM = 8
SETTINGS = Settings(steps=40, batch=8, learning_rate=2e-2, width=16)


def bag(name: str, label: int, size: int, rng, parents=None) -> Bag:
    """Normal instances; in a positive bag a sixth of them are shifted along one axis."""
    features = rng.standard_normal((size, DIM)).astype(np.float32) * 3 + 5
    planted = (np.arange(size) < size // 6) & bool(label)
    features[planted, 2] += 12
    numbers = np.arange(size)
    return Bag(name, label, features, numbers, numbers, numbers, planted, parents or (name,))


@pytest.fixture(scope="module")
def bags():
    """(training, test) bags of 40 to 60 instances."""
    rng = np.random.default_rng(0)
    made = [bag(f"slide {i}", i % 2, 40 + i % 21, rng) for i in range(60)]
    return made[:30], made[30:]


@pytest.mark.parametrize("name", ["abmil", "clam_sb", "dsmil"])
def test_planted_instances_are_told_and_found(bags, name):
    train, test = bags
    predictions = fit(name, train, 2, settings=SETTINGS).predict(test)
    probabilities = np.stack([one.probabilities for one in predictions])
    labels = np.array([one.label for one in test])
    assert roc_auc_score(labels, probabilities[:, 1]) > 0.97
    found = recovery_of(test, [one.attention for one in predictions])
    recovery = attention_recovery(test, np.stack([found, found]))
    assert recovery["area"].value > 0.9 and recovery["first"].value > 0.9
    assert recovery["area"].low <= recovery["area"].value <= recovery["area"].high
    np.testing.assert_allclose(recovery["share"].value, 1 / 6, atol=0.01)
    told = supervised_recovery(train, test)
    assert told["area"].value > recovery["area"].value - 0.01 and told["first"].value > 0.9
    for one, prediction in zip(test, predictions, strict=True):  # of whole bags, not half of them
        assert prediction.attention.shape == (len(one), 2)
        np.testing.assert_allclose(prediction.attention.sum(axis=0), 1, atol=1e-5)


def test_a_seed_decides_the_training(bags):
    few = SETTINGS._replace(steps=3)
    first, again, other = (
        fit("abmil", bags[0], 2, settings=few, seed=seed).predict(bags[1][:1])[0].probabilities
        for seed in (4, 4, 5)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4


def test_bags_are_padded_to_few_sizes():
    assert [padded_size(count) for count in (1, 32, 33, 64, 1000)] == [32, 32, 64, 64, 1024]


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_those_of_scikit_learn(classes):
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.arange(30) % classes)
    scores = np.round(rng.dirichlet(np.ones(classes), 30), 1)  # with ties
    weights = rng.integers(0, 3, (4, 30))
    rest = [labels == label for label in range(1 if classes == 2 else 0, classes)]
    columns = range(1 if classes == 2 else 0, classes)
    for found, drawn in zip(auc(scores, labels, weights), weights, strict=True):
        areas = [
            roc_auc_score(of, scores[:, column], sample_weight=drawn)
            for of, column in zip(rest, columns, strict=True)
        ]
        np.testing.assert_allclose(found, np.mean(areas), rtol=1e-12)
    for found, drawn in zip(balanced_accuracy(scores, labels, weights), weights, strict=True):
        expected = balanced_accuracy_score(labels, scores.argmax(axis=1), sample_weight=drawn)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    without = np.where(labels == 0, 0, 1)[None]
    assert np.isnan(auc(scores, labels, without)).all()


def test_differences_are_paired():
    rng = np.random.default_rng(2)
    labels = np.arange(40) % 2
    truth = rng.standard_normal((3, 40, 1)) + labels[:, None]
    real = np.concatenate([-truth, truth], axis=-1)
    found = compare({"real": real, "same": 2 * real, "worse": -real}, labels, ["real"])
    area = found["real"]["auc"]
    assert area["low"] < area["value"] < area["high"]
    np.testing.assert_allclose(area["value"], np.mean(area["seeds"]))
    assert area["minus"] == {}
    assert found["same"]["auc"]["minus"]["real"] == {"value": 0.0, "low": None, "high": None}
    worse = found["worse"]["auc"]["minus"]["real"]
    np.testing.assert_allclose(worse["value"], 1 - 2 * area["value"])
    assert -1 <= worse["low"] < worse["value"] < worse["high"] < 0


def test_few_differences_of_nothing_exclude_it():
    """At three seeds, whose luck is most of the spread: one in twenty may (few draws: 6.7 %)."""
    rng = np.random.default_rng(5)
    labels, excluded, repeats = np.arange(24) % 2, 0, 150
    slides = rng.standard_normal((repeats, 1, 1, 24))
    luck = rng.standard_normal((repeats, 2, 3, 1)) * 0.7 + 1  # how well a network tells
    noise = rng.standard_normal((repeats, 2, 3, 24)) * 0.7
    truth = slides + luck * labels + noise
    for one, other in np.stack([-truth, truth], axis=-1):
        found = compare({"real": one, "other": other}, labels, ["real"])["other"]["auc"]
        low, high = (found["minus"]["real"][end] for end in ("low", "high"))
        excluded += not low <= 0 <= high
    assert 0 < excluded <= repeats / 15


def test_a_share_of_all_has_an_exact_interval(bags):
    positive = [one for one in bags[1] if one.label]
    ideal = [one.planted[:, None].repeat(2, 1).astype(float) for one in positive]
    found = attention_recovery(positive, recovery_of(positive, ideal)[None])
    np.testing.assert_allclose(found["first"].low, 0.025 ** (1 / 15), rtol=1e-6)
    assert (found["first"].value, found["first"].high) == (1.0, 1.0)
    assert found["area"].low is None  # all alike
    assert recovery_of(bags[1][:1], ideal[:1]) is None


def test_fractions_are_nested_and_hold_every_class(bags):
    for seed in range(3):
        few, more = (chosen_slides(bags[0], fraction, seed) for fraction in (0.01, 0.4))
        assert sorted(one.label for one in few) == [0, 1]
        assert len(more) == 12 and {one.name for one in few} < {one.name for one in more}
    names = [{one.name for one in chosen_slides(bags[0], 0.1, seed)} for seed in (0, 1)]
    assert names[0] != names[1]


class Bar:
    steps = 0

    def update(self, count=1):
        self.steps += count


def test_variations_come_with_all_their_parents_and_as_many_of_each_kind(bags, tmp_path):
    rng = np.random.default_rng(3)
    chosen = bags[0][:2]
    mixed = bag("mixed", 0, 40, rng, (chosen[0].name, bags[0][9].name))
    made = [mixed, *(bag(f"{one.name}#", one.label, 40, rng, (one.name,)) for one in bags[0])]
    ordinary = [bag(f"{one.name}~", one.label, 40, rng, (one.parents[0],)) for one in made]
    sets = training_sets(Slides(bags[0], made, ordinary, bags[1], ("a", "b")), chosen)
    names = {arm: [[one.name for one in part] for part in parts] for arm, parts in sets.items()}
    real = ["slide 0", "slide 1"]
    assert names == {
        "real": [real, []],
        "real_synthetic": [real, ["slide 0#", "slide 1#"]],
        "synthetic": [[], ["slide 0#", "slide 1#"]],
        "real_ordinary": [real, ["slide 0#~", "slide 1#~"]],  # not "mixed~", which slide 0 has too
    }

    # An arm that adds nothing is not compared with itself.
    bar, few = Bar(), SETTINGS._replace(steps=1)
    only_mixed = Slides(bags[0], [mixed], (), bags[1], ("a", "b"), shown=[3])
    trial = run_trial("abmil", 0.01, only_mixed, 2, few, bar, tmp_path)
    assert list(trial.arms) == ["real"] and bar.steps == 6
    assert (trial.counts["real"], trial.added["real"]) == ([2, 2], [0, 0])
    first, second = trial.arms["real"]
    assert first.probabilities.shape == (30, 2) and first.attention.shape == (len(bags[1][3]),)
    assert not np.array_equal(first.probabilities, second.probabilities)


def test_a_training_is_kept_and_made_again_when_its_slides_change(bags, tmp_path, monkeypatch):
    trained = []

    def counted(*args, **kwargs):
        trained.append(None)
        return fit(*args, **kwargs)

    monkeypatch.setattr(experiment, "fit", counted)
    slides = Slides(bags[0], (), (), bags[1], ("a", "b"), shown=[1])
    few, file = SETTINGS._replace(steps=1), tmp_path / "kept.npz"

    def run(slides=slides, settings=few, seed=0):
        return outcome(file, "abmil", slides.real, slides, settings, seed)

    first, again = run(), run()
    assert len(trained) == 1
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    np.testing.assert_array_equal(run().probabilities, first.probabilities)
    assert len(trained) == 2
    run(seed=1)
    run(settings=few._replace(weight_decay=0.5))
    changed = dataclasses.replace(bags[1][0], features=bags[1][0].features + 1)
    run(dataclasses.replace(slides, test=[changed, *bags[1][1:]]))
    assert len(trained) == 5
