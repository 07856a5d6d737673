"""Sampling grids with the optimal denoiser of a Gaussian, whose moments are known."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from grid_records import ACROSS, COVARIANCE, DIM, DOWN, MEANS, draw

from ssl_diffusion.diffusion.denoiser import make_denoiser
from ssl_diffusion.diffusion.sampling import Sampling
from ssl_diffusion.diffusion.schedule import make_schedule
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.grid_conditioner import GridConditioner
from ssl_diffusion.models.grid_transformer import GridTransformer
from ssl_diffusion.prior.asked import Asked
from ssl_diffusion.prior.model import Prior
from ssl_diffusion.prior.sampling import sample_grids
from ssl_diffusion.prior.whitening import fit_whitening

WINDOW, TRAIN = 5, 40_000


@dataclasses.dataclass(frozen=True)
class Optimal:
    """E[x0 | x] of white grids of one class, a linear function, as a network."""

    def __call__(self, params, x, timestep, context):
        covariance, schedule = params  # of a whole window, [WINDOW^2 DIM, same]
        b, rows, cols, _ = x.shape
        cells = (np.arange(rows)[:, None] * WINDOW + np.arange(cols)).reshape(-1)
        index = (cells[:, None] * DIM + np.arange(DIM)).reshape(-1)
        covariance = covariance[np.ix_(index, index)]
        mean = jnp.tile(context["tokens"][:, 0], (1, rows * cols))
        alpha, sigma = (level[:, None, None] for level in schedule.at(timestep))
        noisy = alpha**2 * covariance + sigma**2 * jnp.eye(len(index))
        gap = x.reshape(b, -1) - alpha[:, 0] * mean
        x0 = mean + alpha[:, 0] * (jnp.linalg.solve(noisy, gap[..., None])[..., 0] @ covariance)
        return x0.reshape(x.shape)


class Known(Prior):
    """A prior whose denoiser is the optimal one; unasked it has the mean of both classes."""

    def denoiser(self, guidance):
        given = self.params["covariance"], self.schedule
        null = self.context(Asked(), 1, 1)
        null = {"tokens": null["tokens"][0]}
        return make_denoiser(Optimal(), given, self.schedule, "x0", null, guidance)

    def context(self, asked, rows, cols):
        shares = asked.label or dict.fromkeys(MEANS, 0.5)
        means = [share * self.params["means"][name] for name, share in shares.items()]
        return {"tokens": jnp.asarray(sum(means), jnp.float32)[None, None]}


@pytest.fixture(scope="module")
def prior():
    rng = np.random.default_rng(0)
    cells = np.concatenate([draw(rng, name, TRAIN, 1, 1).reshape(-1, 1, DIM) for name in MEANS])
    whitening, kept = fit_whitening(cells, DIM)
    assert kept == pytest.approx(1)
    factor = np.asarray(whitening.whiten, np.float64)
    steps = np.abs(np.subtract.outer(np.arange(WINDOW), np.arange(WINDOW)))
    across_cells = np.kron(DOWN**steps, ACROSS**steps)
    covariance = np.kron(across_cells, factor.T @ COVARIANCE @ factor).astype(np.float32)
    means = {name: (mean - whitening.mean) @ factor for name, mean in MEANS.items()}
    schedule = make_schedule("cosine", 1000)
    spec = {
        "kind": "prior",
        "embedding": {"tokens": 1, "dim": DIM},
        "conditions": {"label": {"classes": list(MEANS)}},
        "diffusion": {"prediction": "x0"},
        "sampling": {"steps": 40, "guidance": 1.0, "solver": "dpmpp", "stride": 2},
    }
    params = {"covariance": jnp.asarray(covariance), "means": means}
    network = GridTransformer(WINDOW, width=4, depth=1, heads=1)
    return Known(network, GridConditioner(4, classes=2), params, whitening, {}, spec, schedule)


def moments(grids):
    """(mean, covariance of a cell, correlations with the right and the lower neighbour)."""
    cells = grids.reshape(-1, DIM)
    mean = cells.mean(0)
    centred = (grids - mean) @ np.linalg.inv(np.linalg.cholesky(COVARIANCE)).T
    right, below = (
        float((here * there).mean()) if here.size else None
        for here, there in (
            (centred[:, :, 1:], centred[:, :, :-1]),
            (centred[:, 1:], centred[:, :-1]),
        )
    )
    return mean, np.cov(cells.T), right, below


@pytest.mark.parametrize("name", [*MEANS])
@pytest.mark.parametrize("rows, cols", [(1, 1), (3, 5)])
def test_sampled_moments_are_the_known_ones(prior, name, rows, cols):
    count = 2000 // rows
    grids = sample_grids(prior, Asked(label={name: 1.0}), rows, cols, samples=count, seed=3)
    assert grids.shape == (count, rows, cols, 1, DIM) and grids.dtype == np.float32
    mean, covariance, right, below = moments(grids[:, :, :, 0])
    error = np.sqrt(np.diag(COVARIANCE) / count)  # of the mean, if cells of a grid were one
    assert (np.abs(mean - MEANS[name]) < 4 * error).all()
    scale = np.sqrt(np.outer(np.diag(COVARIANCE), np.diag(COVARIANCE)))
    assert np.abs((covariance - COVARIANCE) / scale).max() < 4 * np.sqrt(2 / count)
    if cols > 1:
        assert right == pytest.approx(ACROSS, abs=4 / np.sqrt(count))
        assert below == pytest.approx(DOWN, abs=4 / np.sqrt(count))


def test_a_grid_beyond_the_window_keeps_its_moments(prior):
    """Windows agree on what lies between them: nearly, for their average loses some variance."""
    grids = sample_grids(prior, Asked(label={"a": 1.0}), 11, 14, samples=40, seed=1)[:, :, :, 0]
    mean, covariance, right, below = moments(grids)
    assert np.abs(mean - MEANS["a"]).max() < 0.15
    spread = np.sqrt(np.diag(covariance) / np.diag(COVARIANCE))
    assert (spread > 0.85).all() and (spread < 1.05).all()
    assert right == pytest.approx(ACROSS, abs=0.12) and below == pytest.approx(DOWN, abs=0.12)


def test_a_sample_is_a_function_of_the_seed_and_its_number(prior):
    asked = Asked(label={"b": 1.0})
    several = sample_grids(prior, asked, 2, 3, samples=5, seed=7)
    again = sample_grids(prior, asked, 2, 3, samples=3, seed=7)
    np.testing.assert_allclose(several[:3], again, atol=1e-5)
    other = sample_grids(prior, asked, 2, 3, samples=3, seed=8)
    assert np.abs(other - again).max() > 0.5 and np.abs(several[0] - several[1]).max() > 0.5


def test_what_is_kept_is_kept_and_what_is_new_belongs_to_it(prior):
    """Right of a known column the mean follows it, as far as the correlation tells."""
    rng = np.random.default_rng(5)
    known = draw(rng, "a", 1, 2, 3)[0][:, :, None].astype(np.float32)
    known[:, :2] += 3 * SHIFT
    mask = np.zeros((2, 3), bool)
    mask[:, 2] = True
    few, kept = Sampling(15, 1.0), (known, mask)
    grids = sample_grids(prior, Asked(label={"a": 1.0}), 2, 3, samples=300, sampling=few, keep=kept)
    np.testing.assert_array_equal(
        grids[:, ~mask], np.broadcast_to(known[~mask], grids[:, ~mask].shape)
    )
    # Of two correlated cells the expectation is mean + ACROSS (known - mean).
    expected = MEANS["a"] + ACROSS * (known[:, 1, 0] - MEANS["a"])
    found = grids[:, :, 2, 0].mean(0)
    far = np.linalg.norm(MEANS["a"] - expected)
    assert np.linalg.norm(found - expected) < 0.25 * far


SHIFT = np.array([1.0, 0.5, 0, 0.3], np.float32)


def test_a_variation_is_between_the_grid_and_a_sample(prior):
    grid = draw(np.random.default_rng(2), "a", 1, 3, 3)[0][:, :, None].astype(np.float32)
    asked = Asked(label={"a": 1.0})

    def distance(strength: float) -> float:
        found = sample_grids(prior, asked, 3, 3, samples=20, start=(grid, strength))
        return float(np.abs(found - grid).mean())

    near, middle, far = distance(0.1), distance(0.5), distance(1.0)
    assert near < 0.5 * middle < 0.5 * far
    np.testing.assert_array_equal(
        sample_grids(prior, asked, 3, 3, start=(grid, 1.0)), sample_grids(prior, asked, 3, 3)
    )


@pytest.mark.parametrize(
    "given, match",
    [
        ({"rows": 0}, "1 grids of 0x2 cells"),
        ({"samples": 0}, "0 grids"),
        ({"seed": 2**32}, "seed 4294967296"),
        ({"start": (np.zeros((2, 3, 1, DIM)), 0.5)}, r"shape \[2, 3, 1, 4\]; expected \[2, 2, 1"),
        ({"start": (np.zeros((2, 2, 1, DIM)), 0.0)}, "strength 0"),
        ({"keep": (np.zeros((2, 2, 1, DIM)), np.zeros((1, 2), bool))}, "a mask of"),
        ({"sampling": Sampling(2000, 1.0)}, "2000 sampling steps"),
    ],
)
def test_what_cannot_be_sampled_is_refused(prior, given, match):
    sizes = {"rows": 2, "cols": 2} | given
    with pytest.raises(InputError, match=match):
        sample_grids(prior, Asked(), **sizes)


def test_a_weak_variation_keeps_what_the_components_do_not_hold(prior):
    """Of a whitening of two of four components, half of what is lost is half of the variation's."""
    few, _ = fit_whitening(draw(np.random.default_rng(0), "a", 2000, 1, 1).reshape(-1, 1, DIM), 2)
    bare = dataclasses.replace(prior, whitening=few)
    grid = draw(np.random.default_rng(2), "a", 1, 2, 2)[0][:, :, None].astype(np.float32)

    def lost(found):
        return found - few.to_embedding(few.to_white(found), 1)

    object.__setattr__(bare, "denoiser", lambda guidance: keeps_all(prior.schedule))
    for strength in (0.25, 1.0):
        found = sample_grids(bare, Asked(), 2, 2, start=(grid, strength))[0]
        np.testing.assert_allclose(lost(found), (1 - strength) * lost(grid), atol=1e-3)


def keeps_all(schedule):
    """A denoiser that predicts what it sees, of any number of components."""
    null = {"tokens": jnp.zeros((1, DIM))}
    return make_denoiser(Same(), (), schedule, "x0", null, 1.0)


@dataclasses.dataclass(frozen=True)
class Same:
    def __call__(self, params, x, timestep, context):
        return x
