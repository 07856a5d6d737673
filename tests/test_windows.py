"""Where windows lie, and which embedding belongs to each: geometry of canvas and grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_diffusion.errors import InputError
from ssl_diffusion.stitching.grid import interpolate_grid, slerp
from ssl_diffusion.stitching.windows import (
    blend_weights,
    cell_positions,
    gaussian,
    shifted_origins,
    window_origins,
)

WINDOW = 8


@pytest.mark.parametrize(("size", "stride"), [(8, 8), (9, 8), (40, 8), (41, 3), (47, 5), (23, 1)])
def test_windows_cover_every_pixel_and_end_flush(size, stride):
    origins = window_origins(size, WINDOW, stride)
    assert origins[0] == 0 and origins[-1] == size - WINDOW
    assert (np.diff(origins) > 0).all() and (np.diff(origins) <= stride).all()
    covered = {pixel for origin in origins for pixel in range(origin, origin + WINDOW)}
    assert covered == set(range(size))


def test_corners_of_cells_are_as_many_as_cells():
    for size in range(8, 60):
        assert len(window_origins(size, 8, 8)) == -(-size // 8)


@pytest.mark.parametrize("size", [8, 9, 15, 16, 17, 40, 43])
def test_shifted_windows_cover_every_pixel_and_are_always_as_many(size):
    for shift in range(WINDOW):
        origins = shifted_origins(size, WINDOW, shift)
        assert len(origins) == (1 if size == WINDOW else -(-size // WINDOW) + 1)
        assert origins[0] == 0 and origins[-1] == size - WINDOW
        assert ((np.diff(origins) >= 0) & (np.diff(origins) <= WINDOW)).all()
        inside = origins[(origins > 0) & (origins < size - WINDOW)]
        assert set(inside % WINDOW) <= {shift}
        weights = blend_weights(origins, np.ones(WINDOW))
        total = np.zeros(size)
        for origin, weight in zip(origins, weights, strict=True):
            total[origin : origin + WINDOW] += weight
        np.testing.assert_allclose(total, 1, rtol=1e-12)


def test_gaussian_weights_are_those_of_their_formula():
    weights = gaussian(4)
    r = np.array([-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(weights, np.exp(-(r**2) / (2 * 0.25**2)), rtol=1e-12)
    np.testing.assert_allclose(gaussian(1), 1)
    assert (gaussian(64, width=1e9) > 1 - 1e-12).all()


def test_cell_positions_are_those_of_corners_and_end_on_the_last_cell():
    origins = window_origins(32, 8, 2)
    np.testing.assert_allclose(cell_positions(origins, 32, 8, 8), origins / 8)
    # 20 = 2.5 cells: corners 0, 8, 12; the last window has the last cell's own embedding.
    np.testing.assert_allclose(
        cell_positions(np.array([0, 4, 8, 10, 12]), 20, 8, 8), [0, 0.5, 1, 1.5, 2]
    )


def test_cell_positions_in_a_dense_grid():
    # Cells at the windows' own places, the flush last one included.
    for size in (8, 20, 31, 32):
        origins = window_origins(size, 8, 3)
        found = cell_positions(origins, size, 8, 3)
        np.testing.assert_array_equal(found, np.arange(len(origins)))
    # Corners 0, 4, 8, 12, 13: between the last two a pixel is a whole cell.
    np.testing.assert_allclose(
        cell_positions(np.array([0, 2, 9, 12, 13]), 21, 8, 4), [0, 0.5, 2.25, 3, 4]
    )


def test_windows_that_cannot_be_are_named():
    with pytest.raises(InputError, match="7 px is smaller than one window of 8"):
        window_origins(7, 8, 4)
    for stride in (0, 9):
        with pytest.raises(InputError, match="expected 1 to 8"):
            window_origins(16, 8, stride)


# Grid


def test_slerp_runs_along_the_arc_at_constant_norm_and_speed():
    a, b = jnp.array([3.0, 0.0, 0.0]), jnp.array([0.0, 3.0, 0.0])
    t = jnp.linspace(0, 1, 11)
    path = slerp(jnp.tile(a, (11, 1)), jnp.tile(b, (11, 1)), t)
    np.testing.assert_allclose(jnp.linalg.norm(path, axis=1), 3, rtol=1e-6)
    np.testing.assert_allclose(jnp.arctan2(path[:, 1], path[:, 0]), t * np.pi / 2, atol=1e-6)
    np.testing.assert_allclose(path[0], a, atol=1e-6)
    np.testing.assert_allclose(path[-1], b, atol=1e-6)


def test_slerp_does_not_normalise():
    middle = slerp(jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 4.0]]), jnp.array([0.5]))
    np.testing.assert_allclose(middle, [[2 * 0.5**0.5, 4 * 0.5**0.5]], rtol=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_slerp_is_linear_where_nearly_parallel_and_only_there(sign):
    a = jnp.array([[1.0, 0.0]])
    t = jnp.array([0.25])
    for angle, linear in [(0.0300, True), (0.0330, False)]:  # cos 0.99955 and 0.99946
        b = sign * 5 * jnp.array([[np.cos(angle), np.sin(angle)]], jnp.float32)
        line = 0.75 * a + 0.25 * b
        off = float(jnp.abs(slerp(a, b, t) - line).max())
        assert (off < 1e-6) == linear, off


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_slerp_of_identical_opposite_and_zero_vectors_is_finite(scale):
    a = scale * jnp.array([[0.6, 0.8]])
    zero, half = jnp.zeros((1, 2)), jnp.array([0.5])
    np.testing.assert_allclose(slerp(a, a, half), a, rtol=1e-6)
    np.testing.assert_allclose(slerp(a, -a, half), 0, atol=0)
    np.testing.assert_allclose(slerp(a, zero, half), a / 2, rtol=1e-6)
    np.testing.assert_allclose(slerp(zero, a, half), a / 2, rtol=1e-6)
    np.testing.assert_allclose(slerp(zero, zero, half), 0, atol=0)
    turned = slerp(a, a[:, ::-1] * jnp.array([-1.0, 1.0]), half)  # a quarter turn, any length
    np.testing.assert_allclose(jnp.linalg.norm(turned / scale), 1, rtol=1e-5)


def test_grid_is_itself_at_cells_and_replicated_beyond_its_edge():
    grid = jax.random.normal(jax.random.key(0), (3, 4, 2, 5))
    whole = interpolate_grid(grid, jnp.arange(3.0), jnp.arange(4.0))
    np.testing.assert_allclose(whole, grid, atol=1e-6)
    beyond = interpolate_grid(grid, jnp.array([-2.0, 7.0]), jnp.array([-0.1, 3.6]))
    np.testing.assert_allclose(beyond, grid[jnp.array([[0], [2]]), jnp.array([[0, 3]])], atol=1e-6)


def test_grid_interpolates_columns_first_each_token_by_itself():
    grid = jax.random.normal(jax.random.key(1), (2, 2, 3, 5))
    found = interpolate_grid(grid, jnp.array([0.3]), jnp.array([0.8]))[0, 0]
    rows, cols = jnp.full(3, 0.3), jnp.full(3, 0.8)
    expected = slerp(slerp(grid[0, 0], grid[0, 1], cols), slerp(grid[1, 0], grid[1, 1], cols), rows)
    other = slerp(slerp(grid[0, 0], grid[1, 0], rows), slerp(grid[0, 1], grid[1, 1], rows), cols)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - other).max() > 1e-2
