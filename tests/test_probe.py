"""Agreement with what was asked for: constructed samples that follow it, or do not."""

import numpy as np
import pytest

from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.grids import GridSet
from ssl_diffusion.evaluation.probe import Probe, linear_baseline, r2, told, within_grids

CLASSES = ("histology", "landsat", "desert")
CENTRES = 3 * np.eye(3, 6)


def grids_of(classes: np.ndarray, seed: int, apart: float = 1.0) -> GridSet:
    """Cells around the centre of each cell's class."""
    noise = np.random.default_rng(seed).standard_normal((*classes.shape, 6))
    return GridSet.whole((apart * CENTRES[classes] + noise).astype(np.float32))


def layouts(seed: int, n: int, classes: int = 3) -> np.ndarray:
    """Class of each cell; each grid has a left and a right half."""
    halves = np.random.default_rng(seed).integers(classes, size=(n, 1, 2))
    return np.broadcast_to(np.repeat(halves, 3, axis=2), (n, 4, 6)).copy()


@pytest.fixture(scope="module")
def probe() -> Probe:
    labels = layouts(0, 80)
    train = grids_of(labels, 1)
    flat = labels[train.present]
    flat[::7] = -1  # unknown: left out
    return Probe(train.flat(), flat, CLASSES)


def asked_in_turn(n: int) -> np.ndarray:
    return np.repeat(np.arange(n) % 3, 24).reshape(n, 4, 6)


def test_samples_that_follow_the_condition_agree_and_the_ceiling_is_that_of_real_ones(probe):
    asked = asked_in_turn(60)
    samples, real = grids_of(asked, 2), layouts(3, 60)
    following = told(probe.cells(samples), asked, 3)
    ceiling = told(probe.cells(grids_of(real, 4)), real, 3)
    assert following.balanced.value == pytest.approx(ceiling.balanced.value, abs=0.04)
    assert following.balanced.value > 0.9
    assert following.balanced.low < following.balanced.value < following.balanced.high
    assert following.chance == 1 / 3
    # had they been asked for what others were
    assert following.shuffled_balanced.value == pytest.approx(1 / 3, abs=0.03)
    assert following.shuffled_balanced.low < 1 / 3 < following.shuffled_balanced.high
    whole = told(probe.grids(samples), asked[:, :1, :1], 3)
    assert (whole.accuracy.value, whole.grids, whole.cells) == (1.0, 60, 60)


@pytest.mark.parametrize("given", ["all of one class", "a class of chance"])
def test_a_prior_that_ignores_its_condition_scores_at_chance(probe, given):
    asked = asked_in_turn(150)
    shown = np.zeros_like(asked) if given == "all of one class" else layouts(5, 150)
    found = told(probe.cells(grids_of(shown, 6)), asked, 3)
    assert found.balanced.value == pytest.approx(1 / 3, abs=0.08)
    assert found.shuffled_balanced.low <= found.balanced.value <= found.shuffled_balanced.high


def test_balanced_accuracy_is_not_won_by_the_frequent_class():
    asked = np.zeros((20, 1, 2), int)
    asked[:2] = 1
    found = told(np.zeros_like(asked), asked, 2)
    assert found.accuracy.value == 0.9 and found.shuffled.value == pytest.approx(0.9)
    assert found.balanced.value == 0.5 and found.chance == 0.5


def test_a_layout_that_is_ignored_is_told_from_one_that_is_followed(probe):
    asked = layouts(7, 60)
    mixed = within_grids(asked, seed=1)
    np.testing.assert_array_equal(np.sort(mixed, axis=(1)).sum(), np.sort(asked).sum())
    for grid in range(60):  # the same classes, elsewhere
        np.testing.assert_array_equal(np.sort(mixed[grid], None), np.sort(asked[grid], None))
    assert told(probe.cells(grids_of(asked, 8)), asked, 3).balanced.value > 0.9
    ignored = told(probe.cells(grids_of(mixed, 8)), asked, 3)
    assert ignored.balanced.value < 0.75


def test_cells_without_a_class_are_not_counted(probe):
    asked = np.full((4, 4, 6), -1)
    asked[:2, :, :3] = 0
    grids = grids_of(np.zeros((4, 4, 6), int), 9)
    holes = grids.present.copy()
    holes[0] = False
    found = probe.cells(GridSet(grids.cells, holes))
    assert (found[0] == -1).all()
    counted = told(found, asked, 3)
    assert (counted.grids, counted.cells) == (1, 12)
    assert probe.grids(GridSet(grids.cells, holes))[:2, 0, 0].tolist() == [-1, 0]
    with pytest.raises(InputError, match="no cell"):
        told(found, np.full_like(asked, -1), 3)


def test_one_class_cannot_be_told_apart():
    with pytest.raises(InputError, match="1 of the classes histology, landsat, desert"):
        Probe(np.zeros((9, 6), np.float32), np.array([0] * 8 + [-1]), CLASSES)


def test_r2_is_one_for_the_truth_nothing_for_the_mean_and_the_map_for_a_linear_one():
    rng = np.random.default_rng(0)
    vectors, held_out = rng.standard_normal((400, 50)), rng.standard_normal((200, 50))
    weights = rng.standard_normal((50, 5))
    noise = np.sqrt(50)  # as much as the map itself: half of the variance can be told
    train = vectors @ weights + noise * rng.standard_normal((400, 5))
    true = held_out @ weights + noise * rng.standard_normal((200, 5))
    assert r2(true, true) == 1.0
    assert r2(np.broadcast_to(true.mean(axis=0), true.shape), true) == pytest.approx(0)
    assert r2(held_out @ weights, true) == pytest.approx(0.5, abs=0.06)
    assert 0.38 < r2(linear_baseline(vectors, train, held_out), true) < 0.52
    with_constant = np.concatenate([true, np.ones((200, 1))], axis=1)
    assert r2(with_constant, with_constant) == 1.0
    with pytest.raises(InputError, match="none of the statistics varies"):
        r2(np.ones((5, 2)), np.ones((5, 2)))
    curved = linear_baseline(vectors, vectors[:, :1] ** 2, held_out)
    assert r2(curved, held_out[:, :1] ** 2) < 0.05  # what a linear map cannot
