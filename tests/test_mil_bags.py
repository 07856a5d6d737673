"""Bags out of records, the cells and regions of a slide, and pseudo-slides."""

import numpy as np
import pytest

from ssl_diffusion.data.records import open_records
from ssl_diffusion.data.writer import Layout, RecordsWriter
from ssl_diffusion.errors import InputError
from ssl_diffusion.mil.bags import Bag, check_classes, read_bags
from ssl_diffusion.mil.planted import Tiles, find_tiles, mosaic
from ssl_diffusion.mil.synthetic import Copy, cells_of, copies_of, parents_of, regions_of

PX = 8


def write(folder, patches, **metadata):
    """Records of (source, x, y, label), whose embedding is [[x, y]]."""
    writer = RecordsWriter(folder, ("train",), Layout((1, 2), classes=("a", "b")))
    for source, x, y, label in patches:
        image = np.full((PX, PX, 3), 200, np.uint8)
        embedding = np.array([[x, y]], np.float32)
        example = {"image": image, "embedding": embedding, "x": x, "y": y}
        writer.add("train", example | {"source": source, "label": label})
    known = {"recipe": {}, "patch_px": PX, "classes": ["a", "b"], "mpp": 0.5}
    writer.close(known | metadata)
    return open_records(folder)


def test_a_bag_for_each_labelled_source(tmp_path):
    patches = [("one", 0, 0, 1), ("two", 8, 0, 0), ("one", 8, 0, 1), ("none", 0, 0, -1)]
    regions = {"planted": {"regions": {"one": [8, 0, 8, 8]}}}
    parents = {"synthetic": {"parents": {"two": ["p", "q"]}}}
    bags = read_bags(write(tmp_path / "r", patches, **regions, **parents), "train")
    assert [(bag.name, bag.label, len(bag)) for bag in bags] == [("one", 1, 2), ("two", 0, 1)]
    np.testing.assert_array_equal(bags[0].features, [[0, 0], [8, 0]])
    np.testing.assert_array_equal(bags[0].rows, [0, 2])
    np.testing.assert_array_equal(bags[0].planted, [False, True])
    assert not bags[1].planted.any()
    assert (bags[0].parents, bags[1].parents) == (("one",), ("p", "q"))


def test_a_slide_of_two_classes_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"one in .* several classes \(a, b\)"):
        read_bags(write(tmp_path / "r", [("one", 0, 0, 1), ("one", 8, 0, 0)]), "train")


def test_unlabelled_records_and_single_classes_are_refused(tmp_path):
    records = write(tmp_path / "r", [("one", 0, 0, 1)])
    with pytest.raises(InputError, match="a: 0, b: 1; expected two classes"):
        check_classes(read_bags(records, "train"), ["a", "b"], "the split train")
    with pytest.raises(InputError, match="have no labels"):
        read_bags(write(tmp_path / "s", [("one", 0, 0, 1)], classes=[]), "train")


def slide(name, places, label=0):
    x, y = (np.array(values) for values in zip(*places, strict=True))
    features = np.random.default_rng(len(places)).standard_normal((len(x), 4)).astype(np.float32)
    return Bag(name, label, features, x, y, np.arange(len(x)), None, (name,))


def test_cells_are_the_lattice_of_most_patches():
    # Rows at y = 3, 11; a stray patch at y = 7 is on no cell.
    cells = cells_of(slide("s", [(2, 3), (10, 3), (18, 11), (2, 7)]), PX)
    assert (cells.left, cells.top) == (2, 3)
    np.testing.assert_array_equal(cells.index, [[0, 1, -1], [-1, -1, 2]])
    np.testing.assert_array_equal(cells.patches, [0, 1, 2])


def test_regions_cover_the_tissue_and_holes_take_the_nearest_cell():
    cells = cells_of(slide("s", [(0, 0), (16, 0), (24, 0), (16, 8), (0, 32)]), PX)
    regions = regions_of(cells, 2)
    assert [(one.row, one.col) for one in regions] == [(0, 0), (0, 2), (4, 0)]
    np.testing.assert_array_equal(regions[0].index, [[0, -1], [-1, -1]])
    np.testing.assert_array_equal(regions[2].present, [[True, False], [False, False]])
    found = np.concatenate([one.index[one.present] for one in regions])
    assert sorted(found.tolist()) == [0, 1, 2, 3, 4]
    features = cells.bag.features
    np.testing.assert_array_equal(regions[0].grid(), np.broadcast_to(features[0], (2, 2, 4)))
    right = regions[1].grid()
    np.testing.assert_array_equal(right[0], features[[1, 2]])
    assert (right[1, 1] == features[2]).all() or (right[1, 1] == features[3]).all()


def test_copies_go_towards_others_of_their_class():
    slides = [slide(f"s{i}", [(0, 0), (8, 0), (16, 0)], label=int(i == 2)) for i in range(3)]
    for number, one in enumerate(slides):
        one.features[:] *= 1 + number  # told apart
    regions = [region for one in slides for region in regions_of(cells_of(one, PX), 2)]
    copies = copies_of(regions, 2, True, seed=7)
    assert [copy.name for copy in copies[:4]] == ["s0#synthetic0"] * 2 + ["s0#synthetic1"] * 2
    assert [copy.seed for copy in copies] == list(range(7, 19))
    for copy in copies:
        assert copy.partner is not copy.region
        assert copy.partner.cells.bag.label == copy.region.cells.bag.label
    found = parents_of(copies)
    assert found["s2#synthetic0"] == ["s2"]
    assert all("s2" not in parents for name, parents in found.items() if name < "s2")
    copy = next(copy for copy in copies if copy.partner.cells is not copy.region.cells)
    for amount, of in ((0.0, copy.region), (1.0, copy.partner)):
        grid = copy.grid(amount, 1)
        np.testing.assert_allclose(grid, of.grid()[:, :, None], atol=1e-5)
    # Half way a token has the mean length of both, whatever the lengths of other tokens.
    half, ends = copy.grid(0.5, 2), (copy.region.grid(), copy.partner.grid())
    assert half.shape == (2, 2, 2, 2)
    lengths = [np.linalg.norm(end.reshape(half.shape), axis=-1) for end in ends]
    np.testing.assert_allclose(np.linalg.norm(half, axis=-1), np.mean(lengths, 0), rtol=1e-3)
    assert all(copy.partner is None for copy in copies_of(regions, 1, False, seed=0))
    alone = copies_of(regions[-2:-1], 1, True, seed=0)  # the only one of its class
    assert alone[0].partner is None
    assert isinstance(alone[0], Copy) and alone[0].grid(0.5, 1).shape == (2, 2, 1, 4)


def test_a_mosaic_holds_the_planted_kind_in_its_rectangle_alone():
    tiles = Tiles(np.arange(40).reshape(10, 2, 2), 100 + np.arange(40).reshape(10, 2, 2))
    rng = np.random.default_rng(0)
    for _ in range(20):
        patches, (col, row, cols, rows) = mosaic(tiles, 1, 3, rng)
        assert patches.shape == (6, 6)
        inside = np.zeros((6, 6), bool)
        inside[row : row + rows, col : col + cols] = True
        np.testing.assert_array_equal(patches >= 100, inside)
        # Tiles stay whole: [[4k, 4k + 1], [4k + 2, 4k + 3]].
        corner = patches[::2, ::2]
        np.testing.assert_array_equal(patches[1::2, 1::2], corner + 3)
    patches, region = mosaic(tiles, 0, 3, rng)
    assert region is None and (patches < 100).all()


def test_a_kind_is_a_class_or_haematoxylin(records_dir):
    records = open_records(records_dir)
    with pytest.raises(InputError, match="no kind 'tumour' .* expected one of haematoxylin"):
        find_tiles(records, "tumour")
