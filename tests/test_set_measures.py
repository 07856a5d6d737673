"""Measures of sets: closed forms, constructed overlaps, peers' numbers, intervals that cover."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ssl_diffusion import demo
from ssl_diffusion.data.records import open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.crops import corners, crops
from ssl_diffusion.evaluation.features import one_vector
from ssl_diffusion.evaluation.frechet import Moments, frechet_distance
from ssl_diffusion.evaluation.intervals import Estimate, bootstrap_mean, half_samples
from ssl_diffusion.evaluation.kernel import (
    kernel_distance,
    kernel_distances,
    subset_kernel_distance,
)
from ssl_diffusion.evaluation.manifold import density_coverage, manifold_shares, precision_recall
from ssl_diffusion.evaluation.set_measures import sets_numbers
from ssl_diffusion.weights.encoder import load_encoder

PEERS = json.loads((Path(__file__).parent / "fixtures" / "set_measures.json").read_text())


def gaussian(seed: int, count: int, dim: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((count, dim)) + shift).astype(np.float32)


def set_numbers(samples: np.ndarray, real: np.ndarray) -> dict:
    """Of a single set."""
    return sets_numbers({"samples": samples}, real)["samples"]


def line(start: float, count: int, step: float = 1.0) -> np.ndarray:
    """Features at equal steps along one axis."""
    return (start + step * np.arange(count, dtype=np.float32))[:, None]


# Frechet distance


def test_frechet_distance_of_sampled_gaussians_tends_to_the_closed_form():
    scale = np.array([2.0, 1.0, 0.5], np.float32)
    first, second = gaussian(0, 40_000, 3), gaussian(1, 40_000, 3, 0.3) * scale
    expected = ((0.3 * scale) ** 2 + (1 - scale) ** 2).sum()
    found = frechet_distance(Moments.of(first), Moments.of(second))
    assert found == pytest.approx(expected, rel=0.03)


def test_frechet_distance_of_covariances_that_span_many_orders():
    """Diagonal ones turned by one rotation: the sum over axes of squared root differences."""
    rotation = np.linalg.qr(gaussian(2, 60, 60).astype(np.float64))[0]
    first, second = 10.0 ** -np.linspace(0, 8, 60), 10.0 ** -np.linspace(0, 8, 60)[::-1]
    moments = [
        Moments(2, np.zeros(60), rotation * values @ rotation.T) for values in (first, second)
    ]
    assert frechet_distance(*moments) == pytest.approx(
        ((first**0.5 - second**0.5) ** 2).sum(), rel=1e-6
    )


# Kernel distance


def brute_kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Binkowski et al. 2018, eq. 4, pair by pair."""

    def mean(pairs):
        return np.mean([(float(a) / x.shape[1] + 1) ** 3 for a in pairs])

    x, y = x.astype(np.float64), y.astype(np.float64)
    own = [[a @ b for i, a in enumerate(z) for j, b in enumerate(z) if i != j] for z in (x, y)]
    return mean(own[0]) + mean(own[1]) - 2 * mean([a @ b for a in x for b in y])


def test_kernel_distance_is_the_formula_in_blocks_and_subsets(monkeypatch):
    monkeypatch.setattr("ssl_diffusion.evaluation.kernel.BLOCK", 4)
    x, y = gaussian(3, 11, 3), gaussian(4, 9, 3, 0.5)
    assert kernel_distance(x, y) == pytest.approx(brute_kernel_distance(x, y), rel=1e-5)
    in_x, in_y = half_samples(11, 2).reshape(4, 11), half_samples(9, 2).reshape(4, 9)
    assert in_x.sum(axis=1).tolist() == [5] * 4 and in_y.sum(axis=1).tolist() == [4] * 4
    assert not (in_x[::2] & in_x[1::2]).any()
    halves = [kernel_distance(x[a], y[b]) for a, b in zip(in_x, in_y, strict=True)]
    np.testing.assert_allclose(kernel_distances(x, y, in_x, in_y), halves, rtol=1e-4)


def test_kernel_distance_is_unbiased_on_equal_distributions():
    values = [kernel_distance(gaussian(s, 30, 4), gaussian(s + 999, 20, 4)) for s in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20
    assert min(values) < 0
    # The published mean over subsets has the same expectation.
    x, y = gaussian(5, 400, 4), gaussian(6, 400, 4, 0.4)
    assert subset_kernel_distance(x, y, 60, 100) == pytest.approx(kernel_distance(x, y), rel=0.1)
    with pytest.raises(InputError, match="at least 2"):
        kernel_distance(x[:1], y)
    with pytest.raises(InputError, match="4 and of 3 dimensions"):
        kernel_distance(x, y[:, :3])


# Precision, recall, density, coverage


def test_precision_and_recall_of_constructed_overlaps():
    real = line(0, 100)
    assert precision_recall(real + 1e4, real) == (0, 0)
    assert precision_recall(real, real) == (1, 1)
    # Within reach 3 of an end's ball of 100 real ones, 2 of others: 50 in common and 3 beyond.
    assert precision_recall(real + 50, real, k=3) == (0.53, 0.53)
    # Few and wide spread against many: all samples are precise, and all real ones recalled.
    assert precision_recall(line(0, 10, 10), real, k=1) == (1, 1)
    # A mode collapsed onto a tenth of the real range: precise, little recall.
    precision, recall = precision_recall(line(40, 100, 0.1), real, k=3)
    assert precision == 1 and recall == pytest.approx(0.1, abs=0.01)


def test_density_and_coverage_of_constructed_overlaps():
    real = line(0, 100)
    assert density_coverage(real + 1e4, real) == (0, 0)
    density, coverage = density_coverage(real, real, k=2)
    # A ball of reach 1 holds three, itself too; at the ends, reach 2, and two others.
    assert (density, coverage) == (3.0 * 100 / 200, 1.0)
    density, coverage = density_coverage(real + 50.25, real, k=2)
    assert coverage == pytest.approx(0.5, abs=0.011)
    # Equal distributions: Naeem et al. 2020, sec. 3.2; 1 - prod (m - i) / (m + n - i).
    i = np.arange(1, 6)
    expected = 1 - np.prod((200 - i) / (300 - i))
    found = [density_coverage(gaussian(s, 100, 5), gaussian(s + 99, 200, 5)) for s in range(40)]
    np.testing.assert_allclose(np.mean(found, axis=0), [1, expected], rtol=0.02)


def test_manifold_shares_of_subsets_are_those_of_each_alone(monkeypatch):
    monkeypatch.setattr("ssl_diffusion.evaluation.manifold.ROWS", 16)
    monkeypatch.setattr("ssl_diffusion.evaluation.manifold.COLUMNS", 24)
    x, y = gaussian(7, 70, 3, 0.5), gaussian(8, 90, 3)
    in_x, in_y = half_samples(70, 2).reshape(4, 70), half_samples(90, 2, seed=1).reshape(4, 90)
    found = manifold_shares(x, y, 3, in_x, in_y)
    for s, (a, b) in enumerate(zip(in_x, in_y, strict=True)):
        alone = precision_recall(x[a], y[b], 3), density_coverage(x[a], y[b], 3)
        assert (found.precision[s], found.recall[s]) == alone[0]
        assert (found.density[s], found.coverage[s]) == pytest.approx(alone[1])
    with pytest.raises(InputError, match="more than 3"):
        precision_recall(x[:3], y)


# Peers' code on the same features


@pytest.mark.parametrize("name", [*PEERS["cases"]])
def test_numbers_are_those_of_the_peers(name):
    """tests/fixtures/set_measures.json has their versions, and what they gave."""
    case = PEERS["cases"][name]
    dimension = case["dimension"]
    mix = np.random.default_rng(0).standard_normal((dimension, dimension)) / np.sqrt(dimension)

    def features(seed, count, shift, scale):
        own = np.random.default_rng(seed).standard_normal((count, dimension))
        return (scale * own @ mix + shift).astype(np.float32)

    samples, real = features(*case["samples"]), features(*case["real"])
    numbers = set_numbers(samples, real)
    for peer in ("torch-fidelity", "clean-fid"):
        assert numbers["fd"]["value"] == pytest.approx(case[peer]["fd"], rel=1e-4)
        assert numbers["kid"]["value"] == pytest.approx(case[peer]["kid"], rel=1e-4)
    for peer in ("prdc", "scikit-learn"):
        for measure, value in case[peer].items():
            assert numbers[measure]["value"] == pytest.approx(value, abs=1e-4)
    of_three = case["torch-fidelity"]["precision_3"], case["torch-fidelity"]["recall_3"]
    assert precision_recall(samples, real, 3) == pytest.approx(of_three, abs=1e-4)


# Intervals


def test_intervals_cover():
    """95 % intervals over 160 pairs of sets; the truth is the mean over all, KID's is known."""
    found = [set_numbers(gaussian(s, 90, 4, 0.5), gaussian(s + 999, 120, 4)) for s in range(160)]
    for name in ("fd", "kid", "precision", "recall", "density", "coverage"):
        truth = np.mean([numbers[name]["value"] for numbers in found])
        inside = [n[name]["low"] <= truth <= n[name]["high"] for n in found]
        assert 0.88 <= np.mean(inside) <= 0.99, (name, np.mean(inside))


def test_intervals_of_distances_fit_where_nothing_differs():
    """There a distance is of second order: the spread over halves would be 1.7 times too wide."""
    found = [set_numbers(gaussian(s, 60, 4), gaussian(s + 999, 80, 4)) for s in range(160)]
    for name in ("fd", "kid"):
        values = np.array([numbers[name]["value"] for numbers in found])
        inside = [n[name]["low"] <= values.mean() <= n[name]["high"] for n in found]
        assert 0.88 <= np.mean(inside) <= 0.99, (name, np.mean(inside))
        width = np.sqrt(np.mean([(n[name]["high"] - n[name]["value"]) ** 2 for n in found]))
        assert 0.9 < width / (2 * values.std()) < 1.35, (name, width / (2 * values.std()))


def test_sets_together_have_the_numbers_of_each_alone():
    real, sets = gaussian(1, 50, 3), {"few": gaussian(2, 3, 3), "many": gaussian(3, 40, 3, 0.3)}
    for name, together in sets_numbers(sets, real).items():
        alone = set_numbers(sets[name], real)
        assert together["warnings"] == alone["warnings"] and together["n"] == len(sets[name])
        for measure in ("fd", "kid", "precision", "coverage"):
            for end in ("value", "low", "high"):
                expected = alone[measure][end]
                assert (expected is None) == (name == "few" and end != "value")
                assert together[measure][end] == (expected and pytest.approx(expected, rel=1e-5))


def test_bootstrap_intervals_of_means_cover():
    draws = np.random.default_rng(9).exponential(size=(200, 60))
    intervals = [bootstrap_mean(values) for values in draws]
    assert 0.88 <= np.mean([i.low <= 1 <= i.high for i in intervals]) <= 0.99
    assert intervals[0].value == draws[0].mean()
    assert bootstrap_mean(np.ones(5)) == Estimate(1.0, None, None)


# All together


def test_too_few_features_are_warned_of_with_the_consequence():
    numbers = set_numbers(gaussian(10, 6, 40), gaussian(11, 300, 40))
    (singular, few, lowered, biased) = numbers["warnings"]
    assert "singular" in singular and "biased upwards" in singular
    assert "KID" in few and "k = 5" in lowered and numbers["k"] == 2
    assert "300 real images are not many more" in biased
    assert numbers["fd"]["value"] > 0 and numbers["fd"]["low"] is not None
    two = set_numbers(gaussian(12, 2, 3), gaussian(13, 2, 3))
    assert two["fd"]["low"] is None and any(
        "no number has an interval" in w for w in two["warnings"]
    )
    assert set_numbers(gaussian(14, 200, 3), gaussian(15, 200, 3))["warnings"] == []
    same = set_numbers(np.repeat(gaussian(14, 100, 3), 2, axis=0), gaussian(15, 200, 3))
    assert "100 of 200 samples" in same["warnings"][0]
    constant = set_numbers(np.ones((50, 3), np.float32), gaussian(15, 200, 3))
    assert np.isfinite(constant["fd"]["value"])


def test_features_that_cannot_be_compared_are_refused():
    bad = gaussian(16, 20, 3)
    bad[7, 1] = np.nan
    with pytest.raises(InputError, match="samples: 1 of 20 .* index 7"):
        set_numbers(bad, gaussian(17, 20, 3))
    with pytest.raises(InputError, match="real images: 1 of them"):
        set_numbers(gaussian(17, 20, 3), gaussian(17, 1, 3))
    with pytest.raises(InputError, match="3 .samples. and 2 dimensions"):
        set_numbers(gaussian(17, 20, 3), gaussian(17, 20, 2))


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def blurred(image: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def noisy(image: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, deviation, image.shape)
    return np.clip(image + noise, 0, 255).round().astype(np.uint8)


def test_distances_rise_with_every_damage(records_dir):
    """Real patches against themselves, blurred (px), noisy (grey levels), or as JPEG (quality)."""
    images = open_records(records_dir).source("train", ("image",)).spread(128)["image"]
    encoder = load_encoder(demo.ENCODER)
    real = one_vector(encoder.embed(images), "real")
    for damage, levels in (
        (blurred, (0.7, 1.2, 2, 4)),
        (noisy, (5, 10, 20, 40)),
        (jpeg, (60, 30, 10, 4)),
    ):
        found = []
        for level in levels:
            worse = np.stack([damage(image, level) for image in images])
            features = one_vector(encoder.embed(worse), "worse")
            found.append(
                (
                    frechet_distance(Moments.of(features), Moments.of(real)),
                    kernel_distance(features, real),
                )
            )
        assert (np.diff(found, axis=0) > 0).all(), (damage, found)


# Crops


def test_crops_are_at_the_same_uniform_places_in_images_of_one_size():
    image = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60, 1)
    image = np.concatenate([image // 256, image % 256, image * 0], axis=2).astype(np.uint8)
    found = crops(image, 16, 5, seed=3)
    places = corners(40, 60, 16, 5, seed=3)
    for crop, (y, x) in zip(found, places, strict=True):
        np.testing.assert_array_equal(crop, image[y : y + 16, x : x + 16])
    many = corners(40, 60, 16, 20_000, seed=0)
    assert many.min(axis=0).tolist() == [0, 0] and many.max(axis=0).tolist() == [24, 44]
    np.testing.assert_allclose(many.mean(axis=0), [12, 22], atol=0.3)
    assert (corners(40, 60, 16, 5, seed=4) != places).any()
    with pytest.raises(InputError, match="60x40 px has no crops of 64"):
        crops(image, 64, 1, 0)
