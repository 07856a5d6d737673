"""The evaluate command: what it reads, the page it writes, end to end on a fake model."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ssl_diffusion
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation import inputs
from ssl_diffusion.evaluation.figures import labelled_row, labelled_sheet, loss_curve
from ssl_diffusion.evaluation.report import LargeImage, html_page
from ssl_diffusion.evaluation.table import shown

PATCH, FACTOR, REGION, SLIDE = 16, 4, (8, 16, 64, 48), "slide & <b>.png"


# Reading what other commands wrote


def write_samples(folder: Path, indices: list[int], size: int = PATCH) -> Path:
    (folder / "patches").mkdir(parents=True)
    for index in indices:
        Image.fromarray(picture(index, size)).save(folder / "patches" / f"{index:05d}.png")
    text = json.dumps(
        {
            "split": "test",
            "indices": indices,
            "steps": 5,
            "note": "<script>x</script>",
            "model_sha256": "0",
            "recipe": "this",
        }
    )
    (folder / "samples.json").write_text(text)
    return folder


def picture(seed: int, size: int) -> np.ndarray:
    """A smooth random image."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def test_samples_are_read_by_index(tmp_path):
    indices, images, settings = inputs.read_samples(write_samples(tmp_path, [4, 2]), 5, PATCH)
    np.testing.assert_array_equal(indices, [4, 2])
    np.testing.assert_array_equal(images[0], picture(4, PATCH))
    assert settings["steps"] == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "samples.json").unlink(), "samples.json does not exist"),
        (lambda d: (d / "samples.json").write_text("{"), "not valid JSON"),
        (lambda d: (d / "samples.json").write_text('{"indices": []}'), "no sample indices"),
        (lambda d: (d / "samples.json").write_text('{"indices": [0, 7]}'), "5 held-out"),
        (lambda d: (d / "samples.json").write_text('{"indices": [1, 1]}'), "distinct"),
        (
            lambda d: (d / "samples.json").write_text('{"split": "train", "indices": [0]}'),
            "held-out",
        ),
        (lambda d: (d / "patches" / "00001.png").unlink(), "1 of 2 samples are missing"),
        (lambda d: (d / "patches" / "00001.png").write_bytes(b"\x89PNG no"), "cannot|can be read"),
        (
            lambda d: Image.new("RGB", (9, 9)).save(d / "patches" / "00001.png"),
            "9x9 px, expected 16x16",
        ),
    ],
)
def test_unusable_samples_are_named(tmp_path, change, message):
    folder = write_samples(tmp_path, [0, 1])
    change(folder)
    with pytest.raises(InputError, match=message):
        inputs.read_samples(folder, 5, PATCH)


def test_unusable_stitched_images_are_named(tmp_path):
    path = tmp_path / "stitched.png"
    with pytest.raises(InputError, match="no image"):
        inputs.read_stitched(path)
    Image.new("RGB", (64, 48)).save(path)
    with pytest.raises(InputError, match=r"stitched.json does not exist"):
        inputs.read_stitched(path)
    settings = {"reference": None, "region": None, "stride": 2, "seconds": 1.0}
    path.with_suffix(".json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="no reference, region"):
        inputs.read_stitched(path)
    settings |= {"reference": "a.svs", "region": [0, 0, 64, 64]}
    path.with_suffix(".json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="64x48 px, its reference region"):
        inputs.read_stitched(path)


def test_loss_survives_a_killed_run(tmp_path):
    (tmp_path / "summary.json").write_text('{"steps": 2}')
    with pytest.raises(InputError, match=r"no metrics\.jsonl"):
        inputs.read_training(tmp_path)
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 1.0}\n{"ste')
    assert inputs.read_training(tmp_path)[0] == [(1, 3.0), (2, 1.0)]
    log.write_text("not metrics\n")
    with pytest.raises(InputError, match="is damaged"):
        inputs.read_training(tmp_path)


# The page


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
    image = picture(0, 32)
    report = {
        "large_image": {"width_px": 32, "height_px": 32, "count": 4, "seconds": 2.0, "seam": -0.5},
        "seconds": {"evaluate": 1.0, "train": None},
        "hardware": {"cpu": "<b>fast</b>"},
        "versions": {"jax": "0"},
    }
    large = LargeImage(image, image, image, 16, 0.5, "<img src=http://x/y.png>.svs, corner", False)
    page = html_page(
        report, large=large, pairs=[], loss_png=None, settings={"</pre>": {"a": "<script>"}}
    )
    assert len(assert_self_contained(page).urls) == 3
    assert "&lt;b&gt;fast" in page and "&lt;/pre&gt;" in page and "&lt;script&gt;" in page
    assert "<h2>A large image" in page and "partly seen in training" in page
    for absent in ("<h2>Patches", "<h2>Training", "Sharpness", "None"):
        assert absent not in page
    assert "<h2>Numbers" in page and "\N{MINUS SIGN}0.500" in page


def test_numbers_are_printed_with_their_error():
    assert shown({"a": -0.12345, "a_se": 0.0123}, "a") == "\N{MINUS SIGN}0.123 ± 0.012"
    assert shown({"a": 26.04}, "a", "dB") == "26.0 dB"


def test_figures_hold_every_pixel_they_show():
    a, b, c = (np.full((20, 30, 3), value, np.uint8) for value in (50, 100, 150))
    row = labelled_row([a, b, c], ["one", "two", "three"])
    sheet = labelled_sheet([[a, b], [b, c], [c, c]], ["x", "y", "z"], columns=2, zoom=2)
    for value, in_row, in_sheet in ((50, 1, 1), (100, 1, 2), (150, 1, 3)):
        assert (row == value).all(axis=2).sum() >= in_row * 600
        assert (sheet == value).all(axis=2).sum() >= in_sheet * 2400
    assert loss_curve([(1, 2.0)]).startswith(b"\x89PNG")
    assert loss_curve([(s, 1 / s) for s in range(1, 200)]).startswith(b"\x89PNG")


# The command, in a process of its own: absl flags of two commands clash in one


class FakeEncoder:
    """Projects 4 x 4 block means; untrained, it sees one pixel only."""

    spec = {
        "augmentation": {
            "crop": 0.9,
            "brightness": 0.1,
            "contrast": 0.1,
            "saturation": 0.1,
            "hue": 0.0,
            "blur_px": 0.5,
        }
    }

    def __init__(self, trained: bool = True):
        self._trained = trained

    def embed(self, images: np.ndarray) -> np.ndarray:
        means = images.reshape(len(images), 4, 4, 4, 4, 3).mean(axis=(2, 4)).astype(np.float32)
        # Turns and flips are part of the augmentation, so only what they keep is looked at.
        kept = np.sort(means.reshape(len(images), 16, 3), axis=1).reshape(len(images), -1)
        return (kept if self._trained else kept[:, :1].repeat(48, axis=1))[:, None] / 64

    def reinitialised(self, seed: int) -> "FakeEncoder":
        return FakeEncoder(trained=False)


class FakeModel:
    """An autoencoder that averages 4 x 4 px, and no denoiser: evaluate must not need one."""

    patch_px, factor, mpp, sha256 = PATCH, FACTOR, 0.5, "0"
    spec = {"embedding": {"tokens": 1, "dim": 48, "mean": [[0.0] * 48]}, "name": "<i>fake</i>"}
    encoder = FakeEncoder()

    def encode(self, images: np.ndarray) -> np.ndarray:
        n, height, width, _ = images.shape
        blocks = images.reshape(n, height // FACTOR, FACTOR, width // FACTOR, FACTOR, 3)
        return (blocks.mean(axis=(2, 4)) / 127.5 - 1).astype(np.float32)

    def decode(self, latent: np.ndarray) -> np.ndarray:
        return latent.repeat(FACTOR, axis=1).repeat(FACTOR, axis=2)


def run_in_process_of_its_own(
    folder: Path, *flags: str, model: str = "right"
) -> subprocess.CompletedProcess:
    command = [sys.executable, __file__, f"--model={model}", f"--records={folder / 'records'}"]
    root = Path(ssl_diffusion.__file__).parents[1]  # found also where it is not installed
    env = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run([*command, *flags], capture_output=True, text=True, timeout=300, env=env)


def fake_run(folder: Path) -> None:
    """Everything that the other commands leave behind."""
    from ssl_diffusion.data.writer import Layout, RecordsWriter
    from ssl_diffusion.stitching.output import write_image

    encoder = FakeEncoder()
    writer = RecordsWriter(folder / "records", ("train", "test"), Layout((1, 48), (4, 4, 3)))
    for split, count in (("train", 60), ("test", 24)):
        for index in range(count):
            image = picture(index if split == "test" else 1000 + index, PATCH)
            example = {
                "image": image,
                "x": 0,
                "y": 0,
                "source": "slide",
                "latent": np.zeros((4, 4, 3)),
            }
            example["latent"] = example["latent"].astype(np.float16)
            writer.add(split, example | {"embedding": encoder.embed(image[None])[0]})
    writer.close({"recipe": "this"})
    slide = {"sha256": "", "held_out": [[0, 0], [0, 32], [32, 0], [32, 32], [64, 0], [64, 32]]}
    split = {"block_px": 32, "sources": {SLIDE: slide}}
    (folder / "records" / "split.json").write_text(json.dumps(split))
    write_samples(folder / "samples", list(range(20)))
    x, y, width, height = REGION
    whole = np.concatenate([picture(50 + i, 96) for i in range(2)], axis=1)
    Image.fromarray(whole).save(folder / SLIDE)
    region = whole[y : y + height, x : x + width]
    Image.fromarray(255 - (255 - region) // 2).save(folder / "stitched.png")
    stitched = {
        "reference": str(folder / SLIDE),
        "region": REGION,
        "stride": 2,
        "seconds": 3.5,
        "model_sha256": "0",
        "reference_mpp": 0.5,
    }
    (folder / "stitched.json").write_text(json.dumps(stitched))
    shifted = stitched | {"scheme": "shifted", "grid_stride_px": PATCH}
    pixels = np.asarray(Image.open(folder / "stitched.png"))
    write_image(folder / "shifted.tif", [pixels], mpp=0.5, description={}, compression="deflate")
    (folder / "shifted.json").write_text(json.dumps(shifted))
    outside = stitched | {"region": [180, 0, 64, 48]}
    Image.fromarray(region).save(folder / "elsewhere.png")
    (folder / "elsewhere.json").write_text(json.dumps(outside))
    (folder / "train").mkdir()
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in range(1, 30)]
    (folder / "train" / "metrics.jsonl").write_text("\n".join(lines))
    summary = {"steps": 29, "images_per_second": 100.0, "final_loss": 0.03, "seconds": 9.0}
    summary["measured"] = {"held_out_loss": 0.5, "held_out_dropped": 0.6, "held_out_shuffled": 0.7}
    summary["model_sha256"] = "0"
    (folder / "train" / "summary.json").write_text(json.dumps(summary))
    (folder / "other").mkdir()
    (folder / "other" / "metrics.jsonl").write_text(lines[0] + "\n")
    (folder / "other" / "summary.json").write_text(json.dumps(summary | {"model_sha256": "1"}))
    (folder / "timings.json").write_text(
        '{"install": 50.0, "prepare": 2.0, "train": 9.0, "sample": 4.0}'
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    fake_run(folder)
    done = run_in_process_of_its_own(
        folder,
        f"--samples={folder / 'samples'}",
        f"--stitched={folder / 'stitched.png'}",
        f"--train={folder / 'train'}",
        f"--timings={folder / 'timings.json'}",
        f"--output={folder / 'out'}",
    )
    assert done.returncode == 0, done.stderr
    return folder


FIELDS = {
    "patch": "count chance retrieval_at_1 retrieval_at_1_se retrieval_at_1_shuffled similarity "
    "similarity_se similarity_shuffled fd_real_real fd_samples fd_noise fd_n fd_dimension "
    "fd_reconstructions nearest_train_similarity similarity_reconstructions "
    "retrieval_at_1_reconstructions",
    "copying": "sample_distance real_distance copy_distance closer_than_real",
    "large_image": "width_px height_px similarity similarity_shuffled seam seam_real sharpness "
    "seconds",
    "autoencoder": "psnr_db",
    "encoder": "retrieval_at_1 random_init_retrieval_at_1 colour_retrieval_at_1",
    "train": "steps images_per_second final_loss",
    "seconds": "install prepare train sample stitch evaluate total",
    "hardware": "cpu cores device",
    "versions": "python jax flax",
}


def test_report_json_is_complete_and_right(finished):
    report = json.loads((finished / "out" / "report.json").read_text(), parse_constant=pytest.fail)
    for section, fields in FIELDS.items():
        assert set(fields.split()) <= set(report[section]), section
    patch, large = report["patch"], report["large_image"]
    # The samples of the fake run are the held-out patches themselves: 20 of the 24.
    assert (patch["count"], patch["chance"], patch["fd_n"]) == (20, 1 / 24, 20)
    assert patch["retrieval_at_1"] == 1
    assert patch["fd_samples"] == pytest.approx(patch["fd_real_real"], rel=1e-4)
    assert patch["fd_noise"] > 3 * patch["fd_real_real"]
    copying = report["copying"]
    assert copying["sample_distance"] == pytest.approx(copying["real_distance"], rel=1e-6)
    assert (large["width_px"], large["height_px"], large["count"]) == (64, 48, 12)
    assert (large["seconds"], large["held_out"]) == (3.5, True)
    # Halved contrast: half the steps at every line alike.
    assert large["sharpness"] == pytest.approx(0.5, abs=0.05)
    assert large["seam"] == pytest.approx(large["seam_real"], rel=0.1)
    # Windows of 16 px every 8 px: no line at a multiple of 8 px is left to compare with.
    assert large["seam_in_phase"] is None
    # The fake decoder paints 4 px blocks, whose edges lie on all lines.
    assert large["seam_reconstruction"] > 2
    assert report["encoder"]["retrieval_at_1"] > 3 * report["encoder"]["random_init_retrieval_at_1"]
    assert report["autoencoder"]["psnr_db"] > report["autoencoder"]["psnr_mean_colour_db"]
    assert report["seconds"]["stitch"] is None
    total = sum(v for k, v in report["seconds"].items() if k != "total" and v is not None)
    assert report["seconds"]["total"] == pytest.approx(total)


def test_report_page_and_pictures(finished):
    page = (finished / "out" / "report.html").read_text()
    found = assert_self_contained(page)
    assert len(found.urls) == 3 + 3 * 20 + 1
    assert "<dt>another patch&#x27;s embedding</dt><dd>0.700</dd>" in page
    assert "slide &amp; &lt;b&gt;.png" in page and "&lt;i&gt;fake" in page and "48 numbers" in page
    for section in ("A large image", "Patches", "Numbers", "Training", "Limits", "Settings"):
        assert f"<h2>{section}</h2>" in page
    with Image.open(finished / "out" / "large_image.png") as row:
        assert row.width > 3 * 64 and row.height > 48
    assert {"patches.png", "loss.png"} <= {path.name for path in (finished / "out").iterdir()}


def test_report_of_shifted_windows_without_samples_or_training(finished):
    done = run_in_process_of_its_own(
        finished, f"--stitched={finished / 'shifted.tif'}", f"--output={finished / 'less'}"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((finished / "less" / "report.json").read_text())
    # The same pixels, but only cells of 16 px have borders that stay.
    whole = json.loads((finished / "out" / "report.json").read_text())["large_image"]
    assert report["large_image"]["similarity"] == pytest.approx(whole["similarity"])
    assert report["large_image"]["seam_in_phase"] is not None
    assert "large_image" in report and not {"patch", "copying", "train"} & set(report)
    page = (finished / "less" / "report.html").read_text()
    assert "<h2>A large image</h2>" in page and "<h2>Patches</h2>" not in page


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        ("right", ["--output={}/x"], "give --samples, --stitched or both"),
        ("right", ["--samples={}/samples", "--output={}/timings.json"], "cannot write into"),
        ("right", ["--stitched={}/elsewhere.png", "--output={}/x"], "is not inside"),
        ("retrained", ["--samples={}/samples", "--output={}/x"], "made with another model"),
        (
            "right",
            ["--samples={}/samples", "--train={}/other", "--output={}/x"],
            "the run of another model",
        ),
        ("of_another_split", ["--samples={}/samples", "--output={}/x"], "with another split"),
        (
            "of_another_encoder",
            ["--samples={}/samples", "--output={}/x"],
            "not those of the model's",
        ),
    ],
)
def test_unusable_input_is_one_line_and_exit_code_2(finished, model, flags, message):
    flags = [flag.format(finished) for flag in flags]
    done = run_in_process_of_its_own(finished, *flags, model=model)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not (finished / "x" / "report.html").exists()


if __name__ == "__main__":
    from ssl_diffusion import cli, evaluate

    def load_fake(name: str) -> FakeModel:
        model = FakeModel()
        if name == "retrained":
            model.sha256 = "1"
        if name == "of_another_split":
            model.spec = model.spec | {"trained": {"split_sha256": "0"}}
        if name == "of_another_encoder":
            model.encoder = FakeEncoder(trained=False)
        return model

    evaluate.load_model = load_fake
    cli.run(evaluate.main, evaluate.FLAGS)
