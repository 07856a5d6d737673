"""Image files: every level and every fact is read back by libraries other than the writer's."""

import json
import os
from pathlib import Path

import numpy as np
import ome_types
import openslide
import pytest
import tifffile
import zarr
from PIL import Image

from ssl_diffusion.errors import InputError
from ssl_diffusion.stitching import output, tiff
from ssl_diffusion.stitching.output import (
    COMPRESSIONS,
    SUFFIXES,
    check_output,
    disk_need,
    write_image,
)
from ssl_diffusion.stitching.pyramid import build_levels, level_sizes

WIDTH, HEIGHT, MPP = 1300, 513, 0.37
DESCRIPTION = {"seed": 7, "model_sha256": "ab12", "settings": {"steps": 50, "tissue": "<µ> & fat"}}


def picture(width: int, height: int) -> np.ndarray:
    """Smooth, as JPEG likes it, and different in every row and column."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 23 + y / 71), np.cos(y / 31), np.sin((x + 2 * y) / 97)]
    return np.stack([127 + 100 * wave for wave in waves], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    """A pyramid in memory-mapped files, its image too."""
    folder = tmp_path_factory.mktemp("levels")
    np.save(folder / "base.npy", picture(WIDTH, HEIGHT))
    return build_levels(np.load(folder / "base.npy", mmap_mode="r"), folder)


@pytest.fixture(scope="module")
def files(levels, tmp_path_factory):
    """(suffix, compression) -> an image in that format."""
    folder = tmp_path_factory.mktemp("files")
    written = {}
    for suffix, compressions in COMPRESSIONS.items():
        for compression in compressions:
            path = written[suffix, compression] = folder / compression / f"image{suffix}"
            write_image(path, levels, mpp=MPP, description=DESCRIPTION, compression=compression)
    return written


# Files


@pytest.mark.parametrize("compression", COMPRESSIONS[".tif"])
def test_openslide_opens_a_tiff_with_all_its_levels(compression, files, levels):
    with openslide.OpenSlide(files[".tif", compression]) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert list(slide.level_dimensions) == level_sizes(WIDTH, HEIGHT)
        np.testing.assert_allclose(slide.level_downsamples, [1, 2, 4], rtol=0.01)
        for axis in "xy":
            assert float(slide.properties[f"openslide.mpp-{axis}"]) == pytest.approx(MPP, rel=1e-6)
        assert json.loads(slide.properties["tiff.ImageDescription"]) == DESCRIPTION
        for number, level in enumerate(levels):
            size = slide.level_dimensions[number]
            found = np.asarray(slide.read_region((0, 0), number, size))
            assert (found[..., 3] == 255).all()
            off = np.abs(found[..., :3].astype(int) - level)
            if compression == "jpeg":
                # To the last row and column: tiles are not filled up with black.
                assert off.mean() < 1.5 and off.max() <= 8
            else:
                assert off.max() == 0


@pytest.mark.parametrize("compression", COMPRESSIONS[".ome.tif"])
def test_ome_tiff_is_valid_and_has_its_levels_as_sub_ifds(compression, files, levels):
    with tifffile.TiffFile(files[".ome.tif", compression]) as file:
        ome_types.validate_xml(file.ome_metadata)
        assert len(file.pages) == 1 and len(file.pages[0].subifds) == 2
        (series,) = file.series
        assert series.axes == "YXS"
        for number, (level, wanted) in enumerate(zip(series.levels, levels, strict=True)):
            page = level.pages[0]
            density = 1e4 / MPP / 2**number  # per cm
            assert page.resolution == pytest.approx((density, density), rel=1e-6)
            assert page.is_tiled and page.subfiletype == (0 if wanted is levels[0] else 1)
            off = np.abs(level.asarray().astype(int) - wanted)
            assert off.mean() < 1.5 and off.max() <= (8 if compression == "jpeg" else 0)
        ome = ome_types.from_xml(file.ome_metadata)
    (image,) = ome.images
    assert image.name == "image.ome.tif"
    assert image.pixels.physical_size_x == image.pixels.physical_size_y == MPP
    assert image.pixels.physical_size_x_unit.value == "µm"
    (said,) = ome.structured_annotations.map_annotations
    said = {item.k: item.value for item in said.value.ms}
    assert said["model_sha256"] == "ab12" and said["seed"] == "7"
    assert json.loads(said["settings"]) == DESCRIPTION["settings"]


def test_ome_zarr_has_its_levels_and_where_they_lie(files, levels):
    group = zarr.open_group(files[".zarr", "zstd"], mode="r")
    assert group.metadata.zarr_format == 3
    assert group.attrs["description"] == DESCRIPTION
    ome = group.attrs["ome"]
    assert ome["version"] == "0.5" and len(ome["omero"]["channels"]) == 3
    (multiscale,) = ome["multiscales"]
    space = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    assert multiscale["axes"] == [{"name": "c", "type": "channel"}, *space]
    for number, (dataset, level) in enumerate(zip(multiscale["datasets"], levels, strict=True)):
        array = group[dataset["path"]]
        assert array.metadata.dimension_names == ("c", "y", "x")
        np.testing.assert_array_equal(np.moveaxis(array[:], 0, -1), level)
        scale, translation = dataset["coordinateTransformations"]
        assert scale == {"type": "scale", "scale": [1.0, MPP * 2**number, MPP * 2**number]}
        # The first pixel's centre is that of the pixels it averages: 0.5 and 1.5 of them in.
        shift = [0, 0.5, 1.5][number] * MPP
        np.testing.assert_allclose(translation["translation"], [0, shift, shift])


def test_ome_zarr_is_the_same_whatever_its_pieces(files, levels, tmp_path, monkeypatch):
    monkeypatch.setattr("ssl_diffusion.stitching.ome_zarr.CHUNK", 128)
    monkeypatch.setattr("ssl_diffusion.stitching.ome_zarr.PIECE", 384)
    write_image(tmp_path / "a.zarr", levels, mpp=MPP, description=DESCRIPTION)
    whole, parts = zarr.open_group(files[".zarr", "zstd"]), zarr.open_group(tmp_path / "a.zarr")
    for number in "012":
        assert parts[number].chunks == (3, 128, 128)
        np.testing.assert_array_equal(parts[number][:], whole[number][:])


def test_png_is_exact_and_says_its_resolution(files, levels):
    with Image.open(files[".png", "deflate"]) as image:
        np.testing.assert_array_equal(np.asarray(image), levels[0])
        assert json.loads(image.text["Description"]) == DESCRIPTION
        assert image.info["dpi"] == pytest.approx((25400 / MPP,) * 2, rel=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_resolution_that_is_unknown_is_not_made_up(suffix, tmp_path):
    path = tmp_path / f"small{suffix}"
    write_image(path, build_levels(picture(90, 70), None), mpp=None, description={})
    if suffix == ".zarr":
        axes = zarr.open_group(path, mode="r").attrs["ome"]["multiscales"][0]["axes"]
        assert all("unit" not in axis for axis in axes)
    elif suffix == ".png":
        assert "dpi" not in Image.open(path).info
    else:
        assert openslide.PROPERTY_NAME_MPP_X not in openslide.OpenSlide(path).properties
    if suffix == ".ome.tif":
        xml = tifffile.TiffFile(path).ome_metadata
        ome_types.validate_xml(xml)
        assert "PhysicalSize" not in xml


def test_tiff_grows_64_bit_offsets_when_it_could_need_them(levels, tmp_path, monkeypatch):
    need = disk_need(Path("a.tif"), WIDTH, HEIGHT, "jpeg")
    for limit, big in [(need, False), (need - 1, True)]:
        monkeypatch.setattr(tiff, "CLASSIC_TIFF", limit)
        write_image(tmp_path / "a.tif", levels, mpp=MPP, description={})
        assert tifffile.TiffFile(tmp_path / "a.tif").is_bigtiff == big
        with openslide.OpenSlide(tmp_path / "a.tif") as slide:
            assert slide.level_count == 3


@pytest.mark.parametrize("noise", ["uniform", "black and white"])
@pytest.mark.parametrize(
    ("suffix", "compression"), [(s, c) for s in SUFFIXES for c in COMPRESSIONS[s]]
)
def test_no_file_is_larger_than_announced(noise, suffix, compression, tmp_path):
    draws = np.random.default_rng(0).integers(0, 256, (520, 700, 3), np.uint8)
    levels = build_levels(draws if noise == "uniform" else draws // 128 * 255, None)
    path = tmp_path / f"noise{suffix}"
    write_image(path, levels, mpp=MPP, description=DESCRIPTION, compression=compression)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size, need = sum(file.stat().st_size for file in files), disk_need(path, 700, 520, compression)
    assert size <= need
    if noise == "uniform":  # and the announcement is not beyond reason
        assert need < 3 * size


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_crash_leaves_nothing_and_the_older_file_whole(suffix, levels, tmp_path, monkeypatch):
    path = tmp_path / f"image{suffix}"

    def crash(bands):
        yield from bands[:4]
        raise RuntimeError("killed")

    def crash_png(image, file, **_):
        file.write_bytes(b"half")
        raise RuntimeError("killed")

    def write():
        write_image(path, levels, mpp=MPP, description={"new": 1}, progress=crash)

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", crash_png)
        patched.setattr("ssl_diffusion.stitching.ome_zarr.CHUNK", 128)
        with pytest.raises(RuntimeError, match="killed"):
            write()
        assert os.listdir(tmp_path) == []

    def content():
        files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
        return {file: file.read_bytes() for file in files}

    write_image(path, levels, mpp=MPP, description={"old": 1})
    before = content()
    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", crash_png)
        patched.setattr("ssl_diffusion.stitching.ome_zarr.CHUNK", 128)
        with pytest.raises(RuntimeError, match="killed"):
            write()
    assert content() == before
    write_image(path, levels, mpp=MPP, description={"new": 1})
    assert os.listdir(tmp_path) == [path.name] and content() != before


def test_progress_sees_every_band(levels, tmp_path):
    seen = []

    def progress(bands):
        seen.append(len(bands))
        yield from bands
        seen.append("end")

    build_levels(levels[0], tmp_path, progress)
    write_image(tmp_path / "a.tif", levels, mpp=1.0, description={}, progress=progress)
    write_image(tmp_path / "a.zarr", levels, mpp=1.0, description={}, progress=progress)
    assert seen == [2, "end", 3 + 2 + 1, "end", 3, "end"]


# What cannot be written


def check(path, width=600, height=400, overwrite=False, compression=None):
    check_output(path, width, height, overwrite=overwrite, compression=compression)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_can_be_written_passes_and_nothing_is_made(suffix, tmp_path):
    check(tmp_path / "new" / "folder" / f"a{suffix}")
    assert os.listdir(tmp_path) == []
    write_image(tmp_path / f"a{suffix}", [picture(9, 9)], mpp=None, description={})
    check(tmp_path / f"a{suffix}", overwrite=True)
    with pytest.raises(InputError, match="exists already; give --overwrite or another name"):
        check(tmp_path / f"a{suffix}")


def test_formats_and_compressions_that_there_are_not(tmp_path):
    levels = [picture(9, 9)]
    for name in ("a.jpg", "a.tiff", "a"):
        with pytest.raises(InputError, match=r"none of \.tif, \.ome\.tif, \.zarr, \.png;"):
            check(tmp_path / name)
        with pytest.raises(InputError, match="in none of"):
            write_image(tmp_path / name, levels, mpp=None, description={})
    for suffix, compression in [(".png", "jpeg"), (".zarr", "deflate"), (".tif", "lzw")]:
        path, message = (
            tmp_path / f"a{suffix}",
            f"{compression} compression of a {suffix}; expected",
        )
        with pytest.raises(InputError, match=message):
            check(path, compression=compression)
        with pytest.raises(InputError, match=message):
            write_image(path, levels, mpp=None, description={}, compression=compression)
    assert os.listdir(tmp_path) == []


def test_a_png_is_no_larger_than_pillow_opens(tmp_path):
    assert output.PNG_PIXELS <= 2 * (2**30 // 12)  # twice Image.MAX_IMAGE_PIXELS as it comes
    check(tmp_path / "a.png", 13_000, 13_000)
    with pytest.raises(InputError, match="PNG of 14000x13000 px.*name the file .tif"):
        check(tmp_path / "a.png", 14_000, 13_000)
    check(tmp_path / "a.tif", 140_000, 130_000)


def test_places_where_no_image_can_be(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "file.zarr").write_text("")
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "thesis.txt").write_text("")
    for name, message in {
        "file/a.tif": "file is a file; give another folder",
        "file/b/c/a.tif": "file is a file; give another folder",
        "file.zarr": "is a file, a .zarr is a folder",
        "folder.tif": "is a folder; name a file in it",
        "mine.zarr": "of something else than Zarr",
        "/proc/a.tif": "nothing can be written to /proc",
    }.items():
        for overwrite in (False, True):
            with pytest.raises(InputError, match=message):
                check(tmp_path / name, overwrite=overwrite)
    (tmp_path / "empty.zarr").mkdir()
    check(tmp_path / "empty.zarr", overwrite=True)
