"""Sets of images: what they hold, in which order, and what is refused."""

import logging

import numpy as np
import pytest
from PIL import Image

from ssl_diffusion import demo
from ssl_diffusion.data.records import open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.image_sets import (
    array_images,
    folder_images,
    large_image_patches,
    read_image,
    record_images,
)
from ssl_diffusion.evaluation.inputs import open_images


def noise(count=5, height=12, width=10):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def whole(images, size=256):
    return np.concatenate(list(images.chunks(size)))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "samples [1] ü"
    for index, image in enumerate(noise()):
        file = folder / ("b" if index else "a") / f"{index:02d} #%.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return folder


def test_folders_records_and_arrays_of_the_same_pixels_have_one_digest(folder):
    images, array = folder_images(folder, "samples"), array_images(noise(), "made")
    assert images.settings["sha256"] is None
    np.testing.assert_array_equal(whole(images, size=2), noise())
    np.testing.assert_array_equal(whole(array, size=3), noise())
    np.testing.assert_array_equal(images[3], noise()[3])
    assert images.settings == {
        "name": "samples",
        "count": 5,
        "height": 12,
        "width": 10,
        "sha256": array.settings["sha256"],
        "kind": "folder",
        "path": "samples [1] ü",
        "format": {"PNG": 5},
    }
    other = array_images(noise()[::-1].copy(), "turned")
    whole(other)
    assert other.settings["sha256"] != array.settings["sha256"]


def test_records_are_read_in_their_order(records_dir):
    records = open_records(records_dir)
    images = record_images(records, "test")
    source = records.source("test", ("image",))
    assert len(images) == len(source) and images.size == (64, 64)
    np.testing.assert_array_equal(whole(images), np.concatenate(list(source.chunks("image"))))
    assert images.settings["format"] == {"format": "PNG"} and images.settings["split"] == "test"
    with pytest.raises(InputError, match="none of 'val' to read"):
        record_images(records, "val")


def test_a_slide_is_cut_as_its_records_were(records_dir):
    """At their stride of one patch, records hold every patch of tissue that the slide has."""
    records, slide = open_records(records_dir), demo.resolve(demo.SLIDE)
    recipe = records.metadata["recipe"]
    patches = open_images(slide, 64, recipe)
    assert len(patches) == records.count("train") + records.count("test")
    assert patches.settings["no_tissue"] > 0
    # At half the resolution the image has half the side.
    coarse = open_images(slide, 64, recipe | {"mpp": 2 * records.metadata["mpp"]})
    whole = patches.settings["image_px"]
    np.testing.assert_allclose(coarse.settings["image_px"], np.divide(whole, 2), atol=5)


def test_what_has_no_data_is_left_out(tmp_path):
    pixels = noise(1, 40, 40)[0]
    pixels[:20, :20] = 7
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert len(large_image_patches(tmp_path / "x.png", 20, 20)) == 4
    assert len(large_image_patches(tmp_path / "x.png", 20, 20, {"nodata": 7})) == 3


def test_what_is_no_image_is_left_out_and_links_are_followed(folder, tmp_path, caplog):
    (folder / "samples.json").write_text("{}")
    (folder / "._00.png").touch()
    (tmp_path / "linked").mkdir()
    Image.fromarray(noise()[0]).save(tmp_path / "linked" / "x.jpg", quality=95)
    (folder / "c").symlink_to(tmp_path / "linked")
    (tmp_path / "linked" / "up").symlink_to(folder)
    with caplog.at_level(logging.INFO):
        images = folder_images(folder, "samples")
    assert len(images) == 6 and images.settings["format"] == {"PNG": 5, "JPEG": 1}
    assert "2 files that are no images by their names: ._00.png, samples.json" in caplog.text


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_every_kind_of_colour_becomes_rgb(mode, tmp_path):
    image = Image.fromarray(noise()[0]).convert(mode)
    file = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(file)
    found = read_image(file)
    assert found.shape == (12, 10, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


def test_what_is_transparent_lies_on_white(tmp_path):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = 10, 20, 30, 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    expected = np.full((2, 2, 3), 255)
    expected[0, 0] = 10, 20, 30
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), expected)


def test_folders_that_are_no_set_of_images_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"has no images \(1 other files\); expected some of .png"):
        folder_images(tmp_path / "empty", "samples")
    with pytest.raises(InputError, match="nowhere does not exist; give a folder of images"):
        folder_images(tmp_path / "nowhere", "samples")
    with pytest.raises(InputError, match="notes.txt is no folder"):
        folder_images(tmp_path / "empty" / "notes.txt", "samples")
    with pytest.raises(
        InputError, match="made: images of shape .0, 8, 8, 3., expected one or more"
    ):
        array_images(np.zeros((0, 8, 8, 3), np.uint8), "made")
    Image.fromarray(noise(1, 7, 9)[0]).save(folder / "b" / "z.png")
    with pytest.raises(InputError, match="b/z.png has 9x7 px, a/00 #%.png has 10x12 px; expected"):
        folder_images(folder, "samples")


def test_images_that_cannot_be_read_are_named(folder):
    file = folder / "b" / "03 #%.png"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    images = folder_images(folder, "samples")
    chunks = images.chunks(2)
    np.testing.assert_array_equal(next(chunks), noise()[:2])
    with pytest.raises(InputError, match="03 #%.png cannot be read .* take it out of the folder"):
        next(chunks)
    file.write_bytes(b"no image")
    with pytest.raises(InputError, match="03 #%.png cannot be read"):
        folder_images(folder, "samples")
    Image.fromarray(np.full((12, 10), 40_000, np.uint16)).save(file)
    with pytest.raises(InputError, match="03 #%.png has samples of more than 8 bits"):
        folder_images(folder, "samples")


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_patches_of_one_large_image_lie_on_a_grid(name, tmp_path):
    pixels = noise(1, 50, 70)[0]
    Image.fromarray(pixels).save(tmp_path / name)
    patches = large_image_patches(tmp_path / name, 20, 15)
    expected = [pixels[y : y + 20, x : x + 20] for y in (0, 15, 30) for x in (0, 15, 30, 45)]
    assert len(patches) == 12
    for size in (1, 5, 256):
        np.testing.assert_array_equal(whole(patches, size), expected)
    np.testing.assert_array_equal(patches[-1], expected[-1])
    assert patches.settings["image_px"] == [70, 50] and patches.settings["stride_px"] == 15
    with pytest.raises(InputError, match="70x50 px, less than one patch of 64 px"):
        large_image_patches(tmp_path / name, 64, 64)
    (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(InputError, match="no slide that OpenSlide reads and no image"):
        large_image_patches(tmp_path / name, 20, 20)
