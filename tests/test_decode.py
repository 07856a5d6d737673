"""From a latent canvas to pixels: bands of blended tiles equal the whole, within bounded memory."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from ssl_diffusion.errors import InputError
from ssl_diffusion.pixels import to_uint8
from ssl_diffusion.stitching.decode import Tiling, decode_bands, decode_canvas, patch_tiling
from ssl_diffusion.stitching.windows import blend_weights, ramps, window_origins

FACTOR = 2


def pixel_decode(latent):
    """Each latent pixel becomes a block of three different affine images of it."""
    # In NumPy: nothing to compile for the many shapes of these tests.
    pixels = np.asarray(latent)[..., :1].repeat(FACTOR, axis=1).repeat(FACTOR, axis=2)
    return pixels * np.float32([1.0, -0.5, 0.25]) + np.float32([0.0, 0.1, -0.2])


def tile_decode(latent):
    """Normalises each tile, as a decoder with GroupNorm: its neighbours disagree."""
    latent = np.asarray(latent)
    mean = latent.mean((1, 2), keepdims=True)
    return pixel_decode(0.5 * (latent - mean) / latent.std((1, 2), keepdims=True) + mean)


class Recorded(np.ndarray):
    """A canvas that keeps the size of the largest part read."""

    largest = 0

    def __getitem__(self, index):
        part = np.asarray(super().__getitem__(index))
        Recorded.largest = max(Recorded.largest, part.size)
        return part


def canvas(height, width):
    uniform = np.random.default_rng(0).uniform(-1.2, 1.2, (height, width, 2))
    return uniform.astype(np.float32)


def off_by(image, expected):
    """Fraction of values that differ; blended sums round, so one level may be between them."""
    difference = np.abs(image.astype(int) - expected)
    assert difference.max() <= 1
    return (difference > 0).mean()


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [(40, 16, 4), (41, 16, 9), (17, 16, 0), (9, 9, 3)]
)
def test_blend_weights_sum_to_one(size, tile, overlap):
    origins = window_origins(size, tile, tile - overlap)
    total = np.zeros(size)
    for origin, weights in zip(origins, blend_weights(origins, ramps(tile, overlap)), strict=True):
        assert (weights > 0).all()
        total[origin : origin + tile] += weights
    np.testing.assert_allclose(total, 1, atol=1e-12)


def test_blend_weights_ramp_linearly_over_the_overlap():
    first, second = blend_weights(np.array([0, 6]), ramps(10, 4))
    np.testing.assert_allclose(first, [1] * 6 + [7 / 8, 5 / 8, 3 / 8, 1 / 8])
    np.testing.assert_allclose(second[:4], [1 / 8, 3 / 8, 5 / 8, 7 / 8])


@pytest.mark.parametrize(
    ("height", "width", "tiling", "tile_batch"),
    [(23, 40, (16, 5), 1), (30, 8, (12, 11), 1), (41, 37, (8, 6), 3), (33, 20, (16, 0), 9)],
)
def test_a_decode_pixel_by_pixel_is_exact_under_any_tiling(height, width, tiling, tile_batch):
    latent = canvas(height, width)
    bands = decode_bands(pixel_decode, latent, FACTOR, Tiling(*tiling), tile_batch=tile_batch)
    tiled = np.concatenate([rows for _, rows in bands])
    assert tiled.shape == (FACTOR * height, FACTOR * width, 3)
    assert off_by(tiled, to_uint8(pixel_decode(latent[None])[0])) < 1e-3


def test_tiles_are_blended_linearly_over_their_overlap():
    latent, tiling = canvas(23, 37), Tiling(8, 3)
    total = np.zeros((46, 74, 3))
    for (y, weight_y), (x, weight_x) in itertools.product(
        *(
            zip(origins, blend_weights(FACTOR * origins, ramps(16, 6)), strict=True)
            for origins in (window_origins(size, 8, 5) for size in (23, 37))
        )
    ):
        tile = np.asarray(tile_decode(latent[None, y : y + 8, x : x + 8]))[0]
        part = total[FACTOR * y : FACTOR * y + 16, FACTOR * x : FACTOR * x + 16]
        part += np.outer(weight_y, weight_x)[..., None] * tile
    image = decode_canvas(tile_decode, latent, FACTOR, tiling)
    assert off_by(image, to_uint8(total)) < 1e-3
    # Not what the whole canvas gives at once: the statistics are each tile's own.
    assert np.abs(image.astype(int) - to_uint8(tile_decode(latent[None])[0])).mean() > 1


@pytest.mark.parametrize("tiling", [Tiling(8, 3), Tiling(8, 6), Tiling(8, 0), Tiling(64, 8)])
def test_bands_follow_each_other_and_decoding_goes_on_at_any_bit_for_bit(tiling):
    calls = []

    def decode(latent):
        calls.append(len(latent))
        return tile_decode(latent)

    latent = canvas(29, 21)
    bands = list(decode_bands(decode, latent, FACTOR, tiling, tile_batch=2))
    whole = np.concatenate([rows for _, rows in bands])
    assert whole.shape == (58, 42, 3) and whole.dtype == np.uint8
    np.testing.assert_array_equal(
        [first for first, _ in bands], np.cumsum([0] + [len(rows) for _, rows in bands[:-1]])
    )
    assert all(0 < len(rows) <= FACTOR * tiling.tile for _, rows in bands)
    every = len(calls)
    for index, (first_row, _) in enumerate(bands):
        calls.clear()
        rest = list(decode_bands(decode, latent, FACTOR, tiling, first_row=first_row, tile_batch=2))
        assert [first for first, _ in rest] == [first for first, _ in bands[index:]]
        np.testing.assert_array_equal(np.concatenate([r for _, r in rest]), whole[first_row:])
        # Of the rows of tiles above, those that reach into this one.
        above = sum(first + FACTOR * tiling.tile <= first_row for first, _ in bands)
        assert len(calls) == every * (len(bands) - above) // len(bands)
    calls.clear()
    assert not list(decode_bands(decode, latent, FACTOR, tiling, first_row=58)) and not calls


def test_memory_is_bounded_by_a_row_of_tiles_whatever_the_height(tmp_path):
    shapes, tile, width = set(), 8, 30
    whole = canvas(400, width)
    np.save(tmp_path / "canvas.npy", whole)
    latent = np.load(tmp_path / "canvas.npy", mmap_mode="r").view(Recorded)

    def decode(codes):
        shapes.add(codes.shape)
        return tile_decode(codes)

    largest = 0
    for _, rows in decode_bands(decode, latent, FACTOR, Tiling(tile, 2), tile_batch=3):
        largest = max(largest, len(rows))
    assert shapes == {(3, tile, tile, 2)}  # five tiles a row: the second three are filled up
    assert Recorded.largest == tile * tile * 2
    assert largest == FACTOR * tile  # the last band, which ends with its tiles


def test_a_canvas_that_fits_is_decoded_once_and_tiles_share_one_shape():
    shapes = []

    def decode(latent):
        shapes.append(latent.shape)
        return pixel_decode(latent)

    latent = jnp.zeros((20, 33, 2))
    decode_canvas(decode, latent, FACTOR, Tiling(64, 8))
    assert shapes == [(1, 20, 33, 2)]
    shapes.clear()
    decode_canvas(decode, latent, FACTOR, Tiling(24, 8))
    assert shapes == [(1, 20, 24, 2)] * 2


def test_a_profile_weighs_the_pixels_of_a_tile():
    constant = lambda latent: np.full((1, 16, 16, 3), latent[0, 0, 0, 0])  # noqa: E731
    latent = np.zeros((8, 12, 1), np.float32)
    latent[:, 4:] = 1.0
    image = decode_canvas(
        constant, latent, FACTOR, Tiling(8, 4), profile=lambda size: np.linspace(1, 16, size)
    )
    weight = np.arange(1, 9) / (np.arange(1, 9) + np.arange(9, 17))  # of the second in the overlap
    expected = np.concatenate([np.zeros(8), weight, np.ones(8)])
    np.testing.assert_allclose(image[3, :, 0], 127.5 + 127.5 * expected, atol=0.51)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tiling": Tiling(24, 24)}, "overlap 24 of decoded tiles; expected 0 to 23"),
        ({"tiling": Tiling(8, -1)}, "overlap -1 of decoded tiles; expected 0 to 7"),
        ({"tile_batch": 0}, "tile batch 0; expected at least 1"),
        ({"first_row": 9}, "row 9; expected the first row of a band of 10 px, or 40, the end"),
        ({"first_row": -10}, "cannot go on at row -10"),
        ({"first_row": 50}, "cannot go on at row 50"),
    ],
)
def test_what_cannot_be_decoded_is_refused_at_the_call(settings, message):
    with pytest.raises(InputError, match=message):
        decode_bands(pixel_decode, canvas(20, 20), FACTOR, **{"tiling": Tiling(8, 3)} | settings)


def test_tiles_are_as_large_as_a_patch_and_overlap_by_a_quarter():
    assert patch_tiling(16) == Tiling(16, 4) and patch_tiling(3) == Tiling(3, 0)


def test_to_uint8_rounds_and_clips():
    values = np.array([[-3.0, -1.0, -0.996], [0.0, 1.0, 9.0]], np.float32)
    np.testing.assert_array_equal(to_uint8(values), [[0, 0, 1], [128, 255, 255]])
