"""Windows over a canvas: consensus, schemes, tiles of windows, noise."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ssl_diffusion.diffusion.denoiser import make_denoiser
from ssl_diffusion.diffusion.prediction import Prediction, to_prediction
from ssl_diffusion.diffusion.schedule import make_schedule
from ssl_diffusion.errors import InputError
from ssl_diffusion.stitching.consensus import WindowSum, stitched_denoiser, tile_shape, tiled
from ssl_diffusion.stitching.noise import canvas_noise
from ssl_diffusion.stitching.schemes import Overlap, Shifted, make_scheme
from ssl_diffusion.stitching.windows import gaussian

SCHEDULE = make_schedule("cosine")
WINDOW, CHANNELS, WIDTH = 8, 2, 3
TIMESTEP = jnp.array([500.0])


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
    null = jnp.zeros((1, WIDTH))
    return make_denoiser(mixing_network, params, SCHEDULE, "v", null, guidance)


def says_its_context(schedule, x, timestep, context):
    x0 = jnp.broadcast_to(context[:, :1, :1, None], x.shape)
    return to_prediction("x0", x0, x, *schedule.at(timestep))


def blind(schedule, x, timestep, context):
    return to_prediction("x0", jnp.full_like(x, 0.37), x, *schedule.at(timestep))


def predict(denoise, canvas, layout, window_batch, context=None):
    """The consensus over a canvas; contexts [ny, nx, 1, WIDTH] are random by default."""
    rows, columns = len(layout.origins_y), len(layout.origins_x)
    shape = tile_shape(rows, columns, window_batch)
    tiles = tiled(layout, shape)
    if context is None:
        context = np.random.default_rng(5).normal(size=(rows, columns, 1, WIDTH))
    filling = [(0, -n % count) for n, count in zip((rows, columns), shape, strict=True)]
    context = jnp.asarray(np.pad(context, [*filling, (0, 0), (0, 0)]), jnp.float32)
    stitched = stitched_denoiser(denoise, SCHEDULE, tiles, layout.step)
    return jax.jit(lambda stitched, *given: stitched(*given))(stitched, canvas, TIMESTEP, context)


def random_canvas(height, width):
    return jax.random.normal(jax.random.key(0), (1, height, width, CHANNELS))


@pytest.mark.parametrize(("stride", "weights"), [(3, "gaussian"), (8, "uniform"), (4, "uniform")])
def test_consensus_is_the_weighted_average_of_the_windows_over_each_pixel(stride, weights):
    layout = Overlap(21, 15, WINDOW, stride, weights).layout(0)
    ny, nx = len(layout.origins_y), len(layout.origins_x)
    values = np.random.default_rng(0).normal(size=(ny, nx)).astype(np.float32)
    context = np.tile(values[:, :, None, None], (1, 1, 1, WIDTH))
    canvas = random_canvas(21, 15)
    found = predict(Partial(says_its_context, SCHEDULE), canvas, layout, 4, context)
    profile = gaussian(WINDOW) if weights == "gaussian" else np.ones(WINDOW)
    expected, total = np.zeros((21, 15)), np.zeros((21, 15))
    for i, y in enumerate(layout.origins_y):
        for j, x in enumerate(layout.origins_x):
            expected[y : y + 8, x : x + 8] += values[i, j] * np.outer(profile, profile)
            total[y : y + 8, x : x + 8] += np.outer(profile, profile)
    np.testing.assert_allclose(found.x0[0, :, :, 1], expected / total, atol=1e-6)
    alpha, sigma = SCHEDULE.at(TIMESTEP)
    np.testing.assert_allclose(alpha * found.x0 + sigma * found.eps, canvas, atol=1e-6)


@pytest.mark.parametrize("scheme", ["overlap", "shifted"])
@pytest.mark.parametrize("size", [(8, 30), (29, 21)])
def test_a_denoiser_blind_to_its_input_leaves_no_seam(scheme, size):
    windows = make_scheme(scheme, *size, WINDOW, 3, "gaussian", jax.random.key(0))
    found = predict(Partial(blind, SCHEDULE), random_canvas(*size), windows.layout(0), 4)
    assert np.abs(found.x0 - 0.37).max() < 1e-6


@pytest.mark.parametrize("scheme", ["overlap", "shifted"])
def test_window_batch_changes_the_consensus_by_rounding_only(scheme):
    layout = make_scheme(scheme, 26, 19, WINDOW, 3, "gaussian", jax.random.key(0)).layout(0)
    canvas = random_canvas(26, 19)
    found = [predict(mixing_denoiser(), canvas, layout, batch).x0 for batch in (1, 7, 64)]
    # 16 units in the last place of values around 1: matrix products round differently at another
    # batch size, and what windows give is added up in another order.
    np.testing.assert_allclose(found[1], found[0], atol=2e-6)
    np.testing.assert_allclose(found[2], found[0], atol=2e-6)


def test_one_window_is_the_denoiser_itself():
    canvas, layout = random_canvas(8, 8), Overlap(8, 8, WINDOW, 4).layout(0)
    context = np.ones((1, 1, 1, WIDTH), np.float32)
    plain = mixing_denoiser()(canvas, TIMESTEP, jnp.asarray(context[0]))
    for found, expected in zip(
        predict(mixing_denoiser(), canvas, layout, 4, context), plain, strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_windows_are_denoised_in_tiles_of_one_bounded_size():
    sizes = []

    def apply(params, x, timestep, context):
        sizes.append(x.shape[0])
        return x

    denoise = make_denoiser(apply, {}, SCHEDULE, "v", jnp.zeros((1, WIDTH)), 1.0)
    predict(denoise, random_canvas(40, 40), Overlap(40, 40, WINDOW, 4).layout(0), 7)
    assert set(sizes) == {6} or set(sizes) == {3}


def test_windows_are_sliced_neither_gathered_nor_scattered():
    layout = Overlap(40, 40, WINDOW, 4).layout(0)
    tiles = tiled(layout, (3, 3))
    context = jnp.zeros((9, 9, 1, WIDTH))
    denoise = Partial(lambda x, timestep, context: Prediction(x, x))
    canvas = random_canvas(40, 40)[0]
    program = str(jax.make_jaxpr(WindowSum(4))(denoise, tiles, canvas, TIMESTEP, context))
    assert not re.search(r"\b(gather|scatter)", program)
    assert "dynamic_slice" in program


def test_a_context_is_wanted_for_every_window():
    layout = Overlap(16, 16, WINDOW, 8).layout(0)
    with pytest.raises(InputError, match=r"contexts of \{\(1, 2\)\} windows; expected .*\(2, 2\)"):
        predict(mixing_denoiser(), random_canvas(16, 16), layout, 4, np.zeros((1, 2, 1, WIDTH)))


def test_tiles_waste_little():
    # 13 x 13 windows of the published 1024 px: 8 x 8 tiles would denoise 256.
    rows, columns = tile_shape(13, 13, 64)
    assert rows * columns <= 64
    assert -(-13 // rows) * rows * -(-13 // columns) * columns <= 1.1 * 169
    assert tile_shape(3, 3, 64) == (3, 3)
    rows, columns = tile_shape(61, 61, 64, devices=8)
    assert rows * columns <= 512 and rows * columns % 8 <= 8
    with pytest.raises(InputError, match="window batch 0"):
        tile_shape(2, 2, 0)


# Schemes


def test_shifted_windows_lie_side_by_side_inside_and_move():
    scheme = Shifted(40, 24, WINDOW, jax.random.key(3))
    layouts = [scheme.layout(evaluation) for evaluation in range(12)]
    for layout in layouts:
        assert len(layout.origins_y) == 6 and len(layout.origins_x) == 4
        for origins, size in ((layout.origins_y, 40), (layout.origins_x, 24)):
            assert origins[0] == 0 and origins[-1] == size - WINDOW
            assert (np.diff(origins[1:-1]) == WINDOW).all()
            assert (np.diff(origins) <= WINDOW).all()
    shifts = {(layout.origins_y[1], layout.origins_x[1]) for layout in layouts}
    assert len(shifts) > 8
    again = Shifted(40, 24, WINDOW, jax.random.key(3)).layout(7)
    np.testing.assert_array_equal(again.origins_y, layouts[7].origins_y)
    other = [Shifted(40, 24, WINDOW, jax.random.key(4)).layout(k).origins_y[1] for k in range(12)]
    assert other != [layout.origins_y[1] for layout in layouts]


def test_shifts_are_uniform():
    scheme = Shifted(40, 40, WINDOW, jax.random.key(0))
    counts = np.bincount([scheme.layout(k).origins_y[1] for k in range(800)], minlength=WINDOW)
    assert counts.min() > 60 and counts.max() < 145  # 100 expected, 9.4 its standard deviation


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "spot"}, "unknown scheme 'spot'; expected one of overlap, shifted"),
        ({"weights": "flat"}, "unknown window weights 'flat'"),
        ({"stride": 9}, "stride 9; expected 1 to 8"),
        ({"height": 7}, "7 px is smaller than one window of 8"),
    ],
)
def test_schemes_that_cannot_be_are_named(change, message):
    given = {"name": "overlap", "height": 16, "width": 16, "window": 8, "stride": 4}
    given |= {"weights": "gaussian", "key": jax.random.key(0)} | change
    with pytest.raises(InputError, match=message):
        make_scheme(**given)


# Noise


def test_noise_is_keyed_by_place():
    noise = partial(canvas_noise, jax.random.key(0), channels=3)
    whole = noise(4, 0, rows=30, width=20)
    np.testing.assert_array_equal(noise(4, 11, rows=7, width=20), whole[11:18])
    np.testing.assert_array_equal(noise(4, 0, rows=30, width=13), whole[:, :13])
    assert np.abs(noise(5, 0, rows=30, width=20) - whole).min() > 0
    assert abs(whole.mean()) < 0.1 and abs(whole.std() - 1) < 0.1
