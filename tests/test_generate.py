"""The generate command: formats, options, what it refuses, canvases on disk, killed runs."""

import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from conftest import ROOT
from PIL import Image

from ssl_diffusion import cli, generate
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.errors import InputError
from ssl_diffusion.grid_source import open_reference
from ssl_diffusion.stitching.output import write_image
from ssl_diffusion.stitching.sweep import Sweep

SLIDE = "demo:cmu_small_region.svs"
REGION = "768,2048,128,96"


def run(*arguments):
    """The command in this process: the network is compiled once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["generate", "--window_batch=4", *map(str, arguments)])
        generate.FLAGS.unparse_flags()
        cli.run(generate.main, generate.FLAGS)


def settings(path):
    return json.loads(path.with_suffix(".json").read_text())


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def model(run_dir):
    return f"--model={run_dir / 'model'}"


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """A folder with image.png, image.json and grid.npy of a region of the shipped slide."""
    folder = tmp_path_factory.mktemp("made")
    run(
        model,
        f"--reference={SLIDE}",
        f"--region={REGION}",
        f"--output={folder / 'image.png'}",
        f"--save_grid={folder / 'grid.npy'}",
    )
    return folder


def test_an_image_has_the_size_of_its_region_and_its_settings_beside_it(made):
    assert pixels(made / "image.png").shape == (96, 128, 3)
    found = settings(made / "image.png")
    assert found["region"] == [768, 2048, 128, 96] and found["reference"] == SLIDE
    assert (found["rows"], found["cols"], found["patch_px"], found["mpp"]) == (2, 2, 64, 0.5)
    assert (found["width_px"], found["height_px"], found["seed"]) == (128, 96, 0)
    assert (found["scheme"], found["solver"], found["grid_stride_px"]) == ("overlap", "dpmpp", 64)
    assert found["seconds"] > 0 and len(found["model_sha256"]) == 64
    assert np.load(made / "grid.npy").shape == (2, 2, 1, 192)


def test_every_format_holds_the_same_pixels(model, made, tmp_path):
    """And the saved grid makes the same image: no pixel of the reference reaches it."""
    expected = pixels(made / "image.png")
    with h5py.File(tmp_path / "grid.h5", "w") as file:
        file["grid"] = np.load(made / "grid.npy")
    for name, options, read in [
        ("a.png", [], pixels),
        ("a.tif", ["--compression=deflate"], tifffile.imread),
        ("b.ome.tif", ["--compression=deflate"], tifffile.imread),
        ("c.zarr", [], lambda path: np.moveaxis(zarr.open_group(path)["0"][...], 0, -1)),
    ]:
        grid = f"--grid={tmp_path / 'grid.h5'}"
        again = ["--overwrite"] if name == "a.tif" else []  # the a.json of a.png is in its way
        run(model, grid, "--size=128x96", f"--output={tmp_path / name}", *options, *again)
        np.testing.assert_array_equal(read(tmp_path / name), expected)
        assert settings(tmp_path / name)["seed"] == 0
    assert not list(tmp_path.glob("*unfinished*")) and not list(tmp_path.glob(".*"))


def test_options_reach_the_image_and_the_settings(model, made, tmp_path):
    output = tmp_path / "image.png"
    run(
        model,
        f"--grid={made / 'grid.npy'}",
        "--scheme=shifted",
        "--solver=unipc",
        "--steps=3",
        "--guidance=3",
        "--guidance_interval=0.1,2",
        "--seed=7",
        f"--output={output}",
    )
    assert pixels(output).shape == (128, 128, 3)  # the grid's own size
    found = settings(output)
    names = ("scheme", "solver", "steps", "guidance", "guidance_interval", "seed")
    assert [found[name] for name in names] == ["shifted", "unipc", 3, 3.0, [0.1, 2.0], 7]
    difference = np.abs(pixels(output)[:96].astype(int) - pixels(made / "image.png"))
    assert difference.mean() > 5


def test_a_dense_grid_is_embedded_at_its_stride(model, made, tmp_path):
    reference = (f"--reference={SLIDE}", f"--region={REGION}", "--grid_stride=16")
    run(model, *reference, f"--output={tmp_path / 'a.png'}", f"--save_grid={tmp_path / 'g.npy'}")
    grid, coarse = np.load(tmp_path / "g.npy"), np.load(made / "grid.npy")
    assert grid.shape == (3, 5, 1, 192)
    np.testing.assert_allclose(grid[::2, ::4], coarse, atol=1e-4 * np.abs(coarse).max())
    assert settings(tmp_path / "a.png")["grid_stride_px"] == 16
    from_grid = (f"--grid={tmp_path / 'g.npy'}", "--grid_stride=16")
    run(model, *from_grid, f"--output={tmp_path / 'b.png'}")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


# Regions


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    """A slide of three levels at 0.25 µm."""
    path = tmp_path_factory.mktemp("pyramid") / "slide.tif"
    image = open_image(SLIDE).read(0, 0, 1024, 768)
    write_image(path, [image, image[::2, ::2], image[::4, ::4]], mpp=0.25, description={})
    return path


def region(pyramid, *arguments):
    """The region that the flags mean at 0.5 µm, half the file's resolution."""
    generate.FLAGS.unparse_flags()
    given = ["--model=m", "--output=o", f"--reference={pyramid}", *arguments]
    generate.FLAGS(["generate", *given])
    generate.check_flags()
    return open_reference(generate.FLAGS, 0.5)[1]


def test_a_region_counts_in_pixels_of_the_model_of_a_level_or_of_a_size(pyramid):
    asked = (64, 32, 128, 96)
    assert region(pyramid) == (0, 0, 512, 384)
    assert region(pyramid, "--region=64,32,128,96") == asked
    assert region(pyramid, "--region=128,64,256,192", "--level=0") == asked
    assert region(pyramid, "--region=64,32,128,96", "--level=1") == asked
    assert region(pyramid, "--region=32,16,64,48", "--level=2") == asked
    assert region(pyramid, "--region=16,8,32,24", "--mpp=2") == asked
    for arguments, message in [
        (["--region=32,16,64,48", "--level=3"], "level 3 of .* has 3; expected 0 to 2"),
        (["--region=32,16,64,48", "--level=2", "--mpp=1"], "--level and --mpp both"),
        (["--region=0,0,300,48", "--level=2"], "region 0,0,600,96 .* is not inside"),
        (["--region=0,0,300"], "--region=0,0,300; expected x,y,width,height"),
    ]:
        with pytest.raises(InputError, match=message):
            region(pyramid, *arguments)


# Beyond memory


def test_a_canvas_on_disk_gives_the_same_image_and_leaves_nothing_behind(model, made, tmp_path):
    output = tmp_path / "image.tif"
    given = (model, f"--grid={made / 'grid.npy'}", "--size=128x96", f"--output={output}")
    run(*given, "--max_canvas_gb=0", "--compression=deflate")
    difference = np.abs(tifffile.imread(output).astype(int) - pixels(made / "image.png"))
    # Windows add up in another order: rounding, which may tip a pixel to the next level.
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    assert {path.name for path in tmp_path.iterdir()} == {"image.tif", "image.json"}


def test_a_killed_run_goes_on_with_the_same_command(model, made, tmp_path, monkeypatch):
    arguments = [
        model,
        f"--reference={SLIDE}",
        "--region=768,2048,192,192",
        "--max_canvas_gb=0",
        "--guidance_interval=0,1000",
        "--solver=dpmpp",
        "--steps=4",
    ]
    output, folder = tmp_path / "image.png", tmp_path / "image.png.unfinished"
    saves = f"--save_grid={tmp_path / 'grid.npy'}"  # there already when the run goes on
    killed = subprocess.Popen(
        [sys.executable, "-m", "ssl_diffusion.generate", "--window_batch=4"]
        + [*arguments, f"--output={output}", saves],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    progress = folder / "progress.json"
    try:
        while killed.poll() is None:
            if progress.exists() and json.loads(progress.read_text())["done"]["evaluation"]:
                break
            time.sleep(0.05)
    finally:
        killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and not output.exists()

    monkeypatch.setattr(Sweep, "_start", lambda *arguments: pytest.fail("started anew"))
    np.save(tmp_path / "other.npy", np.zeros((2, 2, 1, 192), np.float32))
    with pytest.raises(SystemExit):  # a file of somebody else's is not taken for the run's own
        run(*arguments, f"--output={output}", f"--save_grid={tmp_path / 'other.npy'}")
    assert not np.load(tmp_path / "other.npy").any()
    run(*arguments, f"--output={output}", saves)
    monkeypatch.undo()
    run(*arguments, f"--output={tmp_path / 'whole.png'}")
    np.testing.assert_array_equal(pixels(output), pixels(tmp_path / "whole.png"))
    assert not folder.exists()


# Bad input


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        ([], ["either --reference=IMAGE or --grid=FILE", "not both"]),
        (["{grid}", f"--reference={SLIDE}"], ["either --reference=IMAGE or --grid=FILE"]),
        (["{grid}", f"--region={REGION}"], ["--region is a region of --reference"]),
        (["{grid}", "--window_batch=0"], ["--window_batch=0; expected auto, or a whole number"]),
        (["{grid}", "--window_batch=x"], ["--window_batch=x; expected auto"]),
        (["{grid}", "--size=128"], ["--size=128; expected width x height"]),
        (["{grid}", "--size=256x96"], ["2 rows and 2 columns", "expected 2 rows and 4 columns"]),
        (["{grid}", "--size=128x63"], ["128x63 px; expected at least one patch, 64x64 px"]),
        (["{grid}", "--grid_stride=66"], ["every 66 px; expected a multiple of 4"]),
        (["{grid}", "--stride=17"], ["stride 17; expected 1 to 16"]),
        (["{grid}", "--steps=2000"], ["2000 sampling steps"]),
        (["{grid}", "--solver=euler"], ["solver", "euler"]),
        (["{grid}", "--scheme=spot"], ["scheme", "spot"]),
        (["{grid}", "--guidance_interval=2"], ["--guidance_interval=2; expected low,high"]),
        (["{grid}", "--guidance_interval=3,2"], ["interval"]),
        (["{grid}", "--save_grid={tmp}/g.h5"], ["does not end in .npy"]),
        (["{grid}", "--output={tmp}/x.jpg"], ["ends in none of", ".zarr, .png"]),
        (["{grid}", "--output={tmp}/old.png"], ["old.png exists already", "--overwrite"]),
        (["{grid}", "--output={tmp}/notes.png"], ["notes.json exists already", "--overwrite"]),
        (["{grid}", "--output={tmp}/x.png", "--compression=jpeg"], ["jpeg compression of a .png"]),
        (["--grid={tmp}/wide.npy"], ["[2, 2, 1, 64]", "[rows, cols, 1, 192]"]),
        (["--grid={tmp}/nan.npy"], ["NaN, infinity", "in 1 cells"]),
        (["--grid={tmp}/none.npy"], ["no grid at", "none.npy"]),
        (["--grid={tmp}/text.svs"], ["no .npy, .safetensors or .h5"]),
        (["--reference={tmp}/text.svs"], ["no slide"]),
        (["--reference={tmp}/plain.png"], ["does not say its µm per pixel", "--reference_mpp"]),
        ([f"--reference={SLIDE}", "--region=2000,0,512,512"], ["2000,0,512,512", "2220x2967"]),
        ([f"--reference={SLIDE}", "--region=0,0,512,63"], ["512x63 px; expected at least one"]),
        ([f"--reference={SLIDE}", f"--region={REGION}", "--level=9"], ["level 9"]),
        (["{grid}", "--model={tmp}"], ["model.json"]),
        (["{grid}", "--save_grid={tmp}/nan.npy"], ["nan.npy exists already", "--overwrite"]),
        (["{grid}", "--seed=4294967296"], ["seed 4294967296; expected 0 to 4294967295"]),
        (["{grid}", "--max_canvas_gb=nan"], ["--max_canvas_gb=nan; expected a finite number"]),
        (["{grid}", "--window_batch=\u00b2"], ["expected auto, or a whole number"]),
        ([f"--reference={SLIDE}", "--level=0"], ["what --region counts in", "leave them out"]),
        (
            [f"--reference={SLIDE}", "--region=0,0,128,96", "--size=96x128"],
            ["--size=96x128 of a reference region of 128x96 px"],
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments, phrases, model, made, tmp_path, capsys, monkeypatch
):
    (tmp_path / "text.svs").write_text("these are notes, not a slide")
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    grid = np.load(made / "grid.npy")
    np.save(tmp_path / "wide.npy", grid[..., :64])
    grid[1, 0, 0, 5] = np.nan
    np.save(tmp_path / "nan.npy", grid)
    Image.new("RGB", (128, 128)).save(tmp_path / "plain.png")
    Image.new("RGB", (128, 128)).save(tmp_path / "old.png")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(generate.LargeImage, "latent", lambda *a: pytest.fail("reached the model"))
    places = {"tmp": tmp_path, "grid": f"--grid={made / 'grid.npy'}"}
    arguments = [argument.format(**places) for argument in arguments]
    with pytest.raises(SystemExit) as stopped:
        run(model, f"--output={tmp_path / 'x.tif'}", *arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    for phrase in phrases:
        assert phrase in error, error
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
