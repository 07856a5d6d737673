"""Evaluation: closed forms, planted answers and chance levels of every measure."""

import numpy as np
import pytest

from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation import measures
from ssl_diffusion.evaluation.agreement import agreement, estimated, joined, paired_similarity
from ssl_diffusion.evaluation.copying import NearestTraining, copying
from ssl_diffusion.evaluation.features import one_vector
from ssl_diffusion.evaluation.frechet import Moments, frechet_distance
from ssl_diffusion.evaluation.pixels import psnr, sharpness
from ssl_diffusion.evaluation.roundtrip import reconstruct, reconstruct_region
from ssl_diffusion.evaluation.seams import border_lines, seam


def gaussian(seed: int, count: int, dim: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def moments(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    """Moments of exactly this mean and covariance."""
    return Moments(11, mean.astype(np.float64), covariance.astype(np.float64) * 10)


# Frechet distance


def test_frechet_distance_of_diagonal_gaussians_is_closed_form():
    first, second = np.array([4.0, 9.0, 0.25]), np.array([1.0, 16.0, 0.25])
    mean = np.array([1.0, -2.0, 0.5])
    expected = 1 + 4 + 0.25 + ((first**0.5 - second**0.5) ** 2).sum()
    found = frechet_distance(moments(np.zeros(3), np.diag(first)), moments(mean, np.diag(second)))
    assert found == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_covariances_that_do_not_commute():
    """2 x 2: tr sqrt(AB) = sqrt(tr(AB) + 2 sqrt(det(AB)))."""
    a, b = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.4], [-0.4, 0.5]])
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    found = frechet_distance(moments(np.zeros(2), a), moments(np.zeros(2), b))
    assert found == pytest.approx(np.trace(a) + np.trace(b) - 2 * cross, rel=1e-10)


def test_frechet_distance_is_safe_with_fewer_embeddings_than_dimensions():
    few = gaussian(0, 5, 40)
    shifted = few + 0.5
    assert Moments.of(few).factor.shape == (40, 4)
    assert frechet_distance(Moments.of(few), Moments.of(few)) == pytest.approx(0, abs=1e-10)
    # The same shape elsewhere: only the means differ.
    assert frechet_distance(Moments.of(few), Moments.of(shifted)) == pytest.approx(10, rel=1e-5)
    # One direction each, orthogonal: nothing overlaps, the variances add up.
    x = np.zeros((3, 40), np.float32)
    y = x.copy()
    x[:, 0], y[:, 1] = [-1, 0, 1], [-2, 0, 2]
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(1 + 4, rel=1e-12)


def test_frechet_distance_is_symmetric_and_rejects_other_dimensions():
    a, b = Moments.of(gaussian(1, 30, 6)), Moments.of(2 * gaussian(2, 9, 6) + 1)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    with pytest.raises(InputError, match="6 and of 5 dimensions"):
        frechet_distance(a, Moments.of(gaussian(3, 9, 5)))
    with pytest.raises(InputError, match="at least 2"):
        frechet_distance(a, Moments.of(gaussian(3, 1, 6)))


def test_streamed_moments_are_those_of_everything_at_once():
    values = gaussian(4, 103, 7) * 0.01 + 1000  # far from zero: raw sums of squares would cancel
    streamed = Moments.zero(7)
    for start in range(0, len(values), 10):
        streamed = streamed + Moments.of(values[start : start + 10])
    exact = values.astype(np.float64)
    assert streamed.count == 103
    np.testing.assert_allclose(streamed.mean, exact.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(streamed.covariance, np.cov(exact.T), rtol=1e-9, atol=1e-13)


# Agreement


def test_retrieval_is_one_when_perfect_and_chance_when_random():
    gallery, centre = gaussian(7, 200, 16) + 3, np.full(16, 3, np.float32)
    order = np.random.default_rng(0).permutation(200)
    perfect = agreement(gallery[order] * 1.0, gallery, order, centre)
    found = perfect.numbers()["retrieval_at_1"]
    assert found["value"] == found["high"] == 1 and 0.97 < found["low"] < 0.99
    np.testing.assert_allclose(perfect.similarity, 1, atol=1e-5)
    assert perfect.shuffled_numbers()["retrieval_at_1"]["value"] == 0
    hits = [
        agreement(gaussian(seed, 200, 16) + 3, gallery, order, centre).retrieved.mean()
        for seed in range(20, 40)
    ]
    assert perfect.gallery == 200
    assert abs(np.mean(hits) - 1 / 200) < 4 * np.sqrt(1 / 200 / 4000)


def test_shuffled_controls_are_the_average_over_every_other_patch():
    gallery, images, centre = gaussian(8, 12, 5), gaussian(9, 9, 5), gaussian(10, 1, 5)[0]
    wanted = np.random.default_rng(1).permutation(12)[:9]
    found = agreement(images, gallery, wanted, centre)
    turns = [agreement(images, gallery, (wanted + turn) % 12, centre) for turn in range(1, 12)]
    expected = np.mean([turn.similarity for turn in turns], axis=0)
    np.testing.assert_allclose(found.similarity_shuffled, expected, atol=1e-6)
    shuffled = np.mean([turn.retrieved for turn in turns])
    number = found.shuffled_numbers()["retrieval_at_1"]["value"]
    assert number == pytest.approx(shuffled, abs=1e-12)


def test_similarity_is_taken_from_the_centre():
    centre = np.array([10.0, 0.0], np.float32)
    gallery = centre + np.array([[0, 1], [0, -1]], np.float32)
    images = centre + np.array([[0, 2], [0, -3]], np.float32)
    found = agreement(images, gallery, np.array([0, 1]), centre)
    np.testing.assert_array_equal(found.similarity, [1, 1])
    np.testing.assert_array_equal(found.similarity_shuffled, [-1, -1])
    np.testing.assert_allclose(paired_similarity(images, gallery[::-1], centre), [-1, -1])


def test_intervals_of_agreement_are_those_of_means_over_images():
    gallery = np.eye(8, dtype=np.float32)
    wanted = np.array([0, 1, 2, 3, 4, 5, 7, 6])  # six of eight right
    found = agreement(gallery, gallery, wanted, np.zeros(8, np.float32))
    number = found.numbers()["retrieval_at_1"]
    # The exact interval of 6 of 8 (Clopper & Pearson).
    assert number["value"] == 0.75 and number["low"] == pytest.approx(0.349, abs=1e-3)
    assert number["high"] == pytest.approx(0.968, abs=1e-3)
    values = gaussian(11, 400, 1)[:, 0]
    half = (estimated(values)["high"] - estimated(values)["low"]) / 2
    assert half == pytest.approx(1.96 * values.std() / 20, rel=0.1)


def test_agreement_is_the_same_in_blocks_and_joins_galleries(monkeypatch):
    gallery, images, centre = gaussian(8, 12, 5), gaussian(9, 12, 5), gaussian(10, 1, 5)[0]
    wanted = np.arange(12)
    whole = agreement(images, gallery, wanted, centre)
    monkeypatch.setattr("ssl_diffusion.evaluation.agreement.BLOCK", 5)
    blocks = agreement(images, gallery, wanted, centre)
    np.testing.assert_allclose(blocks.similarity, whole.similarity, atol=1e-6)
    np.testing.assert_array_equal(blocks.retrieved, whole.retrieved)
    both = joined([whole, blocks])
    assert both.gallery == 12 and both.retrieved.sum() == 2 * whole.retrieved.sum()


def test_agreement_needs_a_gallery_and_finite_embeddings():
    with pytest.raises(InputError, match="at least 2"):
        agreement(gaussian(0, 1, 3), gaussian(0, 1, 3), np.array([0]), np.zeros(3, np.float32))
    tokens = gaussian(0, 4, 6).reshape(4, 2, 3)
    np.testing.assert_array_equal(one_vector(tokens, "x")[1], tokens[1].ravel())
    tokens[2, 1, 0] = np.nan
    with pytest.raises(InputError, match=r"samples: 1 of 4 .* index 2"):
        one_vector(tokens, "samples")


# Copying


def test_nearest_training_finds_planted_copies_in_any_chunk():
    train, queries = gaussian(12, 50, 9), gaussian(13, 4, 9)
    train[[3, 17, 18, 49]] = queries * 2
    centre = np.zeros(9, np.float32)
    nearest, several = NearestTraining(queries, centre), NearestTraining(queries, centre, 20)
    for start in range(0, 50, 7):
        nearest.update(train[start : start + 7])
        several.update(train[start : start + 7])
    np.testing.assert_array_equal(nearest.index[:, 0], [3, 17, 18, 49])
    np.testing.assert_allclose(nearest.similarity, 1, atol=1e-6)
    cosine = queries @ (train / np.linalg.norm(train, axis=1, keepdims=True)).T
    expected = np.argsort(-cosine, axis=1)[:, :20]
    np.testing.assert_array_equal(several.index, expected)


def test_the_interval_of_what_is_closer_covers_with_few_real_patches():
    """The 5 % quantile of 80 of them is uncertain, too."""
    rng, covered = np.random.default_rng(3), 0
    for _ in range(100):
        found = copying(1 - rng.gamma(4, size=80), 1 - rng.gamma(4, size=80))["closer_than_real"]
        covered += found["low"] <= 0.05 <= found["high"]
    assert 0.9 <= covered / 100


def test_copying_tells_a_copier_from_a_generator():
    real = np.linspace(0.2, 0.8, 101)
    copier = copying(np.full(40, 0.99), real, np.full(30, 0.98))
    assert copier["closer_than_real"]["value"] == 1
    assert copier["sample_distance"]["value"] == pytest.approx(0.01)
    assert copier["copy_distance"]["value"] == pytest.approx(0.02)
    assert copier["distance_ratio"]["value"] == pytest.approx(0.02)
    honest = copying(real, real)
    assert "copy_distance" not in honest
    assert honest["closer_than_real"]["value"] == honest["closer_than_real_control"]["value"]
    assert honest["closer_than_real_control"]["value"] == pytest.approx(0.05, abs=0.01)
    assert copying(real, np.ones(9))["distance_ratio"] is None  # they are copies themselves
    assert honest["closer_than_real_control"]["low"] is None
    together = copying(real, real, paired=True)["distance_ratio"]
    assert together == {"value": 1, "low": None, "high": None}
    ratio = honest["distance_ratio"]
    assert ratio["value"] == 1 and ratio["low"] < 0.99 < 1.01 < ratio["high"]


# Seams, sharpness, reconstruction


def test_border_lines_are_those_of_cells_and_of_windows():
    windows = np.array([0, 8, 16, 24, 28])
    lines = border_lines(44, (np.array([0, 16, 28]), 16), (windows, 16))
    np.testing.assert_array_equal(lines, [8, 16, 24, 28, 32, 40])


def test_seam_is_the_exact_ratio_of_planted_steps():
    """Steps of 2 everywhere across columns, and of 10 across the lines: 10 / 2."""
    steps = np.full(31, 2)
    steps[[7, 15]] = 10
    ramp = np.cumsum(np.concatenate([[0], steps])).astype(np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (20, 32, 3)).copy()
    none, lines = np.array([], int), np.array([8, 16])
    # The rows have no step at all: 19 x 32 zeros join the 29 x 20 twos.
    elsewhere = (29 * 20 * 2) / (29 * 20 + 19 * 32)
    assert seam(image, none, lines) == pytest.approx(10 / elsewhere, rel=1e-12)
    assert seam(image.swapaxes(0, 1), lines, none) == pytest.approx(10 / elsewhere, rel=1e-12)
    # One line beside the planted ones has the step of everywhere.
    assert seam(image, none, np.array([9])) == pytest.approx(
        2 / ((28 * 2 + 20) * 20 / 1208), rel=1e-3
    )


def test_seam_of_noise_is_one_and_a_planted_seam_is_more():
    noise = np.random.default_rng(3).integers(90, 110, (128, 128, 3), np.uint8)
    lines = np.arange(16, 128, 16)
    assert seam(noise, lines, lines) == pytest.approx(1, abs=0.03)
    tiles = noise + (np.arange(128) // 16 % 2 * 40).astype(np.uint8)[None, :, None]
    assert seam(tiles, lines, lines) > 2
    assert seam(tiles, lines + 8, lines + 8) < 1


def test_seam_in_phase_is_blind_to_a_jpeg_grid_and_sees_a_seam():
    """Blocks of 8 px, as JPEG leaves them, fool the plain figure but not the one in phase."""
    rng = np.random.default_rng(4)
    blocks = rng.integers(0, 60, (32, 32, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    image = blocks + rng.integers(90, 110, blocks.shape, np.uint8)
    lines = np.arange(32, 256, 32)
    assert seam(image, lines, lines) > 1.5
    assert seam(image, lines, lines, period=8) == pytest.approx(1, abs=0.1)
    image[:, 96:] += 60
    assert seam(image, lines, lines, period=8) > 1.15


def test_seam_is_undefined_without_lines_or_on_a_flat_image():
    noise = np.random.default_rng(5).integers(0, 255, (16, 16, 3), np.uint8)
    none, every_8 = np.array([], int), np.array([8])
    assert seam(noise, none, none) is None
    assert seam(noise, every_8, every_8, period=8) is None
    assert seam(np.full((16, 16, 3), 7, np.uint8), every_8, every_8) is None


def test_sharpness_and_psnr():
    noise = np.random.default_rng(6).integers(0, 255, (64, 64, 3), np.uint8)
    blurred = (noise.astype(float) + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) / 3
    assert sharpness(noise, noise) == 1
    assert sharpness(blurred.astype(np.uint8), noise) < 0.7
    assert sharpness(noise, np.zeros_like(noise)) is None
    images = np.full((2, 4, 4, 3), 100, np.uint8)
    other = images + np.array([1, 5], np.uint8)[:, None, None, None]
    np.testing.assert_allclose(psnr(images, other), [48.1308, 34.1514], atol=1e-4)
    assert psnr(images, images) == pytest.approx([100, 100])
    numbers = measures.autoencoder_numbers(images, other)
    assert numbers["psnr_db"]["value"] == pytest.approx(41.1411, abs=1e-4)
    assert numbers["psnr_pooled_db"] == pytest.approx(10 * np.log10(255**2 / 13), abs=1e-4)


def test_a_region_through_tiles_is_the_region_through_the_whole_autoencoder():
    """Tiling changes nothing for an autoencoder that acts latent pixel by latent pixel."""
    shapes = []

    def encode(images):
        shapes.append(images.shape)
        n, height, width, _ = images.shape
        blocks = images.reshape(n, height // 4, 4, width // 4, 4, 3)
        return blocks.mean(axis=(2, 4)).astype(np.float32) / 127.5 - 1

    def decode(latent):
        return np.asarray(latent).repeat(4, axis=1).repeat(4, axis=2)

    region = np.random.default_rng(8).integers(0, 255, (71, 50, 3), np.uint8)
    whole = np.pad(region, [(0, 1), (0, 2), (0, 0)], mode="edge")
    expected = reconstruct(encode, decode, whole[None])[0, :71, :50]
    found = reconstruct_region(encode, decode, region, 4, 32)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert shapes[-1] == (4 * 3, 32, 32, 3)
    small = reconstruct_region(encode, decode, region[:16, :12], 4, 32)
    np.testing.assert_array_equal(small, reconstruct(encode, decode, region[None, :16, :12])[0])


def test_encoder_numbers_tell_an_encoder_that_ignores_the_augmentation():
    images = np.random.default_rng(7).integers(0, 255, (30, 4, 4, 3), np.uint8)
    views = np.stack([images[..., [1, 2, 0]], images[..., [2, 0, 1]]])  # colours swapped

    def grey(x):
        return x.sum(axis=3).reshape(len(x), 1, -1).astype(np.float32)

    def first_channel(x):
        return x[..., 0].reshape(len(x), 1, -1).astype(np.float32)

    numbers = measures.encoder_numbers(grey, first_channel, images, views)
    assert numbers["retrieval_at_1"]["value"] == 1
    assert numbers["random_init_retrieval_at_1"]["value"] < 0.3
    assert (numbers["chance"], numbers["draws"]) == (1 / 30, 2)
    swapped = measures.encoder_numbers(first_channel, grey, images, views)
    assert swapped["random_init_retrieval_at_1"]["value"] == 1
    assert swapped["retrieval_at_1"]["value"] == numbers["random_init_retrieval_at_1"]["value"]
    # Colours swapped: their means and deviations are another patch's. Turned, they are the same.
    assert numbers["colour_retrieval_at_1"]["value"] < 0.3
    turned = measures.encoder_numbers(grey, first_channel, images, views[:, :, ::-1])
    assert turned["colour_retrieval_at_1"]["value"] == numbers["colour_retrieval_at_1"]["value"]
    own = measures.encoder_numbers(grey, first_channel, images, images[None, :, ::-1])
    assert own["colour_retrieval_at_1"]["value"] == 1 and own["retrieval_at_1"]["value"] < 0.3
