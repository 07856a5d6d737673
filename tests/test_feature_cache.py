"""Features are computed once for the same pixels in the same space; what was done survives."""

import numpy as np
import pytest
from PIL import Image

from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation import feature_cache
from ssl_diffusion.evaluation.feature_cache import cached_features, chunk_size
from ssl_diffusion.evaluation.image_sets import array_images, folder_images
from ssl_diffusion.evaluation.spaces import Space

CHUNK = 4


class Counting:
    """A space whose features are the mean colours; it counts the images that it was shown."""

    def __init__(self, digest="a"):
        self.seen = 0
        self.space = Space("colours", "FD (colours)", digest, {}, self.embed)

    def embed(self, images):
        self.seen += len(images)
        return images.mean((1, 2), dtype=np.float32)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(feature_cache, "MOST", CHUNK)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 8, 6, 3), np.uint8)


def test_features_are_in_order_and_computed_once(images, tmp_path):
    colours, made = Counting(), array_images(images, "made")
    found = cached_features(colours.space, made, tmp_path / "cache")
    np.testing.assert_array_equal(found, images.mean((1, 2), dtype=np.float32))
    assert colours.seen == 10 and len(list((tmp_path / "cache").iterdir())) == 3
    np.testing.assert_array_equal(cached_features(colours.space, made, tmp_path / "cache"), found)
    assert colours.seen == 10
    assert made.settings["sha256"]


def test_other_pixels_and_other_spaces_are_computed(images, tmp_path):
    colours, other = Counting(), Counting("b")
    cached_features(colours.space, array_images(images, "made"), tmp_path)
    images[5] += 1
    cached_features(colours.space, array_images(images, "changed"), tmp_path)
    assert colours.seen == 10 + CHUNK  # the chunk in which one image is another
    cached_features(other.space, array_images(images, "changed"), tmp_path)
    assert other.seen == 10
    same_bytes = array_images(images.reshape(10, 6, 8, 3), "of another shape")
    cached_features(other.space, same_bytes, tmp_path)
    assert other.seen == 20


def test_an_unreadable_image_leaves_what_was_done(images, tmp_path):
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    damaged = tmp_path / "9.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-60])
    colours, cache = Counting(), tmp_path / "cache"
    with pytest.raises(InputError, match="9.png cannot be read"):
        cached_features(colours.space, folder_images(tmp_path, "samples"), cache)
    assert colours.seen == 8
    damaged.write_bytes(whole)
    found = cached_features(colours.space, folder_images(tmp_path, "samples"), cache)
    np.testing.assert_array_equal(found, images.mean((1, 2), dtype=np.float32))
    assert colours.seen == 10


def test_features_that_are_no_numbers_are_named_and_not_kept(images, tmp_path):
    def embed(pixels):
        features = pixels.mean((1, 2), dtype=np.float32)
        features[(pixels == images[6]).all((1, 2, 3))] = np.nan
        return features

    space = Space("judge", "FD (judge)", "c", {}, embed)
    with pytest.raises(InputError, match="judge gives made features with NaN .* for image 6;"):
        cached_features(space, array_images(images, "made"), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01", None])
def test_a_damaged_file_is_computed_again(images, tmp_path, content):
    colours, made = Counting(), array_images(images, "made")
    found = cached_features(colours.space, made, tmp_path)
    file = min(tmp_path.iterdir())
    file.write_bytes(content if content is not None else file.read_bytes()[:-4])
    np.testing.assert_array_equal(cached_features(colours.space, made, tmp_path), found)
    assert 10 < colours.seen <= 14


def test_chunks_are_of_a_size_that_fits_the_images(monkeypatch):
    monkeypatch.setattr(feature_cache, "MOST", 512)
    assert [chunk_size(side, side) for side in (64, 256, 1024, 8192)] == [512, 512, 32, 1]
