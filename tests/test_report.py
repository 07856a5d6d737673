"""The report's page, its table and its figures."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_evaluation import picture
from PIL import Image
from sklearn.decomposition import PCA

from ssl_diffusion.evaluation import patch_figures, table
from ssl_diffusion.evaluation.figures import labelled_row, labelled_sheet, loss_curve
from ssl_diffusion.evaluation.large_numbers import LargeImage
from ssl_diffusion.evaluation.patch_figures import (
    component_scatter,
    distance_curves,
    similarity_histogram,
)
from ssl_diffusion.evaluation.report import Pictures, html_page, titles


class References(HTMLParser):
    """Collects every attribute that makes a browser fetch, and every tag that could."""

    def __init__(self):
        super().__init__()
        self.urls, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.urls += [
            v for k, v in attrs if k in ("src", "href", "srcset", "action", "data", "poster")
        ]


def assert_self_contained(page: str) -> References:
    found = References()
    found.feed(page)
    assert found.urls and all(url.startswith("data:image/png;base64,") for url in found.urls)
    assert not {"script", "link", "iframe", "object", "base"} & set(found.tags)
    assert not re.search(r"@import|url\(", page)
    return found


def test_page_is_self_contained_escapes_names_and_leaves_out_what_is_absent():
    image, none = picture(0, 32), np.array([], int)
    sets = {"stitched": {"seam": {"value": -0.5, "low": -1.0, "high": 0.25}}}
    report = {
        "large_image": {
            "images": 1, "sizes_px": [[32, 32]], "seconds": 2.0, "cells": {},
            "crops": {"size_px": 16, "of_each_image": 4}, "pixels": {"sets": sets},
        },
        "seconds": {"evaluate": 1.0, "train": None},
        "hardware": {"cpu": "<b>fast</b>"},
        "versions": {"jax": "0"},
        "pinned": {"a": {"<i>": [1, 2]}, "absent": None, "b": [{"seed": 3}, {"seed": 4}]},
    }  # fmt: skip
    origin = "<img src=http://x/y.png>.svs, corner"
    large = LargeImage(image, image, image, 16, none, none, 0.5, origin, False)
    settings = {"</pre>": {"a": "<script>"}}
    page = html_page(report, Pictures(large=[large]), loss_png=None, settings=settings)
    assert len(assert_self_contained(page).urls) == 3
    assert "&lt;b&gt;fast" in page and "&lt;/pre&gt;" in page and "&lt;script&gt;" in page
    assert "<h2>A large image" in page and "partly seen in training" in page
    for absent in ("<h2>Patches", "<h2>Training", "Sharpness", "None", "absent"):
        assert absent not in page
    assert "\N{MINUS SIGN}0.5<br>" in page and "\N{MINUS SIGN}1 to 0.25" in page
    assert "a › &lt;i&gt;</td><td>1, 2" in page
    assert "b › 0 › seed</td><td>3" in page and "b › 1 › seed</td><td>4" in page


def test_a_table_has_a_line_for_each_measure_and_a_column_for_each_set():
    sets = {
        "noise": {"fd": {"value": 250.1, "low": None, "high": None}},
        "samples": {"fd": {"value": 12.34, "low": 11.0, "high": 13.0}, "n": 5},
    }
    found = table.matrix(table.SETS, sets, title="FD (<b>)")
    assert found.index("<th>Samples") < found.index("<th>Pixel noise")
    assert found.count("<tr>") == 2 and "FD (&lt;b&gt;)" in found
    assert '<td class="value">12.3<br><span class=soft>11 to 13</span></td>' in found
    assert '<td class="control">250</td>' in found


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [(-0.12345, "", "\N{MINUS SIGN}0.123"), (26.04, "dB", "26 dB"), (1234.5, "", "1234"),
     ({"value": None}, "", table.NOTHING), (None, "", table.NOTHING)],
)  # fmt: skip
def test_numbers_are_printed_with_the_digits_that_count(number, unit, text):
    assert table.shown(number, unit) == text


def test_kid_is_said_of_fids_network_alone():
    assert titles("FID (clean resize)", "Crop-") == {
        "title": "Crop-FID (clean resize)",
        "kernel": "Crop-KID (clean resize)",
    }
    kernels = [titles(name)["kernel"] for name in ("FD (Inception)", "CLIP-FID", "FD (judge)")]
    assert kernels == [f"Kernel distance ({name})" for name in ("Inception", "CLIP", "judge")]


def test_figures_hold_every_pixel_they_show():
    a, b, c = (np.full((20, 30, 3), value, np.uint8) for value in (50, 100, 150))
    row = labelled_row([a, b, c], ["one", "two", "three"])
    sheet = labelled_sheet([[a, b], [b, c], [c, c]], ["x", "y", "z"], columns=2, zoom=2)
    for value, in_row, in_sheet in ((50, 1, 1), (100, 1, 2), (150, 1, 3)):
        assert (row == value).all(axis=2).sum() >= in_row * 600
        assert (sheet == value).all(axis=2).sum() >= in_sheet * 2400
    assert loss_curve([(1, 2.0)]).startswith(b"\x89PNG")
    assert loss_curve([(s, 1 / s) for s in range(1, 200)]).startswith(b"\x89PNG")


def test_plots_are_drawn_of_any_number_of_points():
    rng = np.random.default_rng(0)
    for count in (1, 40):
        values = rng.random(count)
        assert similarity_histogram(values, -values).startswith(b"\x89PNG")
        assert distance_curves({"samples": values, "real": values}).startswith(b"\x89PNG")
    features = rng.random((40, 6), np.float32)
    assert component_scatter(features, features[:3], features[:1]).startswith(b"\x89PNG")
    assert component_scatter(features[:, :1], features[:, :1], features[:, :1]) is None


def test_plots_side_by_side_have_one_size_and_points_of_the_whole_set(monkeypatch):
    rng = np.random.default_rng(0)
    features = rng.random((40, 6), np.float32)
    pngs = similarity_histogram(features[:, 0], features[:, 1]), component_scatter(*3 * [features])
    assert len({Image.open(io.BytesIO(png)).size for png in pngs}) == 1
    seen = {}

    def scatter_plot(points, *_):
        seen["points"] = points
        return b""

    monkeypatch.setattr(patch_figures, "scatter_plot", scatter_plot)
    monkeypatch.setattr(patch_figures, "POINTS", 2)
    component_scatter(features, features, features)
    ends = PCA(2, random_state=0).fit(features).transform(features[[0, -1]])
    np.testing.assert_allclose(seen["points"], np.concatenate([ends, ends]), atol=1e-5)
