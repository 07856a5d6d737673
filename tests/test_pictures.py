"""Reading slides and rasters at a physical resolution: levels, rulers, ground, missing data."""

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image
from slide_files import texture, write_raster, write_slide

from ssl_diffusion.data import slides
from ssl_diffusion.data.patches import tissue_patches
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.errors import InputError


def ruler(width: int, height: int, period: float) -> np.ndarray:
    """Vertical stripes, dark for half of every `period` px (which need not be whole)."""
    # Each pixel is the mean of what it covers, as a scanner sees it.
    fine = (np.arange(width * 16) / 16 % period < period / 2).reshape(width, 16).mean(1)
    return np.broadcast_to(255 - 200 * fine[None, :, None], (height, width, 3)).astype(np.uint8)


def period_of(row: np.ndarray) -> float:
    """Pixels from one dark edge to the next, on average."""
    middle = (row.max() + row.min()) / 2
    falls = np.flatnonzero((row[:-1] > middle) & (row[1:] <= middle))
    edges = falls + (row[falls] - middle) / (row[falls] - row[falls + 1])
    return float(np.diff(edges).mean())


@pytest.mark.parametrize("own", [0.2527, 0.25, 0.3, 0.4925, 0.499])
@pytest.mark.parametrize("levels", [1, 3])
def test_a_ruler_keeps_its_size(tmp_path, own, levels):
    """Stripes every 20 µm, scanned at many resolutions, read at 0.5 and at 1.0 µm per pixel."""
    path = write_slide(tmp_path / "ruler.tif", ruler(1600, 300, 20 / own), own, levels)
    for mpp in (0.5, 1.0):
        picture = open_image(path).at(mpp)
        row = picture.read(0, 10, picture.width, 1)[0, :, 0].astype(float)
        assert period_of(row) == pytest.approx(20 / mpp, rel=0.01)


def test_unequal_resolutions_across_and_down(tmp_path):
    stripes = ruler(1600, 1200, 80)
    path = write_slide(tmp_path / "a.tif", stripes.swapaxes(0, 1).copy(), (0.5, 0.25), 1)
    picture = open_image(path).at(0.5)
    assert (picture.width, picture.height) == (1200, 800)
    column = picture.read(5, 0, 1, 800)[:, 0, 0].astype(float)
    assert period_of(column) == pytest.approx(40, rel=0.01)


def test_the_coarsest_level_that_is_fine_enough_is_read(tmp_path):
    pixels = texture(0, 1030, 1027)  # the levels are not whole
    path = write_slide(tmp_path / "a.tif", pixels, 0.25)
    for mpp, level, step in (
        (0.25, None, 1),
        (0.4, 0, 1.6),
        (0.5, 1, 2),
        (0.9, 1, 3.6),
        (4.0, 2, 16),
    ):
        picture = open_image(path).at(mpp)
        assert picture.about.get("level") == level
        assert (picture.width, picture.height) == (int(1027 / step), int(1030 / step))
        found = picture.read(0, 0, picture.width, picture.height)
        box = (0, 0, picture.width * step, picture.height * step)
        expected = Image.fromarray(pixels).resize(
            (picture.width, picture.height), Image.Resampling.LANCZOS, box=box
        )
        assert np.abs(found.astype(int) - np.asarray(expected)).mean() < 2.5
        inside = picture.read(3, 5, 40, 30)
        assert np.abs(inside.astype(int) - found[5:35, 3:43]).max() <= 2  # rounding


def test_a_slide_that_does_not_say_its_resolution(tmp_path):
    path = write_slide(tmp_path / "a.tif", texture(0, 300, 300), None)
    with pytest.raises(InputError, match="a.tif does not say its µm per pixel.*--source_mpp"):
        open_image(path).at(0.5)
    assert open_image(path).at(0.5, 0.25).width == 150


def test_the_resolution_of_a_printer_is_none(tmp_path):
    path = write_slide(tmp_path / "a.tif", texture(0, 300, 300), 25400 / 72)
    picture = open_image(path)
    assert (picture.mpp, picture.mpp_y) == (None, None)
    assert picture.at(0.5, 0.25).width == 150
    assert open_image(write_slide(tmp_path / "b.tif", texture(0, 300, 300), 20)).mpp == 20


def test_levels_that_were_not_made_by_a_whole_factor(tmp_path):
    stripes = ruler(8060, 260, 80)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for level, width in enumerate((8060, 2000)):  # 4.03
            image = Image.fromarray(stripes).resize((width, 260 * width // 8060))
            options = {"tile": (256, 256), "photometric": "rgb", "resolution": (4e4, 4e4)}
            options |= {"resolutionunit": "CENTIMETER", "subfiletype": level, "metadata": None}
            writer.write(np.asarray(image), **options)
    picture = open_image(tmp_path / "a.tif")
    assert picture.downsamples == (1, 4.0625)  # the height: 260 to 64
    whole = write_slide(tmp_path / "b.tif", texture(0, 1030, 1027), 0.25, 5)
    assert open_image(whole).downsamples == (1, 2, 4, 8, 16)


@pytest.mark.parametrize(
    "finest, level, downsample",
    [
        ((100_000, 80_000), (24_814, 19_851), 4.03),
        ((100_003, 80_001), (25_000, 20_000), 4),
        ((100_000, 80_000), (25_001, 20_001), 4),
        ((100_000, 80_000), (24_990, 19_992), 4.0016),
        ((100_000, 80_000), (25_000, 19_900), 4.0201),
        ((1000, 31), (62, 1), 16),
    ],
)
def test_factors_are_whole_where_little_is_missing(finest, level, downsample):
    assert slides._downsample(finest, level) == pytest.approx(downsample, rel=1e-5)


@pytest.mark.parametrize("kind", ["uint16", "int16", "int32", "float32"])
@pytest.mark.parametrize("options", [{}, {"tile": (64, 64)}, {"photometric": "rgb"}])
def test_samples_of_more_than_8_bits_are_refused(tmp_path, kind, options):
    shape = (128, 128, 3) if "photometric" in options else (128, 128)
    tifffile.imwrite(tmp_path / "g16.tif", np.full(shape, 1000, kind), **options)
    with pytest.raises(InputError, match="g16.tif (has samples of more than 8 bits|is no slide)"):
        open_image(tmp_path / "g16.tif")


def test_modes_of_plain_images(tmp_path):
    suffix = {"PA": "tif", "CMYK": "tif", "YCbCr": "jpg"}
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        path = tmp_path / f"{mode}.{suffix.get(mode, 'png')}"
        Image.new("RGB", (64, 64), "white").convert(mode).save(path)
        assert open_image(path).read(0, 0, 64, 64).min() >= 254
    Image.fromarray(np.full((64, 64), 1000, np.uint16)).save(tmp_path / "g16.png")
    with pytest.raises(InputError, match="g16.png has samples of more than 8 bits; convert them"):
        open_image(tmp_path / "g16.png")


def test_a_raster_is_read_on_the_ground(tmp_path):
    pixels = texture(1, 600, 900)
    path = write_raster(tmp_path / "scene.tif", pixels.transpose(2, 0, 1), 15)
    picture = open_image(path)
    assert picture.mpp == pytest.approx(15e6) and picture.about["crs"] == "EPSG:32721"
    np.testing.assert_array_equal(picture.read(100, 200, 300, 250), pixels[200:450, 100:400])
    coarse = picture.at(30e6)
    assert (coarse.width, coarse.height) == (450, 300)
    with pytest.raises(InputError, match="coarser"):
        picture.at(1e7)


def test_overviews_of_a_raster_are_its_levels(tmp_path):
    pixels = texture(1, 640, 960)
    path = write_raster(tmp_path / "scene.tif", pixels.transpose(2, 0, 1), 15)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], rasterio.enums.Resampling.average)
    picture = open_image(path)
    assert picture.downsamples == (1, 2, 4)
    found = picture.at(60e6)
    assert found.about["level"] == 2
    expected = Image.fromarray(pixels).resize((240, 160), Image.Resampling.BOX)
    difference = found.read(0, 0, 240, 160).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 2


def test_bands_and_values_of_a_raster(tmp_path):
    rng = np.random.default_rng(0)
    bands = rng.integers(0, 3000, (5, 300, 300), np.uint16)
    path = write_raster(tmp_path / "scene.tif", bands, 10)
    with pytest.raises(InputError, match=r"samples of uint16; .*--value_range=0,3000"):
        open_image(path)
    with pytest.raises(InputError, match=r"5 bands, expected \[8, 3, 2\]"):
        open_image(path, bands=(8, 3, 2), value_range=(0.0, 3000.0))
    found = open_image(path, bands=(4, 3, 2), value_range=(500.0, 2500.0)).read(0, 0, 300, 300)
    expected = np.clip((bands[[3, 2, 1]].astype(float) - 500) / 2000, 0, 1) * 255
    assert np.abs(found - expected.transpose(1, 2, 0)).max() <= 0.51


@pytest.mark.parametrize(
    "crs, corner, size, metres",
    [
        # A degree of longitude and of latitude at 60 N, 45 N, 0: published lengths on WGS84.
        ("EPSG:4326", (10, 60), 1e-4, (5.5800, 11.1412)),
        ("EPSG:4326", (10, 45), 1e-4, (7.8847, 11.1132)),
        ("EPSG:4326", (10, 0), (1e-4, 2e-4), (11.1319, 22.1149)),
        ("EPSG:3832", (3_339_584.7 - 320, 320), 10, (10, 10)),  # the centre lies at 180 degrees
        # x = R lon and y = R ln tan(45 + lat / 2), for 10 E and 60 N.
        ("EPSG:3857", (1_113_195, 8_399_738), 10, (5.0125, 5.0041)),
        ("EPSG:3395", (1_113_195, 8_362_699), 10, (5.0125, 5.0125)),
        ("EPSG:4087", (1_113_195, 6_679_169), 10, (5.0125, 10.0083)),
        ("EPSG:32721", (500_000, 7_000_000), 10, (10, 10)),
        ("EPSG:2263", (1_000_000, 200_000), 10, (3.048006, 3.048006)),  # feet
    ],
)
def test_pixels_of_rasters_are_measured_on_the_ground(tmp_path, crs, corner, size, metres):
    path = write_raster(tmp_path / "a.tif", np.zeros((3, 64, 64), np.uint8), size, crs, corner)
    picture = open_image(path)
    assert (picture.mpp, picture.mpp_y) == pytest.approx(np.multiply(metres, 1e6), rel=2e-4)


def test_a_raster_says_its_bounds_in_degrees(tmp_path):
    pixels = np.zeros((3, 100, 200), np.uint8)
    path = write_raster(tmp_path / "a.tif", pixels, 1e-3, "EPSG:4326", (10, 60))
    assert open_image(path).about["bounds"] == pytest.approx([10, 59.9, 10.2, 60])
    path = write_raster(tmp_path / "b.tif", pixels, 1000, "EPSG:32660", (700_000, 4_000_000))
    west, south, east, north = open_image(path).about["bounds"]
    assert 179 < west < 180 and -179.5 < east < -178 and 35 < south < north < 36.5


@pytest.mark.parametrize("crs", ["EPSG:4326", "ESRI:104905"])
def test_what_is_not_on_earth_has_no_resolution(tmp_path, crs):
    """Metres that are called degrees, and Mars."""
    corner = (500_000, 7_000_000) if crs == "EPSG:4326" else (10, 60)
    path = write_raster(tmp_path / "a.tif", np.zeros((3, 64, 64), np.uint8), 1, crs, corner)
    picture = open_image(path)
    assert picture.mpp is None and "bounds" not in picture.about


@pytest.mark.parametrize("says", ["the file", "the recipe"])
def test_patches_without_data_are_left_out(tmp_path, says):
    pixels = texture(1, 256, 256).copy()
    pixels[pixels.min(-1) == 0] = 1
    pixels[:, 130:] = 0
    bands = pixels.transpose(2, 0, 1)
    options = {"nodata": 0} if says == "the file" else {}
    path = write_raster(tmp_path / "scene.tif", bands, 30, **options)
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    nodata = None if says == "the file" else 0
    files = [path] if says == "the file" else [path, tmp_path / "scene.png"]
    for file in files:
        picture = open_image(file, nodata=nodata)
        assert {(p.x, p.y) for p in tissue_patches(picture, 64, 64, 0.0)} == {
            (x, y) for x in (0, 64) for y in (0, 64, 128, 192)
        }
        assert len([*tissue_patches(picture, 64, 64, 0.0, max_nodata=0.98)]) == 12
        white = picture.read(192, 0, 64, 64)
        assert white.min() == 255


def test_a_raster_that_ends_too_soon_is_told(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (3, 512, 512), np.uint8)
    path = write_raster(tmp_path / "scene.tif", noise, 30)
    path.write_bytes(path.read_bytes()[:300_000])
    with pytest.raises(InputError, match="scene.tif cannot be read"):
        open_image(path).read(0, 0, 512, 512)
