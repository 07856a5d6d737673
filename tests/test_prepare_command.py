"""The command's flags, what it refuses, and what a set of settings comes to."""

import json
import sys

import numpy as np
import pytest
from absl.testing import flagsaver
from conftest import run_command
from PIL import Image
from slide_files import texture, write_raster

from ssl_diffusion import cli, prepare
from ssl_diffusion.data.records import open_records


def test_a_raster_by_flags_alone(tmp_path):
    """Near infrared, red and green of five bands of 16 bits, at 20 m of 10 m."""
    (tmp_path / "scenes").mkdir()
    bands = np.random.default_rng(0).integers(1, 3000, (5, 512, 512), np.uint16)
    bands[:, 300:, 300:] = 0
    for number, name in enumerate("abc"):
        bands[4] = number  # a band that is not read
        path, corner = tmp_path / "scenes" / f"{name}.tif", (500_000 + 5120 * number, 7_000_000)
        write_raster(path, bands, 10, corner=corner, nodata=0)
    result = run_command(
        *("prepare", f"--source={tmp_path / 'scenes'}", f"--output={tmp_path / 'records'}"),
        *("--patch_px=64", "--mpp=20m", "--bands=4,3,2", "--value_range=0,3000"),
        *("--min_saturation=0", "--jpeg_quality=95", "--held_out=0,0.4", "--workers=2"),
    )
    assert result.returncode == 0, result.stderr
    records = open_records(tmp_path / "records")
    # 4 x 4 patches, less those that reach into the corner without data; the same in all scenes.
    assert {s: records.count(s) for s in ("train", "val", "test")} == {
        "train": 2 * 12,
        "val": 0,
        "test": 12,
    }
    assert records.metadata["duplicates"]["across_splits"] == 12
    recipe = records.metadata["recipe"]
    assert (recipe["mpp"], recipe["stride_px"], recipe["bands"]) == (2e7, 64, [4, 3, 2])
    assert "12 of them in another split" in result.stderr
    source = json.loads((tmp_path / "records" / "sources.jsonl").read_text().splitlines()[0])
    assert source["crs"] == "EPSG:32721" and source["scale"] == [2.0, 2.0]


SMALL = ("--source_mpp=0.5", "--patch_px=32")


def refused(capsys, words: list[str]) -> str:
    """What the command prints as it refuses, in this process."""
    saved = flagsaver.save_flag_values(prepare.FLAGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["prepare", "--workers=0", *words])
        patch.setitem(sys.modules, "apache_beam", None)  # as where it is not installed
        try:
            with pytest.raises(SystemExit) as stopped:
                cli.run(prepare.main, prepare.FLAGS)
        finally:
            flagsaver.restore_flag_values(saved, prepare.FLAGS)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "needs --source=PATH or --config=FILE.py"),
        (["--source={tmp}"], "needs --output=DIR"),
        (["--source={tmp}/none", "--output={tmp}/r"], "no images in"),
        (["--source={tmp}", "--output={tmp}/r", "--mpp=fine"], "--mpp=fine; expected µm per pixel"),
        (["--source={tmp}", "--output={tmp}/r", "--shard=4/4"], "expected 0/4 to 3/4"),
        (["--source={tmp}", "--output={tmp}/r", "--bands=a,b,c"], "expected numbers by commas"),
        (["--source={tmp}", "--output={tmp}/r", "--patch_px=0"], "patch_px is 0"),
        (["--source={tmp}", "--output={tmp}/r"], "does not say its µm per pixel; say it"),
        (["--source={tmp}", "--output={tmp}/r", "--source_mpp=0.5"], "less than a patch of 256 px"),
        (
            [
                "--source={tmp}",
                "--output={tmp}/r",
                "--beam=--x",
                *"--source_mpp=.5 --patch_px=32".split(),
            ],
            "needs Apache Beam: pip install",
        ),
        (["--source=tfds:none", "--output={tmp}/r"], "no tfds:none in"),
        (
            ["--source={tmp}", "--output={tmp}/r", "--encoder=no_such:thing", *SMALL],
            "cannot be imported",
        ),
        (["--source={tmp}/a.png", "--output={tmp}/a.png"], "is a file; give a folder"),
    ],
)
def test_what_cannot_be_prepared_is_one_line(tmp_path, words, message, capsys):
    Image.fromarray(texture(0, 100, 100)).save(tmp_path / "a.png")
    Image.fromarray(texture(1, 100, 100)).save(tmp_path / "b.png")
    Image.fromarray(texture(2, 100, 100)).save(tmp_path / "c.png")
    error = refused(capsys, [word.format(tmp=tmp_path) for word in words]).splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "r").exists()
