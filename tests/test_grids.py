"""Grids out of records."""

import numpy as np
import pytest
from grid_records import PATCH_PX, write

from ssl_diffusion.data.grids import open_grids
from ssl_diffusion.data.records import open_records
from ssl_diffusion.errors import InputError


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Two sources of 3x4 and 2x2 cells, numbered; one cell is missing."""
    first = np.arange(12.0).reshape(3, 4, 1).repeat(2, -1)
    first[1, 2] = np.nan
    second = 100 + np.arange(4.0).reshape(2, 2, 1).repeat(2, -1)
    grids = {
        "train": [("a.png", first, {"label": 0, "text": "one"}), ("b.png", second, {"label": 1})],
        "test": [("c.png", second, {"label": 1, "text": "two"})],
    }
    folder = tmp_path_factory.mktemp("grids") / "records"
    return open_records(write(folder, grids, dim=2, classes=("x", "y")))


def test_a_grid_is_what_lies_right_and_below(numbered):
    train = open_grids(numbered, 3)["train"]
    assert len(train) == 11 + 4
    grid = train[0]
    np.testing.assert_array_equal(grid["embedding"][..., 0, 0], [[0, 1, 2], [4, 5, 0], [8, 9, 10]])
    np.testing.assert_array_equal(grid["present"], [[1, 1, 1], [1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(grid["label"], [[0, 0, 0], [0, 0, -1], [0, 0, 0]])
    assert grid["embedding"].dtype == np.float16 and grid["embedding"].shape == (3, 3, 1, 2)
    assert train.place(5) == f"{train.name} grid 5, a.png at x={PATCH_PX} y={PATCH_PX}"


def test_a_grid_ends_with_its_source(numbered):
    train = open_grids(numbered, 3)["train"]
    last = train[len(train) - 1]
    assert last["present"].sum() == 1 and last["embedding"].max() == 103


def test_texts_and_sources_have_the_same_numbers_in_all_splits(numbered):
    grids = open_grids(numbered, 2)
    assert grids["test"].texts == grids["train"].texts == ("one", "two")
    assert set(grids["train"].facts["text"].tolist()) == {0, -1}
    assert grids["test"][0]["text"].tolist() == [[1, 1], [1, 1]]
    assert grids["test"].sources == grids["train"].sources


def test_balanced_begins_as_many_of_each(numbered):
    train = open_grids(numbered, 2)["train"].balanced("label")
    labels = train.facts["label"][train.order]
    assert (labels == 0).sum() == 11 and (labels == 1).sum() == 12


def test_records_without_neighbours_are_refused(tmp_path):
    alone = [(f"{i}.png", np.ones((1, 1, 2)), {}) for i in range(3)]
    records = open_records(write(tmp_path / "records", {"train": alone}, dim=2))
    with pytest.raises(InputError, match="no patch has a neighbour 8 px away.*stride_px"):
        open_grids(records, 2)
    assert len(open_grids(records, 1)["train"]) == 3
    with pytest.raises(InputError, match="none of test to read|none of 'test'"):
        open_grids(records, 2, ("test",))


def test_patches_without_places_make_grids_of_one_cell(tmp_path):
    """As those of a TFDS data set, which all lie at 0, 0."""
    at_once = [("s.png", np.full((1, 1, 2), float(i)), {}) for i in range(3)]
    records = open_records(write(tmp_path / "records", {"train": at_once}, dim=2))
    single = open_grids(records, 1)["train"]
    assert [single[i]["embedding"].max() for i in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="3 patches lie at 1 places.*window to 1"):
        open_grids(records, 2)
