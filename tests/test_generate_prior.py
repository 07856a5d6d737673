"""generate without a reference, and editing, with a prior that stands in for a trained one."""

import logging
import re
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_asked import COLOURS
from test_generate import SLIDE, pixels, settings

from ssl_diffusion import cli, demo, generate, grid_source
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.files import sha256
from ssl_diffusion.stitching.sweep import Sweep
from ssl_diffusion.weights.folder import SPEC as SPEC_FILE
from ssl_diffusion.weights.folder import WEIGHTS

REGION = "768,2048,448,320"
CLASSES = ["glass", "tissue"]
SPEC = {
    "embedding": {"tokens": 1, "dim": 192},
    "encoder_sha256": [sha256(demo.resolve(demo.ENCODER) / name) for name in (SPEC_FILE, WEIGHTS)],
    "patch_px": 64,
    "mpp": 0.5,
    "conditions": {
        "label": {"classes": CLASSES},
        "text": {"encoder": "minilm", "dim": 384},
        "vector": {"names": ["EGFR", "MYC"], "log1p": False},
        "label_map": {"classes": ["a", "b", "c"], "colours": COLOURS},
    },
    "sampling": {"steps": 8, "guidance": 2.0, "solver": "unipc"},
}


class StandIn:
    """A prior whose grids are noise about a mean that labels move."""

    tokens, dim, window, spec = 1, 192, 4, SPEC

    def __init__(self):
        self.calls = []

    def embed_text(self, text):
        return np.zeros((1, 3), np.float32)

    def sample(self, prior, asked, rows, cols, *, samples, seed, sampling, keep, start, progress):
        self.calls.append((asked, sampling))
        moved = sum(CLASSES.index(name) * share for name, share in (asked.label or {}).items())
        shape = rows, cols, self.tokens, self.dim
        grids = [np.random.default_rng([seed, k]).normal(moved, 1, shape) for k in range(samples)]
        if start:
            grids = [start[0] * (1 - start[1]) + start[1] * grid for grid in grids]
        if keep:
            grids = [np.where(keep[1][..., None, None], grid, keep[0]) for grid in grids]
        return np.stack(list(progress(grids))).astype(np.float32)


@pytest.fixture
def prior(monkeypatch):
    prior = StandIn()
    monkeypatch.setattr(grid_source, "load_prior", lambda folder, text_encoder: prior)
    monkeypatch.setattr(grid_source, "sample_grids", prior.sample)
    return prior


@pytest.fixture
def run(run_dir, tmp_path, monkeypatch):
    """The command in this process, in a folder with a prior."""
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "weights.safetensors").write_bytes(b"weights")

    def run(*arguments):
        given = [f"--model={run_dir / 'model'}", "--window_batch=4", "--steps=1", *arguments]
        given = [str(word).format(tmp=tmp_path) for word in given]
        monkeypatch.setattr(sys, "argv", ["generate", *given])
        generate.FLAGS.unparse_flags()
        cli.run(generate.main, generate.FLAGS)

    return run


PRIOR = "--prior={tmp}/prior"


def test_samples_have_their_own_grids_names_and_settings(run, prior, tmp_path):
    (tmp_path / "genes.csv").write_text("MYC,2\nEGFR,1\n")
    of = ["--label=tissue:3,glass:1", "--text=tissue", "--vector={tmp}/genes.csv", "--seed=5"]
    many = [PRIOR, *of, "--size=130x64", "--samples=2", "--prior_steps=3", "--prior_guidance=1.5"]
    files = "--output={tmp}/a.ome.tif", "--compression=deflate", "--save_grid={tmp}/g.npy"
    run(*many, *files)
    images = [tifffile.imread(tmp_path / f"a-{k}.ome.tif") for k in range(2)]
    grids = [np.load(tmp_path / f"g-{k}.npy") for k in range(2)]
    assert images[0].shape == (64, 130, 3) and grids[0].shape == (1, 3, 1, 192)
    assert grids[0].mean() == pytest.approx(0.75, abs=0.15)
    assert np.abs(images[0].astype(int) - images[1]).mean() > 5
    asked, sampling = prior.calls[0]
    assert asked.label == {"tissue": 0.75, "glass": 0.25} and asked.text == "tissue"
    assert asked.vector.tolist() == [1, 2] and (sampling.steps, sampling.guidance) == (3, 1.5)
    found = settings(tmp_path / "a-1.ome.tif")
    assert (found["seed"], found["prior"]["seed"], found["prior"]["sample"]) == (6, 5, 1)
    assert found["prior"]["label"] == asked.label and found["prior"]["text"] == "tissue"
    assert found["prior"]["vector_sha256"] == sha256(tmp_path / "genes.csv")
    assert found["prior"]["sha256"] == sha256(tmp_path / "prior" / "weights.safetensors")
    assert (found["prior"]["steps"], found["steps"], found["reference"]) == (3, 1, None)

    # A saved grid and the image's own seed make the image again.
    run("--grid={tmp}/g-1.npy", "--seed=6", "--size=130x64", "--output={tmp}/b.png")
    np.testing.assert_array_equal(pixels(tmp_path / "b.png"), images[1])
    assert settings(tmp_path / "b.png")["prior"] is None

    # What is made already is left, what is missing is made again, and the same: also where a run
    # ended after the grid was kept and before the image.
    for name in ("a-1.ome.tif", "a-1.ome.json"):
        (tmp_path / name).unlink()
    before = (tmp_path / "a-0.ome.tif").stat().st_mtime_ns
    run(*many, *files)
    assert (tmp_path / "a-0.ome.tif").stat().st_mtime_ns == before
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a-1.ome.tif"), images[1])
    with pytest.raises(SystemExit):  # there is another image
        run(*many, *files, "--seed=6")


def test_a_label_map_says_the_size(run, prior, tmp_path):
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "map.png")
    run(PRIOR, "--label_map={tmp}/map.png", "--output={tmp}/a.png")
    assert pixels(tmp_path / "a.png").shape == (128, 192, 3)
    np.testing.assert_array_equal(prior.calls[0][0].label_map, np.full((2, 3), 2))
    assert settings(tmp_path / "a.png")["prior"]["label_map_sha256"]


@pytest.fixture
def mask(tmp_path):
    white = np.zeros((5, 7), np.uint8)
    white[2, 3] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    return "--mask={tmp}/mask.png"


def test_a_masked_edit_keeps_every_pixel_beyond_its_reach(run, prior, mask, tmp_path, caplog):
    reference = (f"--reference={SLIDE}", f"--region={REGION}")
    run(PRIOR, *reference, mask, "--output={tmp}/a.png", "--save_grid={tmp}/g.npy")
    real = open_image(SLIDE).read(*map(int, REGION.split(",")))
    difference = np.abs(pixels(tmp_path / "a.png").astype(int) - real).max(axis=2)
    inside = np.zeros(difference.shape, bool)
    inside[2 * 64 - 32 : 3 * 64 + 32, 3 * 64 - 32 : 4 * 64 + 32] = True
    assert difference[~inside].max() == 0
    assert difference[2 * 64 : 3 * 64, 3 * 64 : 4 * 64].mean() > 10
    found = settings(tmp_path / "a.png")
    assert found["kept_pixels_exact"] and found["prior"]["mask_sha256"]
    assert found["prior"]["solver"] == prior.calls[0][1].solver == "ddim" != found["solver"]
    run(*reference, "--output={tmp}/plain.png", "--save_grid={tmp}/plain.npy")
    edited, plain = np.load(tmp_path / "g.npy"), np.load(tmp_path / "plain.npy")
    assert (np.argwhere((edited != plain).any(axis=(2, 3))) == [[2, 3]]).all()

    with caplog.at_level(logging.WARNING):
        run(PRIOR, *reference, mask, "--output={tmp}/lossy.tif")
    assert "JPEG changes every pixel" in caplog.text
    assert not settings(tmp_path / "lossy.tif")["kept_pixels_exact"]


def test_variations_and_blends(run, prior, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(1, 2, 1, 192)).astype(np.float32))
    one, two = np.load(tmp_path / "one.npy"), np.load(tmp_path / "two.npy")
    given = ["--grid={tmp}/one.npy", "--save_grid={tmp}/g.npy", "--overwrite"]
    run(*given, PRIOR, "--variation=0.25", "--output={tmp}/a.png")
    noise = np.random.default_rng([0, 0]).normal(0, 1, one.shape)
    np.testing.assert_allclose(np.load(tmp_path / "g.npy"), 0.75 * one + 0.25 * noise, atol=1e-5)
    assert settings(tmp_path / "a.png")["prior"]["variation"] == 0.25
    blend = [*given, "--blend_with={tmp}/two.npy", "--output={tmp}/b.png"]
    for part, expected in ((0, one), (1, two)):
        run(*blend, f"--blend={part}")
        np.testing.assert_allclose(np.load(tmp_path / "g.npy"), expected, atol=1e-5)
    run(*blend, "--blend=0.5")
    between = np.load(tmp_path / "g.npy")
    norms, of_one = (np.linalg.norm(grid, axis=-1) for grid in (between, one))
    assert (norms > 0.9 * of_one.min()).all()  # on the arc: a chord would come to 0.7
    cosines = [(between * e).sum(-1) / np.linalg.norm(e, axis=-1) / norms for e in (one, two)]
    np.testing.assert_allclose(*cosines, atol=0.05)
    found = settings(tmp_path / "b.png")
    assert found["blend"] == 0.5 and found["blend_with"].endswith("two.npy")


def test_samples_on_disk_that_were_stopped_go_on_with_the_same_command(
    run, prior, tmp_path, monkeypatch
):
    command = [PRIOR, "--size=128x128", "--samples=2", "--max_canvas_gb=3e-5"]
    original = Sweep._finish_band

    def finish_band(self, *arguments):
        original(self, *arguments)
        if self.folder.name.startswith("a-1"):
            raise KeyboardInterrupt

    def started_anew(self, *arguments):
        pytest.fail("started anew")

    files = "--output={tmp}/a.png", "--save_grid={tmp}/g.npy"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Sweep, "_finish_band", finish_band)
        run(*command, *files)
    assert (tmp_path / "a-0.json").is_file() and (tmp_path / "a-1.png.unfinished").is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "_start", started_anew)
        run(*command, *files)
    assert not list(tmp_path.glob("*.unfinished"))
    run("--grid={tmp}/g-1.npy", "--seed=1", "--max_canvas_gb=3e-5", "--output={tmp}/b.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a-1.png"), pixels(tmp_path / "b.png"))


# Bad input

SIZED = [PRIOR, "--size=128x128"]
EDITED = [PRIOR, f"--reference={SLIDE}", f"--region={REGION}"]


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        ([], ["either --reference=IMAGE or --grid=FILE", "or --prior=DIR"]),
        ([PRIOR], ["give --size=WxH", "--label_map"]),
        ([*SIZED, "--label=DCIS"], ["no class 'DCIS'; the prior knows glass, tissue"]),
        ([*SIZED, "--label=tissue:0"], ["finite numbers above 0"]),
        ([*SIZED, "--text="], ["an empty text"]),
        ([*SIZED, "--vector={tmp}/few.csv"], ["lacks 1 of the 2 names", "MYC"]),
        ([*SIZED, "--vector={tmp}/nan.csv"], ["no finite number for MYC (nan)"]),
        ([PRIOR, "--label_map={tmp}/red.png"], ["#ff0000 at x=1, y=0", "#e41a1c a"]),
        ([*SIZED, "--label_map={tmp}/red.png"], ["2x1 px for a grid of 2 columns and 2 rows"]),
        (
            [PRIOR, "--size=1000000x1000000"],
            [" GB while it is sampled", "--max_grid_gb=4; raise it"],
        ),
        ([*SIZED, "--samples=2000000"], ["ask for a smaller --size or fewer --samples"]),
        ([*SIZED, "--size=63x128"], ["63x128 px; expected at least one patch"]),
        ([*SIZED, "--size=-5x0"], ["expected at least one patch"]),
        ([*SIZED, "--grid_stride=16"], ["--grid_stride=16 with --prior"]),
        ([*SIZED, "--seed=4294967295", "--samples=2"], ["seed 4294967296"]),
        ([*SIZED, "--mask={tmp}/white.png"], ["--mask is of --reference"]),
        ([*SIZED, "--variation=0.5"], ["--variation is of --reference or --grid"]),
        ([*SIZED, "--blend_with={tmp}/g.npy"], ["--blend_with=FILE and --blend=T go together"]),
        ([*SIZED, "--blend_with={tmp}/g.npy", "--blend=0.5"], ["of --reference or --grid"]),
        (["--size=128x128", "--label=tissue"], ["either --reference=IMAGE"]),
        (["--grid={tmp}/g.npy", "--label=tissue"], ["--label is of --prior=DIR"]),
        (["--grid={tmp}/g.npy", "--samples=2"], ["--samples is of --prior=DIR"]),
        (["--grid={tmp}/g.npy", "--mask={tmp}/white.png"], ["--mask is of --prior=DIR"]),
        (["--grid={tmp}/g.npy", PRIOR], ["give --mask or --variation"]),
        (["--grid={tmp}/g.npy", PRIOR, "--variation=0"], ["--variation=0; expected above 0"]),
        (
            ["--grid={tmp}/g.npy", "--blend_with={tmp}/wide.npy", "--blend=0.5"],
            ["of 2 rows and 3 columns, for a grid of 2 and 2"],
        ),
        ([*SIZED, "--text_encoder={tmp}"], ["--text_encoder is of --text"]),
        ([*EDITED, "--mask={tmp}/white.png", "--variation=0.5"], ["give one of them"]),
        ([*EDITED, "--mask={tmp}/black.png"], ["has no white pixel"]),
        ([*EDITED, "--mask={tmp}/square.png"], ["of 4x4 px for an image of 448x320 px"]),
        ([*EDITED, "--mask={tmp}/white.png", "--max_canvas_gb=4e-4"], ["an edit of 448x320 px"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments, phrases, run, prior, tmp_path, capsys, monkeypatch
):
    (tmp_path / "few.csv").write_text("EGFR,1\n")
    (tmp_path / "nan.csv").write_text("EGFR,1\nMYC,nan\n")
    Image.fromarray(np.array([[[0, 0, 0], [255, 0, 0]]], np.uint8)).save(tmp_path / "red.png")
    for name, size, colour in (("white", (7, 5), 255), ("black", (7, 5), 0), ("square", (4, 4), 1)):
        Image.new("L", size, colour).save(tmp_path / f"{name}.png")
    np.save(tmp_path / "g.npy", np.zeros((2, 2, 1, 192), np.float32))
    np.save(tmp_path / "wide.npy", np.zeros((2, 3, 1, 192), np.float32))
    before = set(tmp_path.iterdir())
    monkeypatch.setattr(grid_source, "sample_grids", lambda *a, **kw: pytest.fail("sampled"))
    monkeypatch.setattr(generate.LargeImage, "latent", lambda *a: pytest.fail("reached the model"))
    with pytest.raises(SystemExit) as stopped:
        run("--output={tmp}/x.tif", *arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    for phrase in phrases:
        assert phrase in error, error
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"embedding": {"tokens": 1, "dim": 64}},
            "a prior of embeddings with dim 64, a model with 192",
        ),
        ({"embedding": {"tokens": 2, "dim": 192}}, "with tokens 2, a model with 1"),
        ({"encoder_sha256": ["0" * 64, "1" * 64]}, "a prior of another encoder's embeddings"),
        ({"patch_px": 32}, "a prior of 32 px patches, a model of 64 px"),
        ({"mpp": 1.0}, "a prior at 1 µm per pixel, a model at 0.5"),
        ({"conditions": {}}, "a label is asked for, .* it takes no condition"),
    ],
)
def test_a_prior_of_other_embeddings_than_the_model_takes_is_refused(
    change, message, run, prior, capsys
):
    prior.spec = SPEC | change
    with pytest.raises(SystemExit):
        run(*SIZED, "--label=tissue", "--output={tmp}/x.png")
    assert re.search(message, capsys.readouterr().err)


def test_samples_of_another_grid_are_not_taken_for_made(run, prior, tmp_path):
    np.save(tmp_path / "g.npy", np.ones((2, 2, 1, 192), np.float32))
    varied = PRIOR, "--grid={tmp}/g.npy", "--variation=0.5", "--samples=2", "--output={tmp}/a.png"
    run(*varied)
    run(*varied, "--save_grid={tmp}/s.npy", "--overwrite")
    first = pixels(tmp_path / "a-0.png")
    np.save(tmp_path / "g.npy", -np.ones((2, 2, 1, 192), np.float32))
    with pytest.raises(SystemExit):
        run(*varied)
    np.testing.assert_array_equal(pixels(tmp_path / "a-0.png"), first)


def test_a_grid_that_is_asked_for_later_is_not_forgotten(run, prior, tmp_path):
    asked = PRIOR, "--size=64x64", "--samples=2", "--output={tmp}/a.png"
    run(*asked)
    with pytest.raises(SystemExit):  # the images are there, their grids are not
        run(*asked, "--save_grid={tmp}/s.npy")
    run(*asked, "--save_grid={tmp}/s.npy", "--overwrite")
    assert np.load(tmp_path / "s-1.npy").shape == (1, 1, 1, 192)
