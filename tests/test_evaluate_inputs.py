"""Reading what other commands wrote: samples, stitched images, training runs, sets of images."""

import dataclasses
import json

import numpy as np
import pytest
from fake_evaluation import PATCH, SLIDE, FakeModel, picture, write_records, write_samples
from PIL import Image

from ssl_diffusion.data.records import open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation import checks, inputs
from ssl_diffusion.evaluation.spaces import Space


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


def test_what_may_not_be_what_it_is_taken_for_is_remarked(tmp_path):
    write_records(tmp_path / "records")
    records, train = (open_records(tmp_path / "records") for _ in range(2))
    space = Space(
        "inception", "FD (Inception)", "", {"published_weights": True}, lambda images: images
    )
    assert checks.remarks(FakeModel("of_this_split"), [space], records, train) == []
    other = dataclasses.replace(space, settings={"published_weights": False})
    assert "FD (Inception): the weights" in checks.remarks(None, [other], records, None)[0]
    (remark,) = checks.remarks(FakeModel("right"), [], records, train)
    assert "does not say what it was trained on" in remark
    # The same slide in records of another split; by its content, where the name is another.
    train.metadata["split_sha256"] = "0"
    (remark,) = checks.remarks(FakeModel("of_another_split"), [], records, train)
    assert "share 1 source(s), by name or content: slide & <b>.png" in remark
    split = json.loads((tmp_path / "records" / "split.json").read_text())
    for name, digest, count in (("x.png", "1", 1), ("x.png", "2", 0)):
        write_records(tmp_path / f"records{digest}")
        slide = split["sources"][SLIDE] | {"sha256": "1"}
        for folder, file in (("records", SLIDE), (f"records{digest}", name)):
            sources = {file: slide if folder == "records" else slide | {"sha256": digest}}
            text = json.dumps(split | {"sources": sources})
            (tmp_path / folder / "split.json").write_text(text)
        others = open_records(tmp_path / f"records{digest}")
        assert len(checks.shared_sources(records, others)) == count
    train.metadata["patch_px"] = 2 * PATCH
    with pytest.raises(InputError, match="patches of 32 px, --records of 16"):
        checks.check_train_records(train, records)


def test_a_set_is_recognised_by_what_it_is(tmp_path):
    write_records(tmp_path / "records")
    assert len(inputs.open_images(tmp_path / "records", PATCH)) == 24  # the held-out split
    Image.fromarray(picture(0, 5 * PATCH)).save(tmp_path / "large.png")
    assert len(inputs.open_images(tmp_path / "large.png", PATCH)) == 25
    assert inputs.is_paired(write_samples(tmp_path / "samples", [0]))
    with pytest.raises(InputError, match="does not exist"):
        inputs.open_images(tmp_path / "none", PATCH)
    with pytest.raises(InputError, match=r"16x16 px, the records patches of 32x32"):
        inputs.open_images(tmp_path / "samples" / "patches", 32)


def test_stitched_images_of_a_folder_have_their_settings(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "no_settings.png")
    with pytest.raises(InputError, match=r"no \.png or \.tif with its \.json"):
        inputs.stitched_files(tmp_path)
    for name in ("b.png", "a.tif"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".json").write_text("{}")
    assert [file.name for file in inputs.stitched_files(tmp_path)] == ["a.tif", "b.png"]
