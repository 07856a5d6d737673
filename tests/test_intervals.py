"""Intervals over few trainings and few slides cover as often as they say."""

import numpy as np
import pytest

from ssl_diffusion.evaluation.intervals import Estimate, resamples


@pytest.mark.parametrize("trainings, units, luck", [(3, 60, 0.4), (3, 5, 0.3), (5, 12, 0.1)])
def test_intervals_over_few_trainings_cover(trainings, units, luck):
    rng, counts, repeats = np.random.default_rng(0), resamples(units), 400
    covered = 0
    for _ in range(repeats):
        own = rng.normal(size=units) + rng.normal(0, 0.3, (trainings, units))
        values = own + rng.normal(0, luck, (trainings, 1))
        draws = counts @ values.mean(axis=0) / units
        found = Estimate.over_seeds(values.mean(axis=1), draws, units)
        covered += found.low <= 0 <= found.high
    assert 0.9 < covered / repeats < 0.99


def test_an_interval_stays_within_what_is_possible_and_needs_luck_to_tell_of():
    draws = np.random.default_rng(0).normal(0.97, 0.05, 1000)
    found = Estimate.over_seeds(np.array([0.95, 0.99]), draws, 10, lowest=0.0, highest=1.0)
    assert found.high == 1.0 and 0.5 < found.low < 0.95
    assert Estimate.over_seeds(np.ones(3), np.ones(1000), 10) == Estimate(1.0, None, None)
