"""Fifty slides, three of them broken: stopped, shared, and the same records in the end."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import ROOT
from ml_collections import ConfigDict
from slide_files import texture, write_slide

from ssl_diffusion import demo
from ssl_diffusion.data import plan, recipe
from ssl_diffusion.data.cutting import Cutters
from ssl_diffusion.data.patches import tissue_patches
from ssl_diffusion.data.records import open_records
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json
from ssl_diffusion.locks import only_one
from ssl_diffusion.prepare import prepare
from ssl_diffusion.weights.model import load_encoder

BROKEN = {"s11.tif": "is cut off", "s23.tif": "does not say", "s42.tif": "no slide"}
SIZE = 32


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    """Fifty pyramids at 0.25 µm per pixel; s11 is cut off, s23 has no resolution, s42 is text."""
    folder = tmp_path_factory.mktemp("fifty") / "slides"
    folder.mkdir()
    for number in range(50):
        path = folder / f"s{number:02d}.tif"
        write_slide(path, texture(number, 640, 700), None if number == 23 else 0.25, levels=2)
    cut_off = folder / "s11.tif"
    cut_off.write_bytes(cut_off.read_bytes()[: int(cut_off.stat().st_size * 0.5)])
    (folder / "s42.tif").write_text("a letter to the pathologist")
    return folder


def section(slides: Path, **entries) -> ConfigDict:
    told = {"source": str(slides), "patch_px": SIZE, "stride_px": SIZE, "mpp": 0.5}
    return ConfigDict(recipe.section() | told | entries)


def content(folder: Path) -> dict[str, str]:
    """Hashes of what a data set holds, by file."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "index.html"]
    assert any("array_record" in path.name for path in files)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def undisturbed(slides, tmp_path_factory) -> Path:
    """The records, made by one process at a stretch."""
    folder = tmp_path_factory.mktemp("undisturbed") / "records"
    failed = prepare(section(slides), folder)
    assert [one["source"] for one in failed] == [*BROKEN]
    return folder


def test_what_can_be_used_is_prepared_and_the_rest_is_listed(slides, undisturbed):
    lines = (undisturbed / "failed.jsonl").read_text().splitlines()
    failed = {one["source"]: one for one in map(json.loads, lines)}
    assert failed.keys() == BROKEN.keys()
    for name, reason in BROKEN.items():
        assert reason in failed[name]["reason"] and failed[name]["path"] == str(slides / name)
    assert "--source_mpp" in failed["s23.tif"]["reason"]
    records = open_records(undisturbed)
    sources = [json.loads(line) for line in (undisturbed / "sources.jsonl").open()]
    assert len(sources) == 47
    for source in sources:
        picture = open_image(source["path"]).at(0.5)
        expected = sum(1 for _ in tissue_patches(picture, SIZE, SIZE, 0.07))
        assert source["patches"] == {source["split"]: expected} and expected == 100
        assert (source["width"], source["height"], source["mpp"]) == (700, 640, 0.25)
    drawn = [source["split"] for source in sources]
    for split in ("train", "val", "test"):
        assert records.count(split) == 100 * drawn.count(split) > 0
    assert not list(undisturbed.parent.glob("*.unfinished"))


def test_records_say_what_they_are_of(slides, undisturbed):
    records = open_records(undisturbed)
    source = records.source("train")
    for index in (0, 777, len(source) - 1):
        found = source[index]
        picture = open_image(slides / found["source"]).at(0.5)
        np.testing.assert_array_equal(
            found["image"], picture.read(found["x"], found["y"], SIZE, SIZE)
        )
        assert found["mpp"] == 0.5
    metadata = records.metadata
    assert "Lanczos" in metadata["resampling"] and "profile" in metadata["colour"]
    assert metadata["image"] == {"format": "PNG"} and metadata["split_by"] == "sources"
    assert metadata["duplicates"]["records"] == 0


def test_any_number_of_processes_makes_the_same_records(slides, undisturbed, tmp_path):
    expected = content(undisturbed)
    assert prepare(section(slides), tmp_path / "a" / "records", workers=2)
    assert content(tmp_path / "a" / "records") == expected
    shared = tmp_path / "b" / "records"
    assert prepare(section(slides), shared, shard=(1, 3)) == [] and not shared.exists()
    assert prepare(section(slides), shared, shard=(0, 3)) == [] and not shared.exists()
    failed = prepare(section(slides), shared, shard=(2, 3))  # the last one writes them
    assert len(failed) == 3 and content(shared) == expected


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "--direct_running_mode=multi_processing"])
def test_a_beam_pipeline_makes_the_same_records(slides, undisturbed, tmp_path, options):
    beam = ["--runner=DirectRunner", "--direct_num_workers=2", *options.split()]
    assert len(prepare(section(slides), tmp_path / "records", beam=beam)) == 3
    assert content(tmp_path / "records") == content(undisturbed)


def test_killed_twice_and_begun_again_it_makes_the_same_records(slides, undisturbed, tmp_path):
    folder = tmp_path / "records"
    flags = [f"--source={slides}", f"--output={folder}", f"--patch_px={SIZE}", "--workers=0"]
    command = [sys.executable, "-m", "ssl_diffusion.prepare", *flags]
    units = tmp_path / "records.unfinished"
    for least in (1, 2):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        while len(list(units.glob("0*/unit.json"))) < least:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not folder.exists()
    kept = {path: path.stat().st_mtime_ns for path in units.glob("0*/unit.json")}
    assert 2 <= len(kept) < 5
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 3
    error = result.stderr.splitlines()[-1]
    assert error.startswith("error: 3 sources could not be used") and "failed.jsonl" in error
    for name, reason in BROKEN.items():
        assert name in error and reason in error
    assert content(folder) == content(undisturbed)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 3 and "are there already" in again.stderr


def test_shards_that_run_at_once_make_the_same_records(slides, undisturbed, tmp_path):
    folder = tmp_path / "records"
    flags = [f"--source={slides}", f"--output={folder}", f"--patch_px={SIZE}", "--workers=0"]
    command = [sys.executable, "-m", "ssl_diffusion.prepare", *flags]
    started = [
        subprocess.Popen([*command, f"--shard={i}/3"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for i in range(3)
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    # Whoever wrote the records, and who came after, tells of the failed ones.
    codes = [process.returncode for process in started]
    assert 3 in codes and {*codes} <= {0, 3}, errors
    assert content(folder) == content(undisturbed)
    assert not folder.with_name("records.unfinished").exists()


def test_what_has_changed_since_is_not_taken_for_the_same(tmp_path):
    source = tmp_path / "slides"
    source.mkdir()
    for number in range(3):
        write_slide(source / f"{number}.tif", texture(number, 128, 128), 0.5, levels=1)
    listed = tmp_path / "m.csv"

    def told(mpp: str) -> None:
        lines = [f"{number}.tif,{'test' if number else 'train'},{mpp}" for number in range(3)]
        listed.write_text("\n".join(["file,split,mpp", *lines]))

    told("0.5")
    entries = {"manifest": str(listed)}
    assert prepare(section(source, **entries), tmp_path / "records") == []
    assert prepare(section(source, **entries), tmp_path / "records") == []
    told("0.25")
    with pytest.raises(InputError, match="files_sha256 differ"):
        prepare(section(source, **entries), tmp_path / "records")
    told("0.5")
    write_slide(source / "1.tif", texture(9, 128, 128), 0.5, levels=1)
    os.utime(source / "1.tif", (1, 1))
    with pytest.raises(InputError, match="files_sha256 differ"):
        prepare(section(source, **entries), tmp_path / "records")


def test_a_link_to_nothing_is_a_source_that_failed(slides, tmp_path):
    source = tmp_path / "slides"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.tif").symlink_to(slides / f"s{number:02d}.tif")
    (source / "gone.tif").symlink_to(tmp_path / "nowhere.tif")
    (failed,) = prepare(section(source), tmp_path / "records")
    assert failed["source"] == "gone.tif" and "no image or slide at" in failed["reason"]


def test_a_page_that_was_not_made_in_time_is_made_later(slides, undisturbed, tmp_path):
    copied = tmp_path / "records"
    shutil.copytree(undisturbed, copied)
    page = (copied / "index.html").read_text()
    (copied / "index.html").unlink()
    assert len(prepare(section(slides), copied)) == 3
    assert (copied / "index.html").read_text() == page


def test_units_of_another_plan_are_not_put_together(slides, tmp_path):
    prepare(section(slides), tmp_path / "records", shard=(0, 2))
    file = tmp_path / "records.unfinished" / "000000" / "unit.json"
    unit = json.loads(file.read_text())
    file.write_text(json.dumps(unit | {"origins": unit["origins"][1:]}))
    with pytest.raises(InputError, match="000000 is work of another plan"):
        prepare(section(slides), tmp_path / "records")


def test_what_was_done_is_not_done_again(slides, tmp_path, monkeypatch):
    folder = tmp_path / "records"
    prepare(section(slides), folder, shard=(0, 2))
    seen = []
    monkeypatch.setattr(plan, "survey", None)  # nothing is opened to be planned a second time
    from ssl_diffusion.data import work

    cut = work.cut
    monkeypatch.setattr(work, "cut", lambda *call: seen.append(call[1].name) or cut(*call))
    prepare(section(slides), folder)
    other = {origin for origin in seen}
    assert 0 < len(other) < 40 and folder.exists()


def test_unfinished_work_of_another_recipe_is_refused(slides, tmp_path):
    prepare(section(slides), tmp_path / "records", shard=(0, 2))
    with pytest.raises(InputError, match=r"records.unfinished holds .*\(jpeg_quality differ\)"):
        prepare(section(slides, jpeg_quality=90), tmp_path / "records")


def test_a_disk_that_is_too_small_is_told_before_anything_is_cut(slides, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"too little room: about 4,\d+ records, 0.0\d+ GB; 0.001"):
        prepare(section(slides), tmp_path / "records")
    assert not list(tmp_path.glob("*.unfinished/0*"))


def test_a_slide_that_is_broken_inside_leaves_nothing(slides, tmp_path):
    """It opens, its first rows are read, and then there is damage."""
    chosen = tmp_path / "slides"
    chosen.mkdir()
    for number in range(4):
        (chosen / f"s{number}.tif").symlink_to(slides / f"s{number:02d}.tif")
    content = bytearray((slides / "s01.tif").read_bytes())
    with tifffile.TiffFile(slides / "s01.tif") as file:
        start = file.pages[1].dataoffsets[-1]
    content[start : start + 200] = bytes(200)
    (chosen / "s1.tif").unlink()
    (chosen / "s1.tif").write_bytes(content)
    (failed,) = prepare(section(chosen), tmp_path / "records")
    assert failed["source"] == "s1.tif" and "cannot be read at x=" in failed["reason"]
    records = open_records(tmp_path / "records")
    found = [
        records.source(split, ("source",))[index]["source"]
        for split in ("train", "val", "test")
        for index in range(records.count(split))
    ]
    assert sorted(found) == [f"s{number}.tif" for number in (0, 2, 3) for _ in range(100)]


def test_nothing_usable_is_told_with_reasons(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.tif").write_text(f"no {name}")
    with pytest.raises(InputError, match="none of 3 sources can be used: .*a.tif is no slide"):
        prepare(section(folder), tmp_path / "records")


def test_jpeg_is_what_is_stored_and_embedded(slides, tmp_path):
    chosen = tmp_path / "slides"
    chosen.mkdir()
    for number in range(3):
        (chosen / f"s{number}.tif").symlink_to(slides / f"s{number:02d}.tif")
    told = {"jpeg_quality": 80, "patch_px": 64, "stride_px": 64, "encoder": demo.ENCODER}
    prepare(section(chosen, **told), tmp_path / "records")
    records = open_records(tmp_path / "records")
    assert records.metadata["image"] == {"format": "JPEG", "quality": 80, "subsampling": "4:4:4"}
    encoder = load_encoder(demo.ENCODER)
    source = records.source("train")
    found = [source[index] for index in range(len(source))]
    direct = encoder.embed(np.stack([one["image"] for one in found]))
    stored = np.stack([one["embedding"] for one in found])
    # Other batches, the same bits: chunks are padded to one size.
    np.testing.assert_array_equal(direct.astype(np.float16), stored.astype(np.float16))


def test_the_same_patch_twice_is_reported(slides, tmp_path):
    chosen = tmp_path / "slides"
    for split, name, number in (("train", "a", 0), ("test", "b", 1), ("train", "c", 2)):
        (chosen / split).mkdir(parents=True, exist_ok=True)
        pixels = texture(number, 128, 128).copy()
        pixels[:32, :32] = texture(99, 32, 32)  # in all three
        pixels[32:64, :32] = pixels[32:64, 32:64] if name == "c" else pixels[32:64, :32]
        write_slide(chosen / split / f"{name}.tif", pixels, 0.5, levels=1)
    prepare(section(chosen), tmp_path / "records")
    found = open_records(tmp_path / "records").metadata["duplicates"]
    assert (found["records"], found["across_splits"]) == (3, 2)
    assert [["train/a.tif", 0, 0, "train"], ["test/b.tif", 0, 0, "test"]] in [
        sorted(pair, reverse=True) for pair in found["examples"]
    ]
    assert read_json(tmp_path / "records" / "metadata.json", "metadata")["duplicates"] == found


def test_a_process_that_is_killed_is_told():
    with pytest.raises(InputError, match="a process that cuts was killed.*--workers lower"):
        with Cutters(1) as cutters:
            list(cutters.map(signal.raise_signal, [(signal.SIGKILL,)]))


def test_results_come_in_order_and_a_few_ahead():
    asked = []

    def calls():
        for number in range(50):
            asked.append(number)
            yield (number,)

    with Cutters(2) as cutters:
        found = cutters.map(abs, calls())
        assert [next(found) for _ in range(3)] == [0, 1, 2] and len(asked) < 12
        assert [*found] == [*range(3, 50)]


def test_the_same_part_is_not_prepared_twice_at_once(slides, tmp_path):
    with only_one(tmp_path / "records.unfinished" / "shard-0-of-1.lock", "no"):
        with pytest.raises(InputError, match=r"another process prepares part 0/1"):
            prepare(section(slides), tmp_path / "records")
