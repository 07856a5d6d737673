"""What is asked of a prior: shares, texts, vectors, painted maps and masks; and what is refused."""

import logging

import numpy as np
import pytest
from PIL import Image

from ssl_diffusion.errors import InputError
from ssl_diffusion.prior.asked import Asked, check_asked, condition, read_label, read_vector
from ssl_diffusion.prior.painted import painted_size, read_label_map, read_mask

CLASSES = ["DCIS", "N", "a:b, c"]
GENES = ["EGFR", "TP53", "MYC"]
COLOURS = ["#e41a1c", "#377eb8", "#000000"]
SPEC = {
    "conditions": {
        "label": {"classes": CLASSES},
        "text": {"encoder": "minilm", "dim": 384},
        "vector": {"names": GENES, "log1p": True},
        "label_map": {"classes": ["tumour", "stroma", "glass"], "colours": COLOURS},
    }
}


def line(error) -> str:
    """The message, which is one line."""
    assert "\n" not in str(error.value)
    return str(error.value)


# Labels


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DCIS", {"DCIS": 1}),
        ("DCIS,N", {"DCIS": 0.5, "N": 0.5}),
        (" DCIS : 0.7 , N:0.3", {"DCIS": 0.7, "N": 0.3}),
        ("N:3,DCIS:1", {"N": 0.75, "DCIS": 0.25}),
        ("a:b, c", {"a:b, c": 1}),
    ],
)
def test_labels_are_shares_that_sum_to_one(text, expected):
    found = read_label(text, CLASSES)
    assert found == pytest.approx(expected) and list(found) == list(expected)
    check_asked(Asked(label=found), SPEC, 2, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("LCIS", "no class 'LCIS'; the prior knows DCIS, N, a:b, c"),
        ("DCIS:1,X:2,Y:1", "no class 'X', 'Y'"),
        ("", "an empty label; expected one of DCIS"),
        ("DCIS,", "no class ''"),
        ("DCIS,DCIS", "names a class twice"),
        ("DCIS:1,N", "expected parts of all classes"),
        ("DCIS:0,N:1", "finite numbers above 0"),
        ("DCIS:-1", "finite numbers above 0"),
        ("DCIS:nan", "finite numbers above 0"),
        ("DCIS:inf,N:1", "finite numbers above 0"),
        ("DCIS:x", "finite numbers above 0"),
    ],
)
def test_labels_that_are_none_are_refused(text, message):
    with pytest.raises(InputError) as error:
        read_label(text, CLASSES)
    assert message in line(error)


# Vectors


@pytest.mark.parametrize(
    "text",
    [
        "TP53,2\nMYC,3.5\nEGFR,1e0\n",
        "gene,expression\nEGFR,1\nTP53,2\n\nMYC,3.5",
        "\ufeffgene,expression\r\nEGFR,1\r\nTP53,2\r\nMYC,3.5\r\nOTHER,n/a\r\n",
        "MYC,TP53,EGFR\n3.5,2,1\n",
        ",MYC,TP53,EGFR\nsample 1,3.5, 2,1\n",
    ],
)
def test_a_vector_comes_in_the_order_of_the_prior(text, tmp_path, caplog):
    path = tmp_path / "genes.csv"
    path.write_text(text, encoding="utf-8")
    with caplog.at_level(logging.INFO):
        vector = read_vector(path, GENES)
    assert vector.dtype == np.float32
    np.testing.assert_array_equal(vector, [1, 2, 3.5])
    assert ("1 values of" in caplog.text) == ("OTHER" in text or "sample" in text)
    check_asked(Asked(vector=vector), SPEC, 1, 1)


def test_two_names_above_two_values_are_no_columns(tmp_path):
    path = tmp_path / "genes.csv"
    path.write_text("MYC,EGFR\n3.5,1\n")
    np.testing.assert_array_equal(read_vector(path, ["EGFR", "MYC"]), [1, 3.5])
    path.write_text("MYC,3.5\nEGFR,1\n")
    np.testing.assert_array_equal(read_vector(path, ["EGFR", "MYC"]), [1, 3.5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EGFR,1\nOTHER,2\n", "lacks 2 of the 3 names that the prior was trained with: TP53, MYC"),
        ("EGFR,nan\nTP53,2\nMYC,3", "no finite number for EGFR (nan)"),
        ("EGFR,1\nTP53,inf\nMYC,", "no finite number for TP53 (inf), MYC ()"),
        ("EGFR,TP53,MYC\n1,high,1e39\n", "no finite number for TP53 (high), MYC (1e39)"),
        ("EGFR,x\nTP53,2\nMYC,3", "no finite number for EGFR (x)"),
        ("EGFR,1\nTP53,2\nMYC,3\nMYC,3", "has MYC twice"),
        ("EGFR\n1\n2", "has 3 lines of 1 cells; expected two columns, name and value"),
        ("", "has 0 lines of no cells"),
        ("EGFR,1\nTP53,2,3\n", "has 2 lines of 2, 3 cells"),
        (b"\xff\xfe\x00", "is no CSV file"),
        (None, "no vector at"),
    ],
)
def test_vectors_that_are_none_are_refused(text, message, tmp_path):
    path = tmp_path / "genes.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        read_vector(path, GENES)
    assert message in line(error)


# Label maps


PAINTED = np.array([[0, 1, 2], [2, -1, 0]])


def paint(path, labels, mode="RGBA"):
    """A PNG of these labels; -1 is transparent, in a class's colour."""
    rgb = [[int(c[1:][i : i + 2], 16) for i in (0, 2, 4)] for c in (*COLOURS, COLOURS[0])]
    image = np.dstack([np.array(rgb, np.uint8)[labels], np.where(labels < 0, 0, 255)])
    image = Image.fromarray(image.astype(np.uint8))
    (image.quantize(8) if mode == "P" else image.convert(mode)).save(path)
    return path


@pytest.mark.parametrize("mode", ["RGBA", "P", "RGB"])
def test_a_painted_map_is_read_cell_by_cell(mode, tmp_path):
    labels = np.maximum(PAINTED, 0) if mode == "RGB" else PAINTED
    path = paint(tmp_path / "map.png", labels, mode)
    assert painted_size(path) == (2, 3)
    found = read_label_map(path, **SPEC["conditions"]["label_map"])
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, labels)
    check_asked(Asked(label_map=found), SPEC, 2, 3)


def test_a_colour_of_no_class_is_named_with_its_place_and_the_palette(tmp_path):
    image = np.asarray(Image.open(paint(tmp_path / "map.png", PAINTED))).copy()
    image[1, 2, :3] = 1, 2, 255
    Image.fromarray(image).save(tmp_path / "map.png")
    with pytest.raises(InputError) as error:
        read_label_map(tmp_path / "map.png", **SPEC["conditions"]["label_map"])
    for phrase in ("#0102ff at x=2, y=1", "1 pixels", "#e41a1c tumour, #377eb8 stroma"):
        assert phrase in line(error)


def test_what_is_no_png_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (3, 2)).save(tmp_path / "image.jpg")
    Image.fromarray(np.zeros((2, 3), np.uint16)).save(tmp_path / "deep.png")
    for name, message in [
        ("text.png", "is no PNG that can be read"),
        ("image.jpg", "is no PNG that can be read"),
        ("none.png", "no image at"),
        ("deep.png", "more than 8 bits"),
    ]:
        with pytest.raises(InputError) as error:
            read_label_map(tmp_path / name, **SPEC["conditions"]["label_map"])
        assert message in line(error)


# Masks


def mask(path, white, size=None):
    image = Image.fromarray(np.where(white, 255, 0).astype(np.uint8))
    image = image.resize(size, Image.Resampling.NEAREST) if size else image
    image.save(path)
    return path


@pytest.mark.parametrize("size", [None, (3, 2), (192, 128), (384, 256), (6, 4), (96, 64)])
def test_a_mask_of_any_size_says_which_cells(size, tmp_path):
    white = np.array([[False, True, False], [False, False, True]])
    path = mask(tmp_path / "mask.png", white, size)
    np.testing.assert_array_equal(read_mask(path, 192, 128, 64, 64), white)


def test_a_cell_is_made_anew_if_any_of_its_pixels_is_white(tmp_path):
    white = np.zeros((138, 192), bool)  # the last row of patches lies flush, from y = 74 on
    white[73, 127] = True
    expected = np.zeros((3, 3), bool)
    expected[1, 1] = True
    path = mask(tmp_path / "mask.png", white)
    np.testing.assert_array_equal(read_mask(path, 192, 138, 64, 64), expected)
    white[74, 128] = True
    expected[1:, 2] = True
    path = mask(tmp_path / "mask.png", white)
    np.testing.assert_array_equal(read_mask(path, 192, 138, 64, 64), expected)


def test_a_white_pixel_that_lies_in_two_cells_is_of_both(tmp_path):
    white = np.zeros((21, 31), bool)
    white[3, 10] = True  # columns 62 to 68 of the image: its cells meet at 64
    path = mask(tmp_path / "mask.png", white)
    expected = [[True, True, False], [False, False, False]]
    np.testing.assert_array_equal(read_mask(path, 192, 128, 64, 64), expected)


def test_masks_of_another_aspect_or_without_white_are_refused(tmp_path):
    transparent = np.zeros((4, 6, 4), np.uint8)
    transparent[..., :3] = 255
    Image.fromarray(transparent).save(tmp_path / "clear.png")
    mask(tmp_path / "square.png", np.ones((4, 4), bool))
    for name, message in [
        ("clear.png", "has no white pixel"),
        ("square.png", "of 4x4 px for an image of 192x128 px; expected one of its aspect, or 3x2"),
    ]:
        with pytest.raises(InputError) as error:
            read_mask(tmp_path / name, 192, 128, 64, 64)
        assert message in line(error)


# All of it together


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"label": {"LCIS": 1.0}}, "no class 'LCIS'"),
        ({"label": {"DCIS": 0.7}}, "expected numbers above 0 that sum to 1"),
        ({"label": {"DCIS": 1.5, "N": -0.5}}, "expected numbers above 0 that sum to 1"),
        ({"label": {}}, "expected numbers above 0 that sum to 1"),
        ({"text": " \n"}, "an empty text"),
        ({"vector": np.zeros(2, np.float32)}, "shape [2]; expected [3]"),
        ({"vector": np.array([0, np.nan, 1], np.float32)}, "TP53 (nan); expected finite numbers"),
        ({"vector": np.array([0, 1, -2], np.float32)}, "MYC (-2); expected finite numbers from 0"),
        ({"label_map": np.zeros((2, 2), np.int32)}, "2 x 2 cells for a grid of 2 x 3"),
        ({"label_map": np.full((2, 3), 3, np.int32)}, "labels 3 to 3 in a label map; expected 0"),
        ({"label_map": np.full((2, 3), -2, np.int32)}, "expected 0 to 2, or -1"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked, message):
    with pytest.raises(InputError) as error:
        check_asked(Asked(**asked), SPEC, 2, 3)
    assert message in line(error)


def test_conditions_that_the_prior_does_not_know_name_those_it_does():
    two = {"conditions": {name: SPEC["conditions"][name] for name in ("label", "vector")}}
    with pytest.raises(InputError, match="a text is asked for, .*; it takes label, vector$"):
        check_asked(Asked(text="tissue"), two, 1, 1)
    with pytest.raises(InputError, match="a label is asked for, .*; it takes no condition$"):
        condition({"conditions": {}}, "label")
    check_asked(Asked(), {"conditions": {}}, 1, 1)
