"""The commands as a user runs them: the whole chain, bad input, an installed wheel."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT, TINY, run_command

SLIDE = "demo:cmu_small_region.svs"
REGION = "768,2048,128,96"


def fails_with(result: subprocess.CompletedProcess, *phrases: str) -> None:
    """Exit code 2 and one line that holds every phrase; no traceback."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: "), line
    for phrase in phrases:
        assert phrase in line, line


@pytest.mark.slow  # the demo in its short form, which CI runs too, goes the same way
def test_sample_generate_and_evaluate_make_a_report(run_dir, records_dir, tmp_path):
    result = run_command(
        "generate",
        f"--model={run_dir / 'model'}",
        f"--reference={SLIDE}",
        f"--region={REGION}",
        f"--output={tmp_path / 'image.tif'}",
    )
    assert result.returncode == 0, result.stderr
    result = run_command(
        "sample",
        f"--model={run_dir / 'model'}",
        f"--records={records_dir}",
        "--count=12",
        "--solver=ancestral",
        "--guidance_interval=0.1,5",
        f"--output={tmp_path / 'samples'}",
    )
    assert result.returncode == 0, result.stderr
    settings = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert (settings["solver"], settings["guidance_interval"]) == ("ancestral", [0.1, 5.0])
    assert len(list((tmp_path / "samples" / "patches").glob("*.png"))) == 12
    result = run_command(
        "evaluate",
        f"--model={run_dir / 'model'}",
        f"--records={records_dir}",
        f"--samples={tmp_path / 'samples'}",
        f"--stitched={tmp_path / 'image.tif'}",
        f"--train={run_dir}",
        f"--output={tmp_path}",
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    distance = {
        name: numbers["fd"]["value"]
        for name, numbers in report["patch"]["spaces"]["encoder"]["sets"].items()
        if "fd" in numbers
    }
    assert distance["noise"] > distance["real"] > 0
    encoder = report["encoder"]
    assert encoder["retrieval_at_1"]["value"] > encoder["random_init_retrieval_at_1"]["value"]
    assert report["autoencoder"]["psnr_db"]["value"] > 20
    assert report["large_image"]["held_out"] is True
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page


@pytest.mark.parametrize(
    "module, arguments, phrases",
    [
        (
            "train",
            ["--config=configs/nothing.py", "--workdir={tmp}/w"],
            ["no such config", "nothing.py"],
        ),
        ("train", ["--config=configs/demo.py:vae", "--workdir={tmp}/w"], ["expected unet or dit"]),
        ("train", ["--workdir={tmp}/w"], ["--config"]),
        ("train", ["--config=configs/demo.py", "--config.stepz=3", "--workdir={tmp}/w"], ["stepz"]),
        (
            "train",
            ["--config=configs/demo.py", "--workdir={tmp}/w", "--config.data.dir={tmp}/none"],
            ["no records in", "ssl_diffusion.prepare"],
        ),
        (
            "train",
            ["--config=configs/bracs.py", "--workdir={tmp}/w", "--config.data.dir={tmp}/none"],
            [
                "BRACS",
                "data/bracs/BRACS_RoI/latest_version/{train,val,test}/",
                "python -m ssl_diffusion.prepare --config=configs/bracs.py",
            ],
        ),
        (
            "prepare",
            ["--config=configs/bracs.py", "--config.data.source={tmp}/no", "--output={tmp}/r"],
            ["BRACS"],
        ),
        (
            "prepare",
            ["--config=configs/demo.py", "--config.data.stride_px=0", "--output={tmp}/r"],
            ["config.data.stride_px is 0"],
        ),
        (
            "prepare",
            ["--config=configs/demo.py", "--config.data.split={tmp}/notes.json"]
            + ["--output={tmp}/r"],
            ["notes.json is no split file"],
        ),
        (
            "prepare",
            ["--config=configs/demo.py", "--config.data.source={tmp}/no.svs", "--output={tmp}/r"],
            ["no images in"],
        ),
        (
            "prepare",
            ["--config=configs/demo.py", "--config.data.source={tmp}/text.svs", "--output={tmp}/r"],
            ["text.svs"],
        ),
        (
            "generate",
            [
                "--model={model}",
                "--reference=" + SLIDE,
                "--region=2000,0,512,512",
                "--output={tmp}/x.png",
            ],
            ["2000,0,512,512", "2220x2967"],
        ),
        (
            "train",
            ["--config=configs/demo.py", "--workdir={tmp}/w", "--config.log_every=0"],
            ["config.log_every is 0, expected 1 or more"],
        ),
        *(
            (
                "train",
                ["--config=configs/demo.py", "--workdir={tmp}/w", "--config.data.dir={records}"]
                + ["--config.data.stride_px=64", setting],
                [phrase],
            )
            for setting, phrase in {
                "--config.sampling.steps=2000": "2000 sampling steps",
                "--config.sampling.stride=17": "stride 17",
                "--config.sampling.guidance=-1.0": "guidance -1.0",
                "--config.diffusion.prediction=epsilon": "unknown prediction kind 'epsilon'",
                "--config.model.policy.compute=bf16": "expected float32 or bfloat16",
                "--config.keep_checkpoints=0": "config.keep_checkpoints is 0",
            }.items()
        ),
        (
            "train",
            ["--config=configs/demo.py", "--workdir={tmp}/w", "--config.task=gan"],
            ["expected one of denoiser, autoencoder, encoder"],
        ),
        ("sample", ["--model={model}", "--records={tmp}", "--output={tmp}/s"], ["no records in"]),
        (
            "evaluate",
            ["--model={model}", "--records={records}", "--samples={tmp}", "--output={tmp}/e"],
            ["has no images"],
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    module, arguments, phrases, run_dir, records_dir, tmp_path
):
    (tmp_path / "text.svs").write_text("these are notes, not a slide")
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    places = {
        "{tmp}": str(tmp_path),
        "{model}": str(run_dir / "model"),
        "{records}": str(records_dir),
    }
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    fails_with(run_command(module, *arguments), *phrases)
    left = {path.name for path in tmp_path.iterdir()} - {
        "text.svs",
        "notes.json",
        "e",
        "s",
    }
    assert not left


def test_truncated_weights_are_named(run_dir, tmp_path):

    shutil.copytree(run_dir / "model", tmp_path / "model")
    weights = tmp_path / "model" / "weights.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    result = run_command(
        "generate",
        f"--model={tmp_path / 'model'}",
        f"--reference={SLIDE}",
        f"--region={REGION}",
        f"--output={tmp_path / 'x.png'}",
    )
    fails_with(result, str(weights), "damaged")
    assert not (tmp_path / "x.png").exists()


def test_workdir_of_another_config_in_a_real_run(run_dir, records_dir):
    result = run_command(
        "train",
        *TINY,
        f"--workdir={run_dir}",
        f"--config.data.dir={records_dir}",
        "--config.seed=7",
    )
    fails_with(result, "belongs to another config", "seed is 0 there, 7 here")


def test_installed_wheel_carries_slide_and_models(tmp_path):
    """Built from a copy of the sources, installed elsewhere, used from elsewhere."""

    source = tmp_path / "source"
    cached = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "ssl_diffusion", source / "ssl_diffusion", ignore=cached)
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            tmp_path,
            source,
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for part in (
        "cmu_small_region.svs",
        "split.json",
        "LICENSE-slide.txt",
        "encoder/model.json",
        "encoder/weights.safetensors",
        "autoencoder/model.json",
        "autoencoder/weights.safetensors",
        "judge/model.json",
        "judge/weights.safetensors",
        "model/model.json",
        "model/weights.safetensors",
        "prior/model.json",
        "prior/weights.safetensors",
        "prior/label_map.png",
    ):
        assert f"ssl_diffusion/demo/{part}" in names
    for part in ("page.html", "page.css", "openseadragon.min.js", "LICENSE-openseadragon.txt"):
        assert f"ssl_diffusion/viewer/{part}" in names
    weights = [
        info for info in zipfile.ZipFile(wheel).infolist() if info.filename.endswith("safetensors")
    ]
    assert sum(info.file_size for info in weights) < 40e6
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            tmp_path / "site",
            wheel,
        ],
        check=True,
    )
    script = (
        "import ssl_diffusion, sys; from ssl_diffusion import demo; "
        "from ssl_diffusion.data.slides import open_image; "
        "from ssl_diffusion.weights.model import load_autoencoder, load_encoder; "
        "print(ssl_diffusion.__file__); "
        "patch = open_image(demo.SLIDE).read(1024, 2048, 64, 64)[None]; "
        "print(load_encoder(demo.ENCODER).embed(patch).shape, "
        "load_autoencoder(demo.AUTOENCODER).encode(patch).shape)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(tmp_path / "site")),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(tmp_path / "site"))
    assert "(1, 1, 192) (1, 16, 16, 6)" in result.stdout
