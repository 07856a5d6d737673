"""Where grids come from: the patches of a region, and files of three formats."""

import h5py
import numpy as np
import pytest
import safetensors.numpy

from ssl_diffusion.errors import InputError
from ssl_diffusion.stitching.reference import CHUNK, embed_region, load_grid, save_grid

GRID = np.random.default_rng(0).normal(size=(2, 3, 2, 4)).astype(np.float32)


def embed(images):
    """The first two pixels of the first row, as two tokens of three."""
    return images[:, 0, :2].astype(np.float32)


@pytest.mark.parametrize(
    ("stride", "ys", "xs"),
    [(16, (200, 216), (100, 116, 124)), (10, (200, 210, 216), (100, 110, 120, 124))],
)
def test_a_region_is_read_row_by_row_with_its_edge_patches_inside(stride, ys, xs):
    corners = []

    def read(x, y, width, height):
        corners.append((x, y))
        assert (width, height) == (16, 16)
        return np.full((16, 16, 3), len(corners), np.uint8)

    grid = embed_region(read, embed, (100, 200, 40, 32), 16, stride)
    assert corners == [(x, y) for y in ys for x in xs]
    assert grid.shape == (len(ys), len(xs), 2, 3) and grid.dtype == np.float32
    np.testing.assert_array_equal(grid[:, :, 1, 2].ravel(), np.arange(len(corners)) + 1)


def test_a_region_is_embedded_in_chunks_and_seen_by_the_progress_bar():
    sizes, seen = [], []

    def counted(images):
        sizes.append(len(images))
        return embed(images)

    def bar(corners):
        for corner in corners:
            seen.append(corner)
            yield corner

    read = lambda x, y, w, h: np.full((h, w, 3), (y // 2 + x // 2) % 251, np.uint8)  # noqa: E731
    grid = embed_region(read, counted, (0, 0, 48, 46), 16, 2, bar)
    assert sizes == [CHUNK, 16 * 17 - CHUNK] and len(seen) == 16 * 17
    np.testing.assert_array_equal(grid[:, :, 0, 0], np.add.outer(np.arange(16), np.arange(17)))


def test_a_region_smaller_than_a_patch_is_refused():
    with pytest.raises(InputError, match="40x15 px; expected at least one patch, 16x16 px"):
        embed_region(lambda *place: None, embed, (0, 0, 40, 15), 16, 16)


def test_a_saved_grid_comes_back_bit_for_bit_from_every_format(tmp_path):
    save_grid(tmp_path / "grid.npy", GRID)
    safetensors.numpy.save_file({"anything": GRID}, tmp_path / "grid.safetensors")
    with h5py.File(tmp_path / "grid.h5", "w") as file:
        file["grid"], file["coordinates"] = GRID, np.zeros((2, 3))
        file.create_group("more")
    for name in ("grid.npy", "grid.safetensors", "grid.h5"):
        found = load_grid(tmp_path / name)
        np.testing.assert_array_equal(found, GRID)
        assert found.dtype == np.float32
    assert {path.name for path in tmp_path.iterdir()} == {
        "grid.npy",
        "grid.safetensors",
        "grid.h5",
    }


def test_grids_without_a_token_axis_have_one_token(tmp_path):
    np.save(tmp_path / "grid.npy", GRID[:, :, 0])
    with h5py.File(tmp_path / "grid.hdf5", "w") as file:
        file["embeddings"] = GRID[:, :, 0]
    for name in ("grid.npy", "grid.hdf5"):
        np.testing.assert_array_equal(load_grid(tmp_path / name), GRID[:, :, :1])


def test_grid_files_that_are_none_are_named(tmp_path):
    for suffix in ("npy", "safetensors", "h5"):
        (tmp_path / f"text.{suffix}").write_text("no array")
    (tmp_path / "grid.txt").write_text("no array")
    np.save(tmp_path / "flat.npy", np.zeros((2, 2)))
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    safetensors.numpy.save_file({"a": np.zeros(1), "b": np.zeros(1)}, tmp_path / "two.safetensors")
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a"], file["b"] = np.zeros(1), np.zeros(1)
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file.create_group("grid")
    with h5py.File(tmp_path / "scalar.h5", "w") as file:
        file["grid"] = 3.0
    for name, message in [
        ("absent.npy", "no grid at"),
        ("absent.safetensors", "no grid at"),
        ("absent.h5", "no grid at"),
        ("text.npy", "cannot be read"),
        ("text.safetensors", "cannot be read"),
        ("text.h5", "cannot be read"),
        ("object.npy", "cannot be read"),
        ("flat.npy", r"has shape \[2, 2\]"),
        ("scalar.h5", r"has shape \[\]"),
        ("two.safetensors", r"holds \['a', 'b'\]"),
        ("two.h5", r"holds \['a', 'b'\]"),
        ("none.h5", r"holds \[\]; expected one, 'grid'"),
        ("grid.txt", r"is no \.npy, \.safetensors or \.h5"),
    ]:
        with pytest.raises(InputError, match=message) as raised:
            load_grid(tmp_path / name)
        assert "\n" not in str(raised.value)
