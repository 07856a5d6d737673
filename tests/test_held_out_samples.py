"""Samples that evaluate makes itself: kept, gone on with, used again; the spaces it judges in."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ssl_diffusion import demo, held_out_samples
from ssl_diffusion.data.records import open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation import inputs, judging
from ssl_diffusion.evaluation.intervals import evenly
from ssl_diffusion.held_out_samples import sample_held_out
from ssl_diffusion.weights.encoder import load_encoder
from ssl_diffusion.weights.model import load_model


@pytest.fixture(scope="module")
def model(run_dir):
    return load_model(run_dir / "model")


def pixels(folder):
    return {file.name: np.asarray(Image.open(file)) for file in (folder / "patches").iterdir()}


def test_samples_are_made_once_and_a_killed_run_goes_on(model, records_dir, tmp_path, monkeypatch):
    records, folder = open_records(records_dir), tmp_path / "samples"
    monkeypatch.setattr(held_out_samples, "BATCH", 2)
    sample_held_out(model, records, 4, folder)
    picked = evenly(records.count("test"), 4).tolist()
    whole = pixels(folder)
    indices, images, settings = inputs.read_samples(folder, records.count("test"), 64)
    np.testing.assert_array_equal(indices, picked)
    assert (settings["model_sha256"], settings["seed"]) == (model.sha256, 0)
    third, last = f"{picked[2]:05d}.png", f"{picked[3]:05d}.png"
    np.testing.assert_array_equal(images[2], whole[third])

    # As if it had been killed in the second batch: only that is made again.
    started = {name: value for name, value in settings.items() if name != "seconds"}
    (folder / "unfinished.json").write_text(json.dumps(started))
    (folder / "samples.json").unlink()
    (folder / "patches" / last).unlink()
    made = []
    real = held_out_samples.sample
    monkeypatch.setattr(
        held_out_samples, "sample", lambda *args: made.append(args[4].tolist()) or real(*args)
    )
    sample_held_out(model, records, 4, folder)
    assert made == [picked[2:]] and not (folder / "unfinished.json").exists()
    np.testing.assert_array_equal(pixels(folder)[last], whole[last])
    assert sample_held_out(model, records, 4, folder) == 0 and len(made) == 1
    with pytest.raises(InputError, match=r"other samples \(count 4, asked for 2; other indices; s"):
        sample_held_out(model, records, 2, folder, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").touch()
    with pytest.raises(InputError, match="holds other samples, or files of yours"):
        sample_held_out(model, records, 4, tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["photo.png"]
    with pytest.raises(InputError, match="1 patch of split"):
        sample_held_out(model, records, 1, tmp_path / "new")
    assert len(made) == 1 and len(pixels(folder)) == 4
    with pytest.raises(InputError, match="--count=9999"):
        sample_held_out(model, records, 9999, folder)


def other_judge(folder):
    shutil.copytree(demo.resolve(demo.JUDGE), folder / "theirs")
    return str(folder / "theirs")


def test_the_judge_is_another_encoder_and_names_are_distinct(tmp_path):
    own = judging.conditioning_space(load_encoder(demo.ENCODER), demo.resolve(demo.ENCODER))
    shutil.copytree(demo.resolve(demo.ENCODER), tmp_path / "copied")
    with pytest.raises(InputError, match="not independent"):
        judging.further_spaces(own, str(tmp_path / "copied"), [], None)
    # The same vectors by other weights: it was only saved again.
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    first, again, another = (
        dataclasses.replace(
            own, embed=lambda images, step=step: images.reshape(2, -1)[:, ::step] / 1
        )
        for step in (1, 1, -1)
    )
    with pytest.raises(InputError, match="not independent"):
        judging.check_independent(first, again, images)
    judging.check_independent(first, another, images)
    shipped, given = (
        judging.further_spaces(own, judge, [], None)[0].settings["ships"]
        for judge in (demo.JUDGE, other_judge(tmp_path))
    )
    assert shipped and not given
    with pytest.raises(InputError, match="--resize=clean is of FID's Inception, and --networks"):
        judging.further_spaces(own, "none", [str(tmp_path / "copied")], "clean")
    # As a network it may stand beside itself.
    found = judging.further_spaces(own, "none", [str(tmp_path / "copied")], None)
    assert [space.name for space in found] == ["copied"]
    with pytest.raises(InputError, match="comes twice"):
        judging.further_spaces(own, "none", [str(tmp_path / "copied")] * 2, None)
    with pytest.raises(InputError, match="comes twice, or is taken"):
        judging.further_spaces(own, "none", [demo.ENCODER], None)
    with pytest.raises(InputError, match="kind 'autoencoder'"):
        judging.further_spaces(own, demo.AUTOENCODER, [], None)


def test_the_demos_judge_is_for_records_of_the_demos_split(records_dir, monkeypatch, tmp_path):
    records = open_records(records_dir)
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "weights.safetensors").write_bytes(b"")
    monkeypatch.setattr(demo, "JUDGE", str(tmp_path / "judge"))
    assert judging.default_judge(records) == str(tmp_path / "judge")
    records.metadata["split_sha256"] = "another"
    assert judging.default_judge(records) == judging.NO_JUDGE
