"""The command that measures a prior: end to end on records, with priors whose faults are known."""

import json
import re

import numpy as np
import pytest

from ssl_diffusion import evaluate_prior
from ssl_diffusion.data.grids import open_grids
from ssl_diffusion.data.records import open_records
from ssl_diffusion.data.writer import Layout, RecordsWriter
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation import prior_samples
from ssl_diffusion.evaluation.grids import Basis, GridSet
from ssl_diffusion.evaluation.prior_figures import component_colours, map_colours
from ssl_diffusion.evaluation.prior_measures import finite
from ssl_diffusion.evaluation.prior_page import shown
from ssl_diffusion.evaluation.real_grids import apart, main_class, read_real
from ssl_diffusion.models.grid_transformer import GridTransformer
from ssl_diffusion.prior.clusters import Clusters
from ssl_diffusion.prior.model import Prior

PATCH, DIM, SIDE = 8, 8, 12  # px, numbers of an embedding, patches along a side of an image
CLASSES = ("tissue", "land <b>")
CLUSTERS = tuple(f"{name} {number}" for name in CLASSES for number in (0, 1))
CENTRES = np.eye(4, DIM, dtype=np.float32)
LABELS = np.array([0, 0, 1, 1])  # of the clusters
CAPTIONS = {"tissue": ["a stained slide", "cells"], "land <b>": ["land from above"]}
CAPTIONS |= {"tissue 0": ["first of cells"], "land <b> 1": ["second of land"]}


def region(rng, label: int, rows: int, cols: int, clusters: np.ndarray | None = None):
    """Cells whose cluster changes along a line, and which share half of what else they have."""
    if clusters is None:
        beyond = np.arange(cols) >= rng.integers(1, cols)
        beyond = np.broadcast_to(beyond ^ rng.integers(2), (rows, cols))  # either first
        clusters = 2 * label + beyond
    shared = 0.2 * rng.standard_normal(DIM)
    return CENTRES[clusters] + shared + 0.1 * rng.standard_normal((rows, cols, DIM))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Eight images of two classes to train on, four held out; every 4 x 4 cells have a hole."""
    folder = tmp_path_factory.mktemp("records") / "records"
    writer = RecordsWriter(folder, ("train", "test"), Layout((1, DIM), classes=CLASSES))
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for number in range(count):
            blocks = [[region(rng, number % 2, 4, 4) for _ in range(3)] for _ in range(3)]
            cells = np.concatenate([np.concatenate(line, axis=1) for line in blocks])
            for row, col in np.ndindex(SIDE, SIDE):
                if row % 4 == col % 4 == 2:
                    continue
                example = {
                    "image": np.full((PATCH, PATCH, 3), row, np.uint8),
                    "x": PATCH * col + 4,
                    "y": PATCH * row,
                    "source": f"{split} {number}",
                    "label": number % 2,
                    "embedding": cells[row, col][None].astype(np.float32),
                }
                writer.add(split, example)
    recipe = {"encoder_sha256": "e"}
    writer.close({"recipe": recipe, "patch_px": PATCH, "mpp": 0.5, "classes": list(CLASSES)})
    return open_records(folder)


def prior_of(window: int = 4, **changes) -> Prior:
    """A prior without networks: what samples in its place is `sampler`."""
    spec = {
        "kind": "prior",
        "embedding": {"tokens": 1, "dim": DIM},
        "encoder_sha256": "e",
        "patch_px": PATCH,
        "mpp": 0.5,
        "labels": list(CLASSES),
        "conditions": {
            "label": {"classes": list(CLASSES)},
            "text": {"encoder": "minilm"},
            "label_map": {
                "classes": list(CLUSTERS),
                "colours": ["#ff0000", "#00ff00"] * 2,
                "labels": LABELS.tolist(),
            },
        },
    }
    prior = object.__new__(Prior)
    object.__setattr__(prior, "spec", spec | changes)
    object.__setattr__(prior, "network", GridTransformer(window, 4, 1, 1))
    object.__setattr__(prior, "extra", {"clusters": CENTRES})
    return prior


def sampler(kind: str, train: GridSet):
    """Stands in for sample_grids: a prior that "follows", "ignores" or "copies"."""

    def sample(prior, asked, rows, cols, *, samples, seed, progress):
        rng = np.random.default_rng(seed)
        if kind == "copies":
            return train.cells[rng.integers(len(train), size=samples)][:, :, :, None]
        found = []
        for _ in range(samples):
            label, clusters = int(rng.integers(2)), None
            if kind == "follows" and asked.label:
                label = CLASSES.index(max(asked.label, key=asked.label.get))
            if kind == "follows" and asked.text:
                label = int("land" in asked.text)
            if kind == "follows" and asked.label_map is not None:
                clusters = np.where(asked.label_map >= 0, asked.label_map, 0)
            found.append(region(rng, label, rows, cols, clusters))
        return np.stack(found)[:, :, :, None].astype(np.float32)

    return sample


@pytest.fixture(scope="module")
def train_grids(records) -> GridSet:
    grids = open_grids(records, 4, ("train",))["train"]
    return read_real(grids, 4, 4, kinds=(), clusters=None).grids


def evaluate(monkeypatch, records, train, output, kind="follows", captions=CAPTIONS, **changes):
    file = output / "captions.json"
    output.mkdir(exist_ok=True)
    file.write_text(json.dumps(captions))
    prior = prior_of(**changes)
    monkeypatch.setattr(evaluate_prior, "load_prior", lambda folder, text_encoder: prior)
    monkeypatch.setattr(prior_samples, "sample_grids", sampler(kind, train))
    evaluate_prior.FLAGS(
        ["evaluate_prior", "--model=m", f"--records={records.folder}", f"--output={output}"]
        + ["--samples=12", f"--captions={file}"]
    )
    evaluate_prior.main()
    return json.loads((output / "report.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("kind", ["follows", "ignores", "copies"])
def test_priors_are_told_apart(monkeypatch, records, train_grids, tmp_path, kind):
    report = evaluate(monkeypatch, records, train_grids, tmp_path, kind)
    for condition in ("label", "text", "label_map"):
        told = report["agreement"][condition]
        assert told["held_out"]["balanced"]["value"] > 0.9
        chance = 0.25 if condition == "label_map" else 0.5
        assert told["cells"]["chance"] == chance
        for control in (told["cells"]["shuffled_balanced"], told["unconditional"]["balanced"]):
            assert control["value"] == pytest.approx(chance, abs=0.2)
        balanced = told["cells"]["balanced"]["value"]
        assert balanced > 0.9 if kind == "follows" else balanced < chance + 0.25, condition
    assert report["agreement"]["text"]["grids"]["grids"] == 24
    assert report["agreement"]["label_map"]["layout_ignored"]["balanced"]["value"] < 0.75
    of_cells = report["agreement"]["cell_text"]
    assert 0.4 < of_cells["expected"] < 0.75  # a line somewhere in the grid parts two classes
    if kind == "follows":  # the label of the cells, and a line anywhere
        assert of_cells["label"]["balanced"]["value"] > 0.85
        assert of_cells["cells"]["balanced"]["value"] == pytest.approx(0.5, abs=0.15)
    else:
        assert of_cells["label"]["balanced"]["value"] < 0.8
    names = {"no condition", "label maps"} | {
        f"{k} {c}" for k in ("label", "text") for c in CLASSES
    }
    assert set(report["sets"]) == names
    everything = report["sets"]["no condition"]
    copied = everything["copying"]
    assert (copied["nearer"]["value"] > 0.9) == (kind == "copies")
    assert (copied["ratio"]["value"] < 0.3) == (kind == "copies")
    frechet = everything["frechet"]
    assert frechet["horizontal_pair"]["samples"]["value"] < (
        0.5 * frechet["horizontal_pair"]["shuffled"]["value"]
    )
    assert (
        everything["coherence_gap"]["samples"]["value"]
        < (everything["coherence_gap"]["shuffled"]["value"])
    )
    if kind == "ignores":  # half of what is given for a label is of the other
        of_label = report["sets"]["label tissue"]["frechet"]["cell"]
        assert of_label["samples"]["value"] > 3 * of_label["held_out"]["value"]


def test_page_is_self_contained_and_escapes_names(monkeypatch, records, train_grids, tmp_path):
    report = evaluate(monkeypatch, records, train_grids, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "land &lt;b&gt;" in page and "land <b>" not in page
    urls = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(urls) == 2 and all(url.startswith("data:image/png;base64,") for url in urls)
    text = re.sub(r"base64,[^\"]*", "", page).lower()
    assert not re.search("<script|>nan|>none", text)
    assert report["remarks"] == []
    for name in ("grids.png", "coherence.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": {"tokens": 2, "dim": DIM}}, r"shape \[1, 8\]; the prior makes \[2, 8\]"),
        ({"encoder_sha256": "f"}, "of another encoder"),
        ({"patch_px": 16}, "records of 8 px patches; .* 16 px"),
        ({"mpp": 0.25}, "records at 0.5 µm per pixel, a prior at 0.25"),
        ({"labels": ["a"]}, "classes tissue, land <b>; those that the prior .* had a:"),
        ({"labels": []}, "had none"),
        ({"conditions": {}}, "not trained with text"),
        ({"window": 20}, r"0 grid\(s\) of 20 x 20 cells"),
        ({"captions": {"else": ["x"]}}, "of else; the classes are"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(
    monkeypatch, records, train_grids, tmp_path, changes, message
):
    with pytest.raises(InputError, match=message):
        evaluate(monkeypatch, records, train_grids, tmp_path, **changes)


# Real grids


def test_real_grids_share_no_pixel_and_know_their_classes(records):
    grids = open_grids(records, 4, ("train", "test"))["test"]
    chosen = apart(grids, 4, 4)
    assert len(chosen) >= 4 * 7  # of nine in each of 4 images
    seen = np.concatenate([grids.patches(int(i)).ravel() for i in chosen])
    assert (seen >= 0).sum() == len(np.unique(seen)) - 1 == len(chosen) * 15
    real = read_real(grids, 4, 4, kinds=("label", "label_map"), clusters=Clusters(CENTRES, LABELS))
    assert real.grids.cells.shape == (len(chosen), 4, 4, DIM)
    label, cluster = real.classes["label"], real.classes["label_map"]
    present = real.grids.present
    assert (label[~present] == -1).all() and (cluster[~present] == -1).all()
    assert (LABELS[cluster[present]] == label[present]).all()
    assert len(real.of_class("label", 0)) + len(real.of_class("label", 1)) == len(chosen)
    without = read_real(grids, 4, 4, kinds=("label_map",), clusters=None)
    np.testing.assert_array_equal(without.classes["label_map"], label)
    narrow = apart(grids, 2, 3)  # no holes: one lies at the third column of four
    assert (grids.patches(int(narrow[0]))[:2, :3] >= 0).all()


def test_main_class_is_that_of_most_known_cells():
    classes = np.array([[[1, 1, -1], [0, -1, -1]], [[-1] * 3] * 2, [[2, 2, 0], [0, 0, 1]]])
    assert main_class(classes).tolist() == [1, -1, 0]
    assert main_class(np.full((2, 1, 1), -1)).tolist() == [-1, -1]


# Pictures and numbers


def test_colours_are_those_of_components_and_holes_are_grey():
    cells = np.random.default_rng(0).standard_normal((500, 1, 1, 5)) * [4, 2, 1, 0.1, 0.1]
    basis = Basis.of(cells.reshape(-1, 5), 5)
    grids = GridSet(cells, np.arange(500).reshape(500, 1, 1) > 0)
    colours = component_colours(grids, basis)
    assert (colours[0] == 225).all()
    red = colours[1:, 0, 0, 0].astype(float)
    sure = np.abs(cells[1:, 0, 0, 0]) < 7
    assert abs(np.corrcoef(red[sure], cells[1:, 0, 0, 0][sure])[0, 1]) > 0.999
    assert component_colours(grids, Basis.of(cells.reshape(-1, 5), 2)).shape == (500, 1, 1, 3)
    painted = map_colours(np.array([[[1, -1]]]), ["#010203", "#0a0b0c"])
    assert painted.tolist() == [[[[10, 11, 12], [225, 225, 225]]]]


def test_numbers_are_printed_with_their_interval_and_nan_is_null():
    minus = "\N{MINUS SIGN}"
    assert shown({"value": -0.12345, "low": -0.2, "high": 0.1}) == f"{minus}0.123 [{minus}0.2, 0.1]"
    assert shown(0.25) == "0.25" and shown({"value": None}) == "\N{EN DASH}"
    assert finite({"a": [float("nan"), 1.0], "b": (np.inf,)}) == {"a": [None, 1.0], "b": [None]}
