"""The evaluate command end to end on a fake model: every kind of input, the numbers, the files."""

import json

import numpy as np
import pytest
from fake_evaluation import (
    PATCH,
    FakeEncoder,
    picture,
    read_report,
    run,
    write_records,
    write_samples,
    write_stitched,
    write_training,
)
from PIL import Image
from test_report import assert_self_contained

from ssl_diffusion import __version__, evaluate
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation import feature_cache


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """What the other commands leave behind, and the report of all of it in out/."""
    folder = tmp_path_factory.mktemp("evaluation")
    write_records(folder / "records")
    write_samples(folder / "samples", list(range(20)))
    write_stitched(folder)
    write_training(folder / "train", "0")
    write_training(folder / "other", "1")
    (folder / "timings.json").write_text(
        '{"install": 50.0, "prepare": 2.0, "train": 9.0, "sample": 4.0}'
    )
    run(
        f"--records={folder / 'records'}",
        f"--samples={folder / 'samples'}",
        f"--stitched={folder / 'stitched.png'}",
        f"--train={folder / 'train'}",
        f"--timings={folder / 'timings.json'}",
        "--judge=demo:encoder",
        f"--output={folder / 'out'}",
    )
    return folder


def value(estimate) -> float:
    return estimate["value"]


def test_patches_are_measured_in_every_space_with_controls(finished):
    patch = read_report(finished / "out")["patch"]
    assert (patch["count"], patch["held_out"], patch["paired"]) == (20, 24, True)
    assert list(patch["spaces"]) == ["encoder", "judge"]
    for space in patch["spaces"].values():
        sets = space["sets"]
        assert set(sets) == set("samples real reconstructions nearest_train shuffled noise".split())
        # The samples of the fake run are the held-out patches themselves: 20 of the 24.
        assert (space["chance"], space["reference_n"], sets["samples"]["n"]) == (1 / 24, 60, 20)
        assert value(sets["samples"]["retrieval_at_1"]) == 1
        assert value(sets["shuffled"]["retrieval_at_1"]) == 0
        assert (
            value(sets["samples"]["similarity"])
            > 0.99
            > 0.5
            > value(sets["shuffled"]["similarity"])
        )
        assert value(sets["samples"]["fd"]) == pytest.approx(value(sets["real"]["fd"]), rel=1e-3)
        assert value(sets["noise"]["fd"]) > 2 * value(sets["real"]["fd"])
        assert sets["shuffled"]["similarity"]["low"] < sets["shuffled"]["similarity"]["high"]
        assert {"kid", "precision", "recall", "density", "coverage"} <= set(sets["real"])
        assert any("covariance" in text for text in space["warnings"])
    assert value(patch["spaces"]["encoder"]["sets"]["nearest_train"]["similarity"]) < 0.99


def test_copying_and_the_models_are_measured(finished):
    report = read_report(finished / "out")
    copying = report["copying"]
    assert value(copying["distance_ratio"]) == pytest.approx(1, rel=1e-5)
    assert value(copying["copy_distance"]) < value(copying["real_distance"])
    assert copying["sought"] == 20 and copying["flagged_held_out_of"] == 12
    assert value(copying["flagged"]) == len(copying["flagged_samples"]) / 20
    encoder, autoencoder = report["encoder"], report["autoencoder"]
    assert value(encoder["retrieval_at_1"]) > 3 * value(encoder["random_init_retrieval_at_1"])
    assert value(autoencoder["psnr_db"]) > value(autoencoder["psnr_mean_colour_db"])
    seconds = report["seconds"]
    assert seconds["stitch"] is None
    total = sum(v for k, v in seconds.items() if k != "total" and v is not None)
    assert seconds["total"] == pytest.approx(total)
    assert report["train"]["held_out_loss"] == 0.5


def test_a_large_image_is_measured_by_cells_pixels_and_crops(finished):
    large = read_report(finished / "out")["large_image"]
    assert (large["sizes_px"], large["seconds"], large["held_out"]) == ([[64, 48]], 3.5, True)
    cells, pixels = large["cells"]["encoder"], large["pixels"]["sets"]
    assert (cells["count"], cells["chance"]) == (12, 1 / 12)
    assert value(cells["sets"]["reconstruction"]["similarity"]) > 0.9
    # Halved contrast: half the steps at every line alike.
    assert value(pixels["stitched"]["sharpness"]) == pytest.approx(0.5, abs=0.05)
    assert value(pixels["stitched"]["seam"]) == pytest.approx(
        value(pixels["real"]["seam"]), rel=0.1
    )
    # Windows of 16 px every 8 px: no line at a multiple of 8 px is left to compare with.
    assert "seam_in_phase" not in pixels["stitched"]
    # The fake decoder paints 4 px blocks, whose edges lie on all lines.
    assert value(pixels["reconstruction"]["seam"]) > 2
    crops = large["crop_spaces"]["encoder"]
    assert crops["sets"]["stitched"]["n"] == large["crops"]["of_each_image"]
    # A few crops of many dimensions tell little: the space with fewer does.
    assert value(crops["sets"]["stitched"]["fd"]) > 5 * value(crops["sets"]["real"]["fd"])


def test_everything_that_moves_a_number_is_pinned(finished):
    pinned = read_report(finished / "out")["pinned"]
    assert pinned["sets"]["samples"]["format"] == "PNG" and pinned["sets"]["samples"]["count"] == 20
    assert pinned["sets"]["reference"]["count"] == 60
    assert len(pinned["sets"]["reference"]["sha256"]) == 64
    made_by = pinned["made_by"]
    assert (made_by["model_sha256"], made_by["samples"]["steps"]) == ("0", 5)
    assert made_by["stitched"][0]["stride"] == 2 and pinned["version"] == __version__
    page = (finished / "out" / "report.html").read_text()
    assert "made_by › stitched › 0 › stride</td><td>2" in page
    assert len(pinned["sets"]["samples"]["sha256"]) == 64
    assert pinned["spaces"]["judge"]["resize"].startswith("bicubic")
    assert len(pinned["spaces"]["judge"]["weights_sha256"]) == 64
    assert pinned["crops"]["size_px"] == PATCH and pinned["versions"]["jax"]
    assert pinned["neighbours"] == 5 and pinned["records"]["unseen"] is False


def test_report_page_and_pictures(finished):
    page = (finished / "out" / "report.html").read_text()
    found = assert_self_contained(page)
    plots = 5  # two of each space, the distances
    assert len(found.urls) == 3 + 3 * 20 + 2 * 8 + plots + 1
    assert "slide &amp; &lt;b&gt;.png" in page and "&lt;i&gt;fake" in page and "48 numbers" in page
    for section in ("A large image", "Copying", "Training", "Pinned", "Limits", "Settings"):
        assert f"<h2>{section}</h2>" in page
    with Image.open(finished / "out" / "large_image.png") as row:
        assert row.width > 3 * 64 and row.height > 48
    assert {"patches.png", "loss.png", "distances.png"} <= {
        path.name for path in (finished / "out").iterdir()
    }


def test_several_stitched_images_alone(finished):
    run(
        f"--records={finished / 'records'}",
        f"--stitched={finished / 'several'}",
        "--crop_count=20",
        f"--cache={finished / 'out' / 'features'}",
        f"--output={finished / 'less'}",
    )
    report = read_report(finished / "less")
    large = report["large_image"]
    assert (large["images"], large["cells"]["encoder"]["count"]) == (2, 24)
    assert large["crop_spaces"]["encoder"]["sets"]["stitched"]["n"] == 40
    # Shifted windows: only cells of 16 px have borders that stay. The second image is the real one.
    sharpness = large["pixels"]["sets"]["stitched"]["sharpness"]
    assert value(sharpness) == pytest.approx(0.75, abs=0.03)
    assert sharpness["low"] is None  # of two images
    assert "seam_in_phase" in large["pixels"]["sets"]["stitched"]
    assert not {"patch", "copying", "train"} & set(report)
    page = (finished / "less" / "report.html").read_text()
    assert "<h2>Large images</h2>" in page and "<h2>Patches</h2>" not in page


def test_a_folder_is_compared_as_a_set_without_a_model(finished, tmp_path):
    (tmp_path / "made").mkdir()
    for index in range(30):
        image = Image.fromarray(picture(1000 + index if index < 15 else 3000 + index, PATCH))
        image.save(tmp_path / "made" / f"{index}.png")
    run(
        f"--records={finished / 'records'}",
        f"--samples={tmp_path / 'made'}",
        f"--output={tmp_path / 'out'}",
        model=None,
    )
    report = read_report(tmp_path / "out")
    sets = report["patch"]["spaces"]["encoder"]["sets"]
    # 30 samples, 24 real ones: a distance of equally many stands beside.
    assert (sets["samples"]["n"], sets["samples_equal"]["n"], sets["real"]["n"]) == (30, 24, 24)
    assert report["patch"]["paired"] is False and "similarity" not in sets["samples"]
    # Every other sample is a training patch.
    assert value(report["copying"]["closer_than_real"]) == pytest.approx(0.5, abs=0.1)
    assert len(set(report["copying"]["flagged_samples"]) & set(range(30))) >= 15
    assert report["pinned"]["sets"]["samples"]["format"] == {"PNG": 30}
    assert not {"autoencoder", "encoder"} & set(report)
    assert "<h2>Patches</h2>" in (tmp_path / "out" / "report.html").read_text()


def test_unseen_records_have_the_same_tables_and_their_own_training_records(finished, tmp_path):
    write_records(tmp_path / "elsewhere")
    flags = (f"--records={tmp_path / 'elsewhere'}", f"--samples={finished / 'samples'}")
    with pytest.raises(InputError, match="say --unseen"):
        run(*flags, f"--output={tmp_path / 'x'}", model="of_another_split")
    run(*flags, "--unseen", f"--output={tmp_path / 'x'}", model="of_another_split")
    report = read_report(tmp_path / "x")
    assert report["pinned"]["records"]["unseen"] is True and "copying" not in report
    assert "nearest_train" not in report["patch"]["spaces"]["encoder"]["sets"]
    known = f"--train_records={finished / 'records'}"
    run(*flags, "--unseen", known, f"--output={tmp_path / 'x'}", model="of_another_split")
    report = read_report(tmp_path / "x")
    assert "copying" in report
    (remark,) = report["remarks"]
    assert "need not be those it saw" in remark
    assert remark in (tmp_path / "x" / "report.html").read_text()


def test_features_are_kept_for_the_next_report(finished, monkeypatch):
    """The first run left the judge's features: the second embeds nothing with it."""
    kept = {file.name for file in (finished / "out" / "features").iterdir()}
    run(
        f"--records={finished / 'records'}",
        f"--samples={finished / 'samples'}",
        "--judge=demo:encoder",
        f"--cache={finished / 'out' / 'features'}",
        f"--output={finished / 'again'}",
    )
    assert {file.name for file in (finished / "out" / "features").iterdir()} == kept
    first, second = (read_report(finished / name)["patch"] for name in ("out", "again"))
    assert json.dumps(first) == json.dumps(second)


def test_the_seconds_of_own_samples_are_those_of_sampling(finished, tmp_path, monkeypatch):
    def sample_held_out(model, records, count, folder, *, seed):
        write_samples(folder, list(range(count)))
        return -9e9

    monkeypatch.setattr(evaluate, "sample_held_out", sample_held_out)
    cache = f"--cache={finished / 'out' / 'features'}"
    run(f"--records={finished / 'records'}", "--count=6", cache, f"--output={tmp_path}")
    seconds = read_report(tmp_path)["seconds"]
    assert seconds["sample"] == -9e9 and seconds["evaluate"] > 9e9


def test_an_image_that_cannot_be_read_or_embedded_is_named_and_what_was_done_is_kept(
    finished, tmp_path, monkeypatch
):
    folder = tmp_path / "made"
    folder.mkdir()
    for index in range(6):
        Image.fromarray(picture(index, PATCH)).save(folder / f"{index}.png")
    whole = (folder / "5.png").read_bytes()
    (folder / "5.png").write_bytes(whole[:-30])
    flags = [f"--records={finished / 'records'}", f"--samples={folder}", f"--output={tmp_path}"]
    monkeypatch.setattr(feature_cache, "MOST", 4)
    with pytest.raises(InputError, match=r"5\.png cannot be read"):
        run(*flags)
    assert len([*(tmp_path / "features").iterdir()]) == 1  # the first four
    (folder / "5.png").write_bytes(whole)
    embed = FakeEncoder.embed

    def broken(self, images):
        found = embed(self, images)
        return np.full_like(found, np.nan) if len(images) == 2 else found

    monkeypatch.setattr(FakeEncoder, "embed", broken)
    with pytest.raises(InputError, match="NaN or infinity, first for image 4"):
        run(*flags)
    Image.new("RGB", (9, 9)).save(folder / "6.png")
    with pytest.raises(InputError, match=r"6\.png has 9x9 px"):
        run(*flags)
    for name in range(1, 7):
        (folder / f"{name}.png").unlink()
    with pytest.raises(InputError, match="1 image, expected at least 2"):
        run(*flags)


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        (None, ["--output={}/x"], "give --model, --samples or --stitched"),
        ("right", ["--samples={}/samples", "--output={}/timings.json"], "cannot write into"),
        ("right", ["--stitched={}/elsewhere.png", "--output={}/x"], "is not inside"),
        (None, ["--stitched={}/stitched.png", "--output={}/x"], "--stitched needs --model"),
        ("retrained", ["--samples={}/samples", "--output={}/x"], "made with another model"),
        ("right", ["--samples={}/none", "--output={}/x"], "does not exist"),
        ("right", ["--samples={}/train", "--output={}/x"], "has no images"),
        ("right", ["--samples={}/several/b.png", "--crop_px=99", "--stitched={}/stitched.png"]
         + ["--output={}/x"], "crops of 99 px, but"),
        ("right", ["--samples={}/samples", "--count=4", "--output={}/x"], "--count is of samples"),
        ("right", ["--count=1", "--output={}/x"], "--count=1; one sample is no set"),
        ("right", ["--samples={}/samples", "--crop_px=8", "--output={}/x"], "of large images; g"),
        ("right", ["--samples={}/samples", "--resize=clean", "--output={}/x"], "--networks has no"),
        ("right", ["--stitched={}/stitched.png", "--train_records={}/records", "--output={}/x"],
         "--train_records is of patches"),
        ("right", ["--stitched={}/cell.png", "--output={}/x"], "is one cell of 16 px"),
        ("right", ["--samples={}/samples", "--train={}/other", "--output={}/x"], "run of another"),
        ("of_another_split", ["--samples={}/samples", "--output={}/x"], "with another split"),
        ("of_this_split", ["--samples={}/samples", "--unseen", "--output={}/x"], "leave the flag"),
        ("of_another_encoder", ["--samples={}/samples", "--output={}/x"], "not those of the model"),
        ("right", ["--samples={}/samples", "--judge={}/records", "--output={}/x"], "no model"),
    ],
)  # fmt: skip
def test_unusable_input_is_told(finished, model, flags, message):
    flags = [flag.format(finished) for flag in flags]
    with pytest.raises(InputError, match=message):
        run(f"--records={finished / 'records'}", *flags, model=model)
    assert not (finished / "x" / "report.html").exists()
