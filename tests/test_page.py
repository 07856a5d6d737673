"""The page of a data set: what it counts, where it draws, and that names are only text."""

import html
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ssl_diffusion import demo
from ssl_diffusion.data import gallery, page
from ssl_diffusion.data.overview import (
    fit,
    patch_mask,
    principal_components,
    tint_png,
)
from ssl_diffusion.data.page import write_page
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.figures import scatter_plot

EVIL = "<script>alert('1')</script>\"&amp;$x$"
CLASSES = ["tumour", EVIL, "never"]
PATCH = 16
# Records by source and split, of which the first two labels are in turn.
SOURCES = (("one.png", {"train": 6, "test": 2}), (EVIL, {"train": 3, "val": 4, "test": 1}))


def write_records(folder, *, labels=True, embeddings=True, metadata=None):
    """Records of SOURCES; corners lie on a diagonal, so that the mask tells them apart."""
    features = {
        "image": tfds.features.Tensor(shape=(), dtype=np.object_),
        "source": tfds.features.Tensor(shape=(), dtype=np.object_),
        "x": np.int32,
        "y": np.int32,
    }
    if labels:
        features["label"] = np.int32
    if embeddings:
        features["embedding"] = tfds.features.Tensor(shape=(2, 8), dtype=np.float32)
    folder.mkdir()
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="patches", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict(
            {"recipe": {"encoder": "demo:encoder", "stride_px": 16}, "patch_px": PATCH, "mpp": 0.5}
            | ({"classes": CLASSES} if labels else {})
            | (metadata or {})
        ),
    )
    writer = tfds.core.SequentialWriter(info, 100, file_format="array_record")
    writer.initialize_splits(["train", "val", "test"])
    rng = np.random.default_rng(0)
    for source, counts in SOURCES:
        place = 0
        for split, count in counts.items():
            for _ in range(count):
                png = io.BytesIO()
                noise = rng.integers(0, 255, (PATCH, PATCH, 3), np.uint8)
                Image.fromarray(noise).save(png, "PNG")
                example = {
                    "image": png.getvalue(),
                    "source": source,
                    "x": place * PATCH,
                    "y": place * PATCH,
                    "label": place % 2 if split != "val" else -1,
                    "embedding": rng.standard_normal((2, 8)).astype(np.float32),
                }
                writer.add_examples({split: [{key: example[key] for key in features}]})
                place += 1
    writer.close_all()
    return folder


def write_sources(folder, **changes):
    """sources.jsonl: a file of 256 x 128 px, of which two make one of the records."""
    lines = [
        {"source": source, "path": str(folder / f"{number}.png"), "label": "", "group": source}
        | {"split": None, "patches": counts, "width": 256, "height": 128, "mpp": 0.25}
        | {"scale": [2.0, 1.0], "format": "image"}
        | changes
        for number, (source, counts) in enumerate(SOURCES)
    ]
    (folder / "sources.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


class Page(HTMLParser):
    """Tags, data URLs by class and the rows of the tables of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.images, self.rows, self.text = set(), [], [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        values = dict(attributes)
        assert not any(name.startswith("on") or name == "href" for name in values)
        if tag == "img":
            assert values["src"].startswith("data:image/")
            self.images.append(values)
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        self.text += data
        if self.lasttag in ("td", "th") and data.strip():
            self.rows[-1].append(data)

    def of(self, kind):
        return [image for image in self.images if image.get("class") == kind]

    def patches(self):
        return [image for image in self.images if "title" in image]


def pixels_of(image):
    from urllib.request import urlopen  # it reads data: URLs, and nothing else here

    with urlopen(image["src"]) as file:
        return np.asarray(Image.open(io.BytesIO(file.read())).convert("RGBA"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / EVIL.replace("/", "")
    duplicates = {"records": 5, "across_splits": 3, "examples": [[EVIL, 16, 32, "test"]]}
    write_records(folder, metadata={"duplicates": duplicates, "resampling": "lanczos", "unit": "m"})
    write_sources(folder)
    Image.new("RGB", (256, 128), (200, 100, 50)).save(folder / "0.png")
    failure = {"source": EVIL, "path": "/gone/<b>.svs", "reason": "no <i>slide</i>"}
    (folder / "failed.jsonl").write_text(f"{json.dumps(failure)}\n")
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    assert write_page(folder) == folder / "index.html"
    return Page(folder / "index.html")


def test_counts_are_those_of_the_records(whole):
    assert ["label", "train", "val", "test", "all"] in whole.rows
    # one.png: 0 1 0 1 0 1 | 0 1; the other: 0 1 0 | none x 4 | 1
    assert ["tumour", "5", "0", "1", "6"] in whole.rows
    assert [EVIL, "4", "0", "2", "6"] in whole.rows
    assert ["no label", "0", "4", "0", "4"] in whole.rows
    assert ["all", "9", "4", "3", "16"] in whole.rows
    assert not any(row and row[0] == "never" for row in whole.rows)
    assert "16 records: patches of 16 px (8 m) from 2 sources." in whole.text
    assert "3 train, 4 val, 1 test" in whole.text and "6 train, 2 test" in whole.text
    assert ["resampling", "lanczos"] in whole.rows and ["resolution", "0.5 m per px"] in whole.rows
    assert "5 records hold the very pixels" in whole.text and "3 of them" in whole.text


def test_everything_is_inside_and_names_are_text(whole):
    assert not {"script", "link", "iframe", "object", "base"} & whole.tags
    assert not re.search(r"@import|url\(|https?:", whole.source)
    assert EVIL not in whole.source and "<b>.svs" not in whole.source
    # heading, label, caption of the source, key of a plot, failed, duplicates
    assert whole.source.count(html.escape(EVIL)) > 6
    assert "no <i>slide</i>" in whole.text and "/gone/<b>.svs" in whole.text
    assert EVIL in {image["title"].partition(", x=")[0] for image in whole.patches()}


def test_contact_sheets_are_by_class_and_hold_the_patches(whole, folder):
    assert len(whole.patches()) == 16
    assert [pixels_of(image).shape for image in whole.patches()] == [(PATCH, PATCH, 4)] * 16
    titles = [image["title"] for image in whole.patches()]
    # train, "tumour" first: the even ones of one.png and of the other
    assert titles[:3] == [f"one.png, x={x} y={x}" for x in (0, 32, 64)]
    assert titles[3:5] == [f"{EVIL}, x={x} y={x}" for x in (0, 32)]
    assert titles[5] == "one.png, x=16 y=16"


def test_tint_lies_where_the_patches_are(whole):
    """32 x 16 px of the file each, on a diagonal; the second file is gone, its patches are not."""
    first, second = map(pixels_of, whole.of("tint"))
    assert first.shape == second.shape == (128, 256, 4)
    for tint, (_, counts) in zip((first, second), SOURCES, strict=True):
        expected = np.zeros((128, 256, 4), np.uint8)
        kinds = [split for split, count in counts.items() for _ in range(count)]
        for place, split in enumerate(kinds):
            rgb = bytes.fromhex(gallery.COLOURS[split][1:])
            expected[16 * place : 16 * place + 16, 32 * place : 32 * place + 32] = [
                *rgb,
                round(255 * gallery.OPACITY),
            ]
        np.testing.assert_array_equal(np.where(tint[..., 3:], tint, 0), expected)
    grounds = [image for image in whole.images if image["alt"].startswith("thumbnail of")]
    assert [image["alt"] for image in grounds] == ["thumbnail of one.png"]
    assert np.abs(pixels_of(grounds[0])[64, 128, :3].astype(int) - (200, 100, 50)).max() < 4


@pytest.mark.parametrize(
    "corner, scale, box",
    [
        ((4, 8), (1.0, 1.0), (4, 8, 8, 12)),
        ((4, 8), (0.5, 0.25), (2, 2, 4, 3)),
        ((3, 5), (0.5, 0.5), (2, 3, 4, 5)),  # from 1.5 to 3.5: the centres of pixels 2 and 3
        ((8, 8), (0.01, 0.01), (0, 0, 1, 1)),  # smaller than a pixel
        ((18, 14), (1.0, 1.0), (18, 14, 20, 16)),  # cut by the picture's end
        ((40, 32), (0.5, 0.5), (19, 15, 20, 16)),  # at the end, by rounding
    ],
)
def test_mask_is_exact_to_the_pixel(corner, scale, box):
    mask = patch_mask((20, 16), np.array([corner]), np.array([1]), 4, scale)
    left, top, right, bottom = box
    expected = np.zeros((16, 20), np.uint8)
    expected[top:bottom, left:right] = 2
    np.testing.assert_array_equal(mask, expected)


def test_neighbours_leave_no_gap_and_the_held_out_are_on_top():
    grid = np.array([(x, y) for y in range(0, 60, 7) for x in range(0, 60, 7)])
    mask = patch_mask((23, 23), grid, np.zeros(len(grid), int), 7, (0.37, 0.37))
    assert mask.all()
    corners = np.array([[4, 4], [0, 0], [2, 2]])
    mask = patch_mask((10, 10), corners, np.array([2, 0, 1]), 4, (1.0, 1.0))
    assert (mask[4:8, 4:8] == 3).all() and (mask[2:4, 2:6] == 2).all() and mask[0, 0] == 1
    tint = np.asarray(Image.open(io.BytesIO(tint_png(mask, ["#010203"] * 3, 1.0))).convert("RGBA"))
    assert tint[0, 0].tolist() == [1, 2, 3, 255] and tint[9, 9, 3] == 0


def test_thumbnail_has_the_proportion_of_the_slide_and_a_huge_level_is_not_read(monkeypatch):
    small = open_image(demo.SLIDE).thumbnail(320)
    assert small.shape == (320, 239, 3) and small.dtype == np.uint8
    assert fit(2220, 2967, 320) == (239, 320) and fit(50, 20, 320) == (50, 20)
    monkeypatch.setattr("ssl_diffusion.data.picture.LARGEST_LEVEL", 1_000_000)
    with pytest.raises(InputError, match="2220x2967"):
        open_image(demo.SLIDE).thumbnail(320)


def test_what_is_absent_is_left_out(tmp_path):
    folder = write_records(tmp_path / "plain", labels=False, embeddings=False)
    plain = Page(write_page(folder))
    for absent in ("Sources", "Embeddings", "Failed", "Duplicates", "no label", "None"):
        assert absent not in plain.text
    assert ["train", "val", "test", "all"] in plain.rows and ["all", "9", "4", "3", "16"] in (
        plain.rows
    )
    assert "patches of 16 px (8 µm)." in plain.text and len(plain.patches()) == 16
    write_sources(folder, width=None, height=None)  # lists of patches: nothing to draw on
    listed = Page(write_page(folder))
    assert "Sources" in listed.text and not listed.of("tint") and "6 train, 2 test" in listed.text


def test_sources_of_other_records_are_refused(tmp_path):
    folder = write_records(tmp_path / "records", embeddings=False)
    write_sources(folder, patches={"train": 9, "val": 4, "test": 3})
    with pytest.raises(InputError, match="counts 18 patches in train, but the records are 9"):
        write_page(folder)
    write_sources(folder, source="other.png")
    with pytest.raises(InputError, match=r"train\[0\] .* is of one.png.* of other.png"):
        write_page(folder)
    (folder / "sources.jsonl").write_text("no JSON\n")
    with pytest.raises(InputError, match=r"sources.jsonl is not one JSON object per line"):
        write_page(folder)


def test_many_sources_and_patches_are_thinned_and_the_page_says_so(folder, monkeypatch):
    monkeypatch.setattr(gallery, "SOURCES", 1)
    monkeypatch.setattr(gallery, "DRAWN", 4)
    monkeypatch.setattr(gallery, "EMBEDDINGS", 8)
    monkeypatch.setattr(gallery, "PATCHES", 2)
    monkeypatch.setattr(page, "LISTED", 0)
    thin = Page(write_page(folder))
    assert "1 of 2, spread over all" in thin.text and "4 of 8 drawn" in thin.text
    (tint,) = map(pixels_of, thin.of("tint"))
    assert (tint[..., 3] > 0).sum() == 4 * 32 * 16  # 3 of 6 in train, 1 of 2 in test
    assert (tint[:, :, :3] == list(bytes.fromhex(gallery.COLOURS["test"][1:]))).all(-1).sum() == 512
    assert "7 of 16, evenly spread" in thin.text and "2 of 9" in thin.text  # 4 + 2 + 1
    assert len(thin.patches()) == 6


def test_label_counts_of_the_description_are_taken(tmp_path):
    counts = {"train": [9, 0, 0, 0], "val": [0, 0, 4, 0], "test": [0, 3, 0, 0]}
    folder = write_records(tmp_path / "r", embeddings=False, metadata={"label_counts": counts})
    assert ["never", "0", "4", "0", "4"] in Page(write_page(folder)).rows


@pytest.mark.parametrize(
    "known, size, resolution",
    [
        ({"mpp": 0.5, "unit": "µm"}, "16 px (8 µm)", "0.5 µm per px"),
        ({"mpp": 1.0, "unit": "m"}, "16 px (16 m)", "1 m per px"),
        ({"mpp": 6e5, "unit": "m"}, "16 px (9.6 m)", "0.6 m per px"),
        ({"mpp": None}, "16 px", "not known"),
    ],
)
def test_sizes_are_in_the_unit_of_the_records(known, size, resolution, tmp_path):
    folder = write_records(tmp_path / "r", labels=False, embeddings=False, metadata=known)
    rows = Page(write_page(folder)).rows
    assert ["patch", size] in rows and ["resolution", resolution] in rows


def test_principal_components_find_the_plane_its_shares_and_its_sign():
    rng = np.random.default_rng(0)
    for column in (1, 2, 3):
        for sign in (1, -1):  # which way an SVD points is chance: not here
            angle = sign * rng.uniform(-0.2, 0.3, 200)
            flat = np.zeros((200, 4))
            flat[:, 0], flat[:, column] = np.cos(angle), np.sin(angle)
            points, (first, second) = principal_components(flat * rng.uniform(1, 9, (200, 1)))
            assert first > 0.99 and first + second == pytest.approx(1, abs=1e-5)
            assert np.corrcoef(points[:, 0], angle)[0, 1] > 0.999  # lengths do not count
            assert np.abs(points.mean(axis=0)).max() < 1e-5


def test_embeddings_that_are_not_finite_are_told(folder, monkeypatch):
    spread = gallery._spread

    def spoilt(records, split, most, *fields):
        examples = spread(records, split, most, *fields)
        if "embedding" in examples and split == "train":
            examples["embedding"][1] = np.nan
        return examples

    monkeypatch.setattr(gallery, "_spread", spoilt)
    told = Page(write_page(folder))
    assert "1 are not shown" in told.text and "15 of 16, evenly spread" in told.text
    assert len(told.of("plot")) == 2


def test_most_frequent_groups_are_coloured_and_the_rest_is_grey():
    names = np.array([f"s{n}" for n in range(14) for _ in range(20 - n)] + ["no label"] * 30)
    groups, colours, keys = gallery._groups(names)
    assert len(colours) == 11 and colours[-1] == gallery.OTHERS
    assert set(groups[names == "s0"]) == {0} and set(groups[names == "s9"]) == {9}
    assert set(groups[np.isin(names, ["s10", "s13", "no label"])]) == {10}
    assert "s9 (11)" in keys and "s10" not in keys and "5 others (64)" in keys
    plot = scatter_plot(np.eye(2), np.array([0, 1]), ["#ff0000", "#0000ff"], ("one", "two"))
    drawn = np.asarray(Image.open(io.BytesIO(plot)).convert("RGBA"))
    assert drawn.shape[:2] == (691, 806) and drawn[0, 0, 3] == 0
    red, blue = (drawn[..., channel] > drawn[..., 2 - channel] + 99 for channel in (0, 2))
    where_red, where_blue = np.argwhere(red).mean(0), np.argwhere(blue).mean(0)
    assert where_red[1] > where_blue[1] and where_red[0] > where_blue[0]  # (1, 0) is lower right
