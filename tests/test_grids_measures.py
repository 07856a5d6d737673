"""Measures of sampled grids: constructed fields whose answers are known."""

import dataclasses

import numpy as np
import pytest

from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.coherence import coherence, coherence_gap
from ssl_diffusion.evaluation.diversity import diversity
from ssl_diffusion.evaluation.frechet import Moments, frechet_distance
from ssl_diffusion.evaluation.grid_copying import copying_numbers, nearest_grids
from ssl_diffusion.evaluation.grid_frechet import components_for, frechet_numbers, frechet_to, seen
from ssl_diffusion.evaluation.grids import Basis, GridSet


def field(seed, n, rows=6, cols=8, d=48, rho=0.8, mean=0.0) -> GridSet:
    """Gaussian cells whose correlation at a distance is rho ** (rows apart + columns apart)."""
    noise = np.random.default_rng(seed).standard_normal((n, rows, cols, d))
    for axis, size in ((1, rows), (2, cols)):
        apart = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
        factor = np.linalg.cholesky(rho**apart)
        noise = np.moveaxis(np.tensordot(factor, noise, (1, axis)), 0, axis)
    return GridSet.whole((noise + mean).astype(np.float32))


def with_holes(grids: GridSet, share: float, seed: int = 0) -> GridSet:
    holes = np.random.default_rng(seed).random(grids.present.shape) < share
    cells = grids.cells.copy()
    cells[holes] = 1e6  # what is not present must not be looked at
    return GridSet(cells, grids.present & ~holes)


# Sets of grids


def test_what_is_not_present_is_not_looked_at():
    grids = with_holes(field(0, 5), 0.3)
    assert len(grids.flat()) == grids.present.sum() < 5 * 48
    assert np.abs(grids.flat()).max() < 10
    shuffled = grids.shuffled()
    assert np.abs(shuffled.flat()).max() < 10
    np.testing.assert_allclose(np.sort(shuffled.flat(), axis=0), np.sort(grids.flat(), axis=0))
    assert np.abs(grids.directions(np.zeros(48))[~grids.present]).max() == 0
    masked = field(1, 12).masked_as(grids)
    np.testing.assert_array_equal(masked.present[7], grids.present[2])


def test_cells_must_be_finite_where_they_are_present():
    cells = np.zeros((3, 2, 2, 4))
    cells[2, 0, 1] = np.nan
    with pytest.raises(InputError, match="1 of 12 cells .* grid 2"):
        GridSet.whole(cells)
    GridSet(cells, np.isfinite(cells).all(axis=-1))


def test_basis_keeps_the_leading_variance_and_tells_how_much():
    rng = np.random.default_rng(0)
    scale = np.array([5.0, 2, 1, 0.1])
    cells = rng.standard_normal((4000, 4)) * scale + 7
    basis = Basis.of(cells, 2)
    assert basis.variance_share == pytest.approx(29 / 30.01, abs=0.01)
    np.testing.assert_allclose(basis.deviation, [5, 2], rtol=0.05)
    np.testing.assert_allclose(np.abs(basis.axes), np.eye(2, 4), atol=0.05)
    flat = basis.project(GridSet.whole(cells.reshape(100, 5, 8, 4))).flat()
    np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(flat.std(axis=0, ddof=1), basis.deviation)


# Frechet distance


def test_pairs_are_neighbours_that_are_both_present():
    cells = np.arange(12, dtype=float).reshape(1, 3, 4, 1)
    present = np.ones((1, 3, 4), bool)
    present[0, 1, 2] = False
    grids = GridSet(cells, present)
    horizontal, grid = seen(grids, 2)
    expected = {(0, 1), (1, 2), (2, 3), (4, 5), (8, 9), (9, 10), (10, 11)}
    assert {tuple(pair) for pair in horizontal.astype(int)} == expected
    assert (grid == 0).all()
    vertical = {tuple(pair) for pair in seen(grids, 1)[0].astype(int)}
    assert vertical == {(0, 4), (1, 5), (3, 7), (4, 8), (5, 9), (7, 11)}


def test_pairs_notice_shuffling_and_single_cells_do_not():
    train, held_out, sampled = (field(seed, n, d=4) for seed, n in ((0, 300), (1, 60), (2, 90)))
    numbers = frechet_numbers(sampled, held_out, train)
    assert (numbers["grids"], numbers["cells"]) == (60, 60 * 48)
    assert (numbers["components"], numbers["dimension"]) == (4, 4)
    assert numbers["variance_share"] == pytest.approx(1)
    for view in ("cell", "horizontal_pair", "vertical_pair"):
        found = {name: estimate["value"] for name, estimate in numbers[view].items()}
        assert found["samples"] < 2.5 * found["held_out"] + 0.02, view  # of one distribution
        assert found["constant"] == pytest.approx(4 * (1 if view == "cell" else 2), rel=0.15)
        if view != "cell":
            # N(0, I) to correlation 0.8: d (4 - 2 sqrt 1.8 - 2 sqrt 0.2) = 1.69
            for wrong in ("shuffled", "independent"):
                assert found[wrong] == pytest.approx(1.69, rel=0.15), (view, wrong)
    assert "shuffled" not in numbers["cell"]
    # A prior that samples every cell by itself: right cells, wrong pairs.
    alone = frechet_numbers(field(3, 60, d=4, rho=0.0), held_out, train)
    assert alone["cell"]["samples"]["value"] < 0.05
    assert alone["horizontal_pair"]["samples"]["low"] > 1


def test_frechet_interval_is_of_whole_grids():
    """Against fresh draws: grids of nearly constant cells vary as 40 vectors do, not as 1,920."""
    reference = Moments.of(field(0, 400, d=3, rho=0.99).flat())
    fresh = [
        frechet_distance(Moments.of(field(s, 40, d=3, rho=0.99).flat()), reference)
        for s in range(1, 31)
    ]
    estimate = frechet_to(field(50, 40, d=3, rho=0.99), reference, None)
    half = (estimate.high - estimate.value) / 1.96
    assert 0.4 < half / np.std(fresh) < 2.5


def test_components_leave_cells_for_every_dimension():
    numbers = frechet_numbers(field(0, 9), field(1, 5), field(2, 50))
    assert (numbers["cells"], numbers["components"], numbers["dimension"]) == (240, 12, 48)
    assert 12 / 48 < numbers["variance_share"] < 0.5
    assert components_for(10_000, 192) == 192
    assert components_for(1280, 192) == 64
    assert components_for(30, 192) == 2


# Coherence


def test_coherence_of_a_field_is_its_known_correlation():
    grids = with_holes(field(1, 150, d=200, rho=0.8), 0.2)
    found = coherence(grids, np.zeros(200))
    assert found.distances == (1, 2, 4)
    for curve in (found.horizontal, found.vertical):
        for distance, estimate in zip(found.distances, curve, strict=True):
            assert estimate.value == pytest.approx(0.8**distance, abs=0.02)
            assert estimate.low < estimate.value < estimate.high
    shuffled = coherence(grids.shuffled(), np.zeros(200))
    np.testing.assert_allclose(shuffled.curve, 0, atol=0.01)
    assert coherence_gap(found, shuffled).value == pytest.approx((0.8 + 0.64 + 0.41) / 3, abs=0.03)


def test_coherence_is_seen_from_the_centre_and_in_each_direction():
    grids = field(2, 60, rho=0.0, mean=5.0)
    assert coherence(grids, np.zeros(48)).curve.min() > 0.9  # all cells share the mean
    np.testing.assert_allclose(coherence(grids, np.full(48, 5.0)).curve, 0, atol=0.02)
    rows = GridSet.whole(np.repeat(grids.cells[:, :, :1] - 5, 8, axis=2))  # rows of one cell
    found = coherence(rows, np.zeros(48))
    np.testing.assert_allclose(found.curve[0], 1, atol=1e-5)
    np.testing.assert_allclose(found.curve[1], 0, atol=0.05)
    # Columns of one cell: what is missing in one direction is not made up for in the other.
    columns = GridSet.whole(np.repeat(grids.cells[:, :1] - 5, 6, axis=1))
    other = coherence(columns, np.zeros(48), seed=1)
    assert coherence_gap(found, other).value == pytest.approx(1, abs=0.05)
    rows, columns = (GridSet.whole(grids.cells[..., :3]) for grids in (rows, columns))
    pairs = frechet_numbers(rows, columns, rows)
    assert pairs["horizontal_pair"]["samples"]["value"] == pytest.approx(0, abs=1e-6)
    assert pairs["horizontal_pair"]["held_out"]["value"] > 1
    # What rows of one cell have, cells by themselves lack horizontally and have vertically.
    alone = {view: numbers["independent"]["value"] for view, numbers in list(pairs.items())[-2:]}
    assert alone["horizontal_pair"] > 1 and alone["vertical_pair"] < 0.5


def test_distances_that_a_flat_grid_has_not_are_none():
    found = coherence(field(0, 10, rows=1, cols=5), np.zeros(48))
    assert found.distances == (1, 2, 4) and np.isnan(found.curve[1]).all()
    assert found.vertical[0].low is None
    other = coherence(field(1, 10, rows=1, cols=5), np.zeros(48), seed=1)
    assert 0 <= coherence_gap(found, other).value < 0.2
    single = coherence(field(0, 3, rows=1, cols=1), np.zeros(48))
    assert single.distances == () and np.isnan(coherence_gap(single, single).value)


def test_gap_of_two_sets_of_one_field_is_within_its_interval_of_nothing():
    gaps = [
        coherence_gap(
            coherence(field(2 * s, 40), np.zeros(48)),
            coherence(field(2 * s + 1, 40), np.zeros(48), seed=1),
        )
        for s in range(5)
    ]
    assert max(gap.value for gap in gaps) < 0.06
    assert all(gap.value < gap.high for gap in gaps)


# Diversity


def test_collapsed_samples_have_no_diversity_and_real_ones_are_as_diverse():
    real, other = field(0, 50), with_holes(field(1, 40), 0.2)
    same = diversity(other, real, np.zeros(48))
    for name, estimate in dataclasses.asdict(same).items():
        assert estimate["value"] == pytest.approx(1, abs=0.08), name
        assert estimate["low"] < 1.05 and estimate["high"] > 0.95, name
    one = real.cells[:1] + 0.02 * field(2, 40).cells  # one grid again and again
    collapsed = diversity(GridSet.whole(one), real, np.zeros(48))
    assert collapsed.grid_means.value < 0.01
    assert collapsed.within.value == pytest.approx(1, abs=0.2)  # each grid is as varied as ever
    assert 0.2 < collapsed.cells.value < 0.98  # of other positions in the one grid
    flat = diversity(GridSet.whole(np.repeat(real.cells[:, :1, :1], 6, axis=1)), real, np.zeros(48))
    assert flat.within.value < 0.01


def test_diversity_is_that_of_all_pairs():
    grids, real = with_holes(field(3, 4, rows=2, cols=2, d=5), 0.3), field(4, 3, 2, 2, 5)
    centre = np.full(5, 0.1)

    def distances(grids: GridSet) -> tuple[float, float, float]:
        cells = [
            cells[present] - centre
            for cells, present in zip(grids.cells, grids.present, strict=True)
        ]
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in cells]
        means = [x.mean(axis=0) / np.linalg.norm(x.mean(axis=0)) for x in cells]
        others = [(i, j) for i in range(len(cells)) for j in range(len(cells)) if i != j]
        within = [1 - a @ b for x in unit for i, a in enumerate(x) for b in np.delete(x, i, 0)]
        return (
            np.mean([1 - means[i] @ means[j] for i, j in others]),
            np.concatenate([(1 - unit[i] @ unit[j].T).ravel() for i, j in others]).mean(),
            np.mean(within),
        )

    found = dataclasses.asdict(diversity(grids, real, centre)).values()
    expected = np.array(distances(grids)) / distances(real)
    np.testing.assert_allclose([one["value"] for one in found], expected, rtol=1e-4)


def test_diversity_does_not_depend_on_how_many_grids_there_are():
    few = [diversity(field(s, 4), field(99, 60), np.zeros(48)) for s in range(20)]
    assert np.mean([one.grid_means.value for one in few]) == pytest.approx(1, abs=0.06)
    assert np.mean([one.cells.value for one in few]) == pytest.approx(1, abs=0.03)
    assert np.isnan(diversity(field(0, 1), field(1, 9), np.zeros(48)).cells.value)


# Copying


def test_a_prior_that_copies_is_flagged_and_one_that_samples_is_not():
    train, held_out, centre = field(0, 200), with_holes(field(1, 60), 0.2), np.zeros(48)
    chunks = [train[start : start + 64] for start in range(0, 200, 64)]
    of_held_out = nearest_grids(held_out, chunks, centre)
    picks = np.arange(40) * 3
    copies = GridSet.whole(train.cells[picks] + 0.3 * field(2, 40).cells).masked_as(held_out)
    copied = nearest_grids(copies, chunks, centre)
    np.testing.assert_array_equal(copied.index, picks)
    numbers = copying_numbers(copied.distance, of_held_out.distance)
    assert numbers["nearer"]["value"] == 1.0
    assert numbers["ratio"]["high"] < 0.2
    fresh = nearest_grids(field(3, 80).masked_as(held_out), chunks, centre)
    numbers = copying_numbers(fresh.distance, of_held_out.distance)
    assert numbers["nearer"]["value"] < 0.1
    assert numbers["ratio"]["value"] == pytest.approx(1, abs=0.03)
    assert numbers["nearer_held_out"]["value"] == pytest.approx(1 / 60, abs=1e-9)


def test_distance_is_over_the_cells_that_both_grids_have():
    cells = np.zeros((1, 1, 4, 2), np.float32)
    cells[0, 0] = [[1, 0], [1, 0], [0, 1], [0, 1]]
    query = GridSet(cells, np.array([[[True, True, True, False]]]))
    other = np.full((2, 1, 4, 2), [1, 0], np.float32)
    holes = np.array([[[True, False, True, True]], [[True, False, False, True]]])
    found = nearest_grids(query, [GridSet(other, holes)], np.zeros(2))
    # With the first: cells 0 (cosine 1) and 2 (cosine 0). The second has one of three in common.
    assert found.distance[0] == pytest.approx(0.5) and found.index[0] == 0
    alone = nearest_grids(query, [GridSet(other[1:], holes[1:])], np.zeros(2))
    assert alone.index[0] == -1 and copying_numbers(alone.distance, found.distance) == {}
