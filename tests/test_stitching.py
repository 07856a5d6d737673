"""From a patch model to a large image: invariants of consensus, decoding, the whole image."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.tree_util import Partial

from ssl_diffusion.diffusion.denoiser import make_denoiser
from ssl_diffusion.diffusion.prediction import to_prediction
from ssl_diffusion.diffusion.schedule import Schedule, make_schedule
from ssl_diffusion.diffusion.solvers import ddim, trailing_timesteps
from ssl_diffusion.errors import InputError
from ssl_diffusion.pixels import to_uint8
from ssl_diffusion.stitching.consensus import stitched_denoiser
from ssl_diffusion.stitching.decode import decode_canvas
from ssl_diffusion.stitching.large_image import stitch
from ssl_diffusion.stitching.published import (
    decode_windows,
    keyed_draws,
    published_eta,
    published_image,
    published_latent,
)
from ssl_diffusion.stitching.reference import embed_region, load_grid, save_grid
from ssl_diffusion.stitching.windows import blend_weights, ramps, window_origins

SCHEDULE = make_schedule("cosine")
WINDOW, CHANNELS, WIDTH = 8, 2, 3
NULL = jnp.zeros((1, WIDTH))


def mixing_network(params, x, timestep, context):
    """Every output pixel sees the whole window, its position, the time and the context."""
    b, h, w, c = x.shape
    flat = jnp.tanh(x.reshape(b, -1) @ params["mix"])
    shift = (context.sum(1) @ params["context"]) + timestep[:, None] / 1000
    return (flat + jnp.tile(shift, h * w)).reshape(x.shape)


def mixing_denoiser(guidance=2.0):
    size = WINDOW * WINDOW * CHANNELS
    keys = jax.random.split(jax.random.key(7))
    params = {
        "mix": jax.random.normal(keys[0], (size, size)) / size**0.5,
        "context": jax.random.normal(keys[1], (WIDTH, CHANNELS)),
    }
    return make_denoiser(mixing_network, params, SCHEDULE, "v", NULL, guidance)


def run(denoise, height, width, stride, window_batch, context=None, steps=5, key=0):
    origins_y = window_origins(height, WINDOW, stride)
    origins_x = window_origins(width, WINDOW, stride)
    stitched = stitched_denoiser(denoise, SCHEDULE, origins_y, origins_x, WINDOW, window_batch)
    windows = len(origins_y) * len(origins_x)
    if context is None:
        context = jax.random.normal(jax.random.key(5), (windows, 1, WIDTH))
    noise = jax.random.normal(jax.random.key(key), (1, height, width, CHANNELS))
    return ddim(stitched, SCHEDULE, noise, context, timesteps=trailing_timesteps(1000, steps))


# Consensus


@pytest.mark.parametrize("window_batch", [1, 4])
def test_one_window_is_the_plain_sampler(window_batch):
    denoise, context = mixing_denoiser(), jnp.ones((1, 1, WIDTH))
    noise = jax.random.normal(jax.random.key(0), (1, WINDOW, WINDOW, CHANNELS))
    plain = ddim(denoise, SCHEDULE, noise, context, timesteps=trailing_timesteps(1000, 10))
    stitched = run(denoise, WINDOW, WINDOW, 4, window_batch, context, steps=10)
    # Not bit for bit: eps is recomputed from x0. A few float32 roundings of values around 1.
    np.testing.assert_allclose(stitched, plain, atol=2e-6)


def test_non_overlapping_windows_are_so_many_plain_samplers():
    denoise = mixing_denoiser()
    context = jax.random.normal(jax.random.key(5), (6, 1, WIDTH))
    canvas = run(denoise, 2 * WINDOW, 3 * WINDOW, WINDOW, 4, context)
    noise = jax.random.normal(jax.random.key(0), canvas.shape)
    for row in range(2):
        for col in range(3):
            here = (slice(None), slice(row * 8, row * 8 + 8), slice(col * 8, col * 8 + 8))
            own = context[row * 3 + col][None]
            alone = ddim(denoise, SCHEDULE, noise[here], own, timesteps=trailing_timesteps(1000, 5))
            np.testing.assert_allclose(canvas[here], alone, atol=3e-6)


def test_a_denoiser_blind_to_its_input_leaves_no_seam():
    def blind(schedule, x, timestep, context):
        return to_prediction("x0", jnp.full_like(x, 0.37), x, *schedule.at(timestep))

    canvas = run(Partial(blind, SCHEDULE), 29, 21, 3, 4)
    assert np.abs(canvas - 0.37).max() < 1e-6


def test_consensus_is_the_weighted_average_of_the_windows_over_each_pixel():
    def says_its_context(schedule, x, timestep, context):
        x0 = jnp.broadcast_to(context[:, :1, :1, None], x.shape)
        return to_prediction("x0", x0, x, *schedule.at(timestep))

    origins = np.array([0, 3, 7])
    denoise = Partial(says_its_context, SCHEDULE)
    stitched = stitched_denoiser(denoise, SCHEDULE, origins, origins, 8, 4)
    values = np.random.default_rng(0).normal(size=9).astype(np.float32)
    canvas = jax.random.normal(jax.random.key(0), (1, 15, 15, CHANNELS))
    found = stitched(canvas, jnp.array([500.0]), jnp.tile(values[:, None, None], (1, 1, WIDTH)))
    pyramid = np.minimum(np.arange(8), np.arange(8)[::-1]) + 0.5
    expected, total = np.zeros((15, 15)), np.zeros((15, 15))
    for value, (y, x) in zip(values, [(y, x) for y in origins for x in origins], strict=True):
        expected[y : y + 8, x : x + 8] += value * np.outer(pyramid, pyramid)
        total[y : y + 8, x : x + 8] += np.outer(pyramid, pyramid)
    np.testing.assert_allclose(found.x0[0, :, :, 1], expected / total, atol=1e-6)
    alpha, sigma = SCHEDULE.at(jnp.array([500.0]))
    np.testing.assert_allclose(alpha * found.x0 + sigma * found.eps, canvas, atol=1e-6)


def test_window_batch_changes_the_image_by_rounding_only():
    images = [run(mixing_denoiser(), 26, 19, 3, batch) for batch in (1, 7, 1000)]
    # Measured 1e-6: matrix products round differently at another batch size, the rest is the same.
    np.testing.assert_allclose(images[1], images[0], atol=1e-5)
    np.testing.assert_allclose(images[2], images[0], atol=1e-5)


def test_windows_are_denoised_in_chunks_of_one_bounded_size():
    sizes = []

    def apply(params, x, timestep, context):
        sizes.append(x.shape[0])
        return x

    run(make_denoiser(apply, {}, SCHEDULE, "v", NULL, 1.0), 40, 40, 4, 7)
    assert set(sizes) == {7}


def test_consensus_refuses_other_than_one_context_a_window():
    with pytest.raises(InputError, match="3 contexts for 4 windows"):
        run(mixing_denoiser(), 16, 16, 8, 2, jnp.zeros((3, 1, WIDTH)))
    with pytest.raises(InputError, match="window batch 0"):
        run(mixing_denoiser(), 16, 16, 8, 0)


# Decode


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


def linear_decode(latent):
    """Each latent pixel becomes a factor 2 block of three different affine images of it."""
    pixels = jnp.repeat(jnp.repeat(latent[..., :1], 2, axis=1), 2, axis=2)
    return pixels * jnp.array([1.0, -0.5, 0.25]) + jnp.array([0.0, 0.1, -0.2])


@pytest.mark.parametrize(("height", "width", "tile", "overlap"), [(23, 40, 16, 5), (30, 8, 12, 11)])
def test_a_decode_pixel_by_pixel_is_exact_under_tiling(height, width, tile, overlap):
    latent = jax.random.uniform(jax.random.key(0), (height, width, 2), minval=-1.2, maxval=1.2)
    whole = to_uint8(linear_decode(latent[None])[0])
    tiled = decode_canvas(linear_decode, latent, 2, tile, overlap)
    assert tiled.shape == (2 * height, 2 * width, 3)
    # Blended sums round: a value half-way between two levels may fall to either.
    difference = np.abs(tiled.astype(int) - whole)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_a_canvas_that_fits_is_decoded_once_and_tiles_share_one_shape():
    shapes = []

    def decode(latent):
        shapes.append(latent.shape)
        return linear_decode(latent)

    latent = jnp.zeros((20, 33, 2))
    decode_canvas(decode, latent, 2, 64, 8)
    assert shapes == [(1, 20, 33, 2)]
    shapes.clear()
    decode_canvas(decode, latent, 2, 24, 8)
    assert shapes == [(1, 20, 24, 2)] * 2
    with pytest.raises(InputError, match="overlap 24"):
        decode_canvas(decode, latent, 2, 24, 24)


def test_to_uint8_rounds_and_clips():
    values = np.array([[-3.0, -1.0, -0.996], [0.0, 1.0, 9.0]], np.float32)
    np.testing.assert_array_equal(to_uint8(values), [[0, 0, 1], [128, 255, 255]])


# The whole


@dataclasses.dataclass
class ToyModel:
    """Patch 16 px, factor 2, so a window of 8."""

    spec: dict
    patch_px: int = 16
    factor: int = 2
    latent_channels: int = CHANNELS
    schedule: Schedule = SCHEDULE

    def denoiser(self, guidance):
        return mixing_denoiser(guidance)

    def context(self, embedding):
        return embedding[..., :WIDTH]

    def decode(self, latent):
        return linear_decode(0.2 * latent)  # most of it inside [-1, 1]


TOKENS, DIM = 2, 4
MODEL = ToyModel({"embedding": {"tokens": TOKENS, "dim": DIM}})
make_large = partial(
    stitch, MODEL, steps=3, guidance=2.0, stride=3, window_batch=4, key=jax.random.key(0)
)


def random_grid(rows, cols):
    return np.random.default_rng(0).normal(size=(rows, cols, TOKENS, DIM)).astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 33), (31, 48), (16, 50)])
def test_any_size_from_one_patch_on(height, width):
    image = make_large(random_grid(-(-height // 16), -(-width // 16)), height, width)
    assert image.shape == (height, width, 3) and image.dtype == np.uint8
    assert image.std() > 1


def test_the_same_seed_gives_the_same_image_and_another_another():
    grid = random_grid(2, 2)
    first = make_large(grid, 32, 32)
    np.testing.assert_array_equal(first, make_large(grid, 32, 32))
    assert (first != make_large(grid, 32, 32, key=jax.random.key(1))).mean() > 0.5


def test_an_embedding_acts_where_its_cell_lies():
    grid = random_grid(2, 3)
    changed = grid.copy()
    changed[0, 2] += 1.0  # top right
    kwargs = {"steps": 3, "guidance": 1.0, "stride": 8}
    images = [make_large(g, 32, 48, **kwargs).astype(int) for g in (grid, changed)]
    difference = np.abs(images[0] - images[1]).mean(2)
    assert difference[:16, 32:].mean() > 1
    difference[:16, 32:] = 0
    assert difference.max() == 0


@pytest.mark.parametrize(
    ("grid", "size", "settings", "message"),
    [
        (random_grid(2, 2), (32, 15), {}, "15x32 px; expected at least one patch"),
        (random_grid(2, 2), (32, 33), {}, "2 rows and 2 columns.*expected 2 rows and 3 columns"),
        (random_grid(2, 2)[..., :3], (32, 32), {}, r"\[2, 2, 2, 3\].*\[rows, cols, 2, 4\]"),
        (random_grid(2, 2)[:, :, :1], (32, 32), {}, r"\[2, 2, 1, 4\]"),
        (random_grid(2, 2)[0], (32, 32), {}, r"\[2, 2, 4\]"),
        (random_grid(2, 2) * np.float32("nan"), (32, 32), {}, "NaN or infinity in 4 cells"),
        (random_grid(2, 2).astype(int), (32, 32), {}, "grid of int64"),
        (random_grid(2, 2), (32, 32), {"stride": 9}, "stride 9; expected 1 to 8"),
        (random_grid(2, 2), (32, 32), {"steps": 1001}, "1001 sampling steps"),
        (random_grid(2, 2), (32, 32), {"guidance": -1.0}, "guidance -1.0"),
        (random_grid(2, 2), (32, 32), {"window_batch": 0}, "window batch 0"),
    ],
)
def test_what_cannot_be_stitched_is_refused_before_the_model_runs(grid, size, settings, message):
    class Untouched(ToyModel):
        def context(self, embedding):
            raise AssertionError("reached the model")

    with pytest.raises(InputError, match=message):
        stitch(
            Untouched(MODEL.spec),
            grid,
            *size,
            key=jax.random.key(0),
            **{"steps": 3, "guidance": 2.0, "stride": 3, "window_batch": 4} | settings,
        )


# The published image


def published(height, width, key=0, window_batch=16, denoise=None, steps=5, condition=lambda e: e):
    grid = np.random.default_rng(0).normal(size=(-(-height // 8), -(-width // 8), 1, WIDTH))
    return published_latent(
        denoise or mixing_denoiser(4.0),
        SCHEDULE,
        condition,
        jnp.asarray(grid, jnp.float32),
        keyed_draws(jax.random.key(key), (1, height, width, CHANNELS)),
        timesteps=trailing_timesteps(1000, steps),
        window=WINDOW,
        window_batch=window_batch,
    )


def test_published_latent_of_one_window_is_the_patch_sampler_with_its_noise():
    draw = keyed_draws(jax.random.key(0), (1, WINDOW, WINDOW, CHANNELS))
    context = jnp.float32(np.random.default_rng(0).normal(size=(1, 1, WIDTH)))
    alpha, sigma = SCHEDULE.at(jnp.array([999.0]))
    plain = ddim(
        mixing_denoiser(4.0),
        SCHEDULE,
        alpha * draw(0) + sigma * draw(1),
        context,
        timesteps=trailing_timesteps(1000, 5),
        eta=published_eta(SCHEDULE, trailing_timesteps(1000, 5)),
        noise=lambda step, like: draw(step + 2),
    )
    np.testing.assert_allclose(published(WINDOW, WINDOW), plain, atol=3e-6)


def test_published_noise_is_that_of_one_entry_of_the_table():
    every, strided = trailing_timesteps(1000, 1000), trailing_timesteps(1000, 50)
    np.testing.assert_allclose(published_eta(SCHEDULE, every), 1, atol=1e-6)
    abar = np.asarray(SCHEDULE.alpha, np.float64) ** 2
    beta, passed = 1 - abar[499] / abar[498], 1 - abar[499] / abar[479]
    assert list(strided[25:27]) == [499, 479]
    np.testing.assert_allclose(published_eta(SCHEDULE, strided)[25] ** 2, beta / passed, rtol=1e-6)


def test_published_consensus_is_uniform_over_windows_at_a_quarter_of_their_side():
    def says_its_context(schedule, x, timestep, context):
        x0 = jnp.broadcast_to(context[:, :1, :1, None], x.shape)
        return to_prediction("x0", x0, x, *schedule.at(timestep))

    values = np.random.default_rng(1).normal(size=9).astype(np.float32)
    numbered = lambda embeddings: jnp.tile(values[:, None, None], (1, 1, WIDTH))  # noqa: E731
    denoise = Partial(says_its_context, SCHEDULE)
    found = published(12, 12, denoise=denoise, steps=1, condition=numbered)
    expected, count = np.zeros((12, 12)), np.zeros((12, 12))
    for value, (y, x) in zip(values, [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)], strict=True):
        expected[y : y + 8, x : x + 8] += value
        count[y : y + 8, x : x + 8] += 1
    np.testing.assert_allclose(found[0, :, :, 0], expected / count, atol=1e-6)


def test_published_latent_depends_on_the_key_and_not_on_the_window_batch():
    first = published(17, 20)
    np.testing.assert_allclose(published(17, 20, window_batch=5), first, atol=1e-5)
    assert np.abs(published(17, 20, key=1) - first).max() > 0.1


def test_published_windows_are_decoded_with_gaussian_weights():
    shapes = []

    def decode(latent):  # the mean of the window, so that weights show
        shapes.append(latent.shape)
        pixels = jnp.full((1, 2 * latent.shape[1], 2 * latent.shape[2], 3), latent.mean())
        return pixels

    latent = jax.random.uniform(jax.random.key(0), (8, 12, 2), minval=-1, maxval=1)
    found = decode_windows(decode, latent, 2, WINDOW)
    assert shapes == [(1, 8, 8, 2)] * 3
    place = np.linspace(-1, 1, 16)
    weight = np.exp(-(place[:, None] ** 2 + place**2) / 0.64)
    total, image = np.zeros((16, 24)), np.zeros((16, 24))
    for x in (0, 2, 4):
        total[:, 2 * x : 2 * x + 16] += weight
        image[:, 2 * x : 2 * x + 16] += weight * float(latent[:, x : x + 8].mean())
    off = np.abs(found[..., 0].astype(int) - to_uint8(np.stack([image / total] * 3, -1))[..., 0])
    assert off.max() <= 1 and (off > 0).mean() < 0.01


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 33), (16, 50)])
def test_a_published_image_has_any_size_from_one_patch_on(height, width):
    grid = random_grid(-(-height // 16), -(-width // 16))
    image = published_image(MODEL, grid, height, width, jax.random.key(0))
    assert image.shape == (height, width, 3) and image.std() > 1


def test_a_published_image_is_refused_unless_its_grid_covers_it():
    with pytest.raises(InputError, match="2 rows and 2 columns.*expected 2 rows and 3 columns"):
        published_image(MODEL, random_grid(2, 2), 32, 33, jax.random.key(0))
    with pytest.raises(InputError, match="2 rows and 1 columns for a canvas of 17x16 latent"):
        draw = keyed_draws(jax.random.key(0), (1, 16, 17, CHANNELS))
        grid = jnp.zeros((2, 1, 1, WIDTH))
        published_latent(mixing_denoiser(), SCHEDULE, lambda e: e, grid, draw, window=WINDOW)


# Reference


def test_a_region_is_read_row_by_row_with_its_edge_cells_inside():
    corners = []

    def read(x, y, width, height):
        corners.append((x, y))
        assert (width, height) == (16, 16)
        return np.full((16, 16, 3), len(corners), np.uint8)

    def embed(images):
        return images[:, 0, 0, :1, None].astype(np.float32)

    grid = embed_region(read, embed, (100, 200, 40, 32), 16)
    assert corners == [(x, y) for y in (200, 216) for x in (100, 116, 124)]
    np.testing.assert_array_equal(grid[:, :, 0, 0], [[1, 2, 3], [4, 5, 6]])
    with pytest.raises(InputError, match="40x15 px; expected at least one patch"):
        embed_region(read, embed, (0, 0, 40, 15), 16)


def test_a_saved_grid_comes_back_bit_for_bit_and_makes_the_identical_image(tmp_path):
    grid = random_grid(2, 2)
    save_grid(tmp_path / "grid.npy", grid)
    safetensors.numpy.save_file({"anything": grid}, tmp_path / "grid.safetensors")
    for name in ("grid.npy", "grid.safetensors"):
        loaded = load_grid(tmp_path / name)
        np.testing.assert_array_equal(loaded, grid)
    np.testing.assert_array_equal(make_large(loaded, 32, 32), make_large(grid, 32, 32))


def test_grids_without_a_token_axis_have_one_token(tmp_path):
    np.save(tmp_path / "grid.npy", random_grid(2, 3)[:, :, 0])
    assert load_grid(tmp_path / "grid.npy").shape == (2, 3, 1, DIM)


def test_grid_files_that_are_none_are_named(tmp_path):
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "text.safetensors").write_text("not a tensor")
    np.save(tmp_path / "flat.npy", np.zeros((2, 2)))
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    safetensors.numpy.save_file({"a": np.zeros(1), "b": np.zeros(1)}, tmp_path / "two.safetensors")
    for name, message in [
        ("none.npy", "cannot be read"),
        ("none.safetensors", "cannot be read"),
        ("text.npy", "cannot be read"),
        ("text.safetensors", "cannot be read"),
        ("object.npy", "cannot be read"),
        ("flat.npy", r"has shape \[2, 2\]"),
        ("two.safetensors", r"holds \['a', 'b'\]"),
        ("grid.txt", "neither .npy nor .safetensors"),
    ]:
        with pytest.raises(InputError, match=message):
            load_grid(tmp_path / name)
