"""Slides, splits, records and the reader."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import load_config, shrink
from ml_collections import ConfigDict
from PIL import Image

from ssl_diffusion import demo
from ssl_diffusion.data.collect import collect
from ssl_diffusion.data.patches import tissue_patches
from ssl_diffusion.data.records import open_records
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.data.split import draw_split, read_split
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json
from ssl_diffusion.prepare import prepare


def patches_of(data: ConfigDict) -> list[dict]:
    """Every patch that a `data` section cuts."""
    split_file = Path(data.split if data.split.endswith(".json") else "none.json")
    opened = [origin.open() for origin in collect(data, split_file).origins]
    return [patch for each in opened for row in range(each.rows) for patch in each.cut(row)]


STAGES = ("demo", "demo_autoencoder", "demo_encoder")


def test_shipped_slide_is_read():
    slide = open_image(demo.SLIDE)
    assert (slide.width, slide.height, slide.mpp) == (2220, 2967, 0.499)
    pixels = slide.read(1024, 2048, 256, 256)
    assert pixels.shape == (256, 256, 3) and pixels.dtype == np.uint8
    red, green, blue = pixels.reshape(-1, 3).mean(0)
    assert red > blue > green  # eosin and haematoxylin


def test_slide_holds_623_tissue_patches():
    assert sum(1 for _ in tissue_patches(open_image(demo.SLIDE), 64, 64, 0.12)) == 623


def test_shipped_split_is_what_its_seed_draws():
    shipped = read_json(demo.resolve(demo.SPLIT), "split")
    drawn = draw_split([open_image(demo.SLIDE)], seed=shipped["drawn"]["seed"], mpp=0.5)
    assert json.loads(json.dumps(drawn)) == shipped | {"mpp": 0.5}
    assert 0.18 < shipped["drawn"]["held_out_patches"] / 623 < 0.22


def test_no_training_patch_of_any_stage_overlaps_a_held_out_block():
    held_out = np.zeros((2967, 2220), bool)
    for x, y in read_json(demo.resolve(demo.SPLIT), "split")["sources"]["cmu_small_region.svs"][
        "held_out"
    ]:
        held_out[y : y + 256, x : x + 256] = True
    sections = {stage: load_config(stage).data for stage in STAGES}
    geometry = ("source", "split", "patch_px", "stride_px", "mpp", "min_saturation")
    recipes = {tuple(section[name] for name in geometry) for section in sections.values()}
    assert len(recipes) == 1  # so that one pass below speaks for all three stages
    counts = {"train": 0, "test": 0}
    for patch in patches_of(sections["demo"]):
        covered = held_out[patch["y"] : patch["y"] + 64, patch["x"] : patch["x"] + 64]
        assert covered.all() if patch["split"] == "test" else not covered.any()
        counts[patch["split"]] += 1
    assert counts == {"train": 7323, "test": 130}


def test_shipped_models_name_the_shipped_split():
    digest = read_split(demo.SPLIT).sha256
    for folder in (demo.ENCODER, demo.AUTOENCODER):
        spec = read_json(demo.resolve(folder) / "model.json", "model")
        assert spec["trained"]["split_sha256"] == digest
        assert spec["trained"]["measured"] and spec["trained"]["command"]


def test_split_of_another_image_is_refused(tmp_path):
    split = read_json(demo.resolve(demo.SPLIT), "split")
    (tmp_path / "split.json").write_text(json.dumps(split))
    (tmp_path / "cmu_small_region.svs").write_bytes(b"another slide")
    read = read_split(tmp_path / "split.json")
    with pytest.raises(InputError, match="SHA-256"):
        read.check_image(tmp_path / "cmu_small_region.svs")
    with pytest.raises(InputError, match="not other.svs"):
        read.check_image(tmp_path / "other.svs")


def test_own_image_gets_a_split_of_its_own_that_is_kept(tmp_path):
    """An image at twice the resolution: blocks and patches count in pixels at the records' own."""
    slide = open_image(demo.SLIDE).read(700, 1600, 640, 640)
    Image.fromarray(slide).resize((1280, 1280)).save(tmp_path / "roi.png")
    data = shrink(load_config("demo_encoder")).data
    data.update({"source": str(tmp_path / "roi.png"), "split": str(tmp_path / "split.json")})
    data.source_mpp = 0.25
    prepare(data, tmp_path / "records")
    drawn = (tmp_path / "split.json").read_text()
    records = open_records(tmp_path / "records")
    train, test = records.source("train"), records.source("test")
    assert len(train) + len(test) == 89 and len(test) == 21
    held_out = read_split(tmp_path / "split.json")
    for i in range(len(train)):
        assert not held_out.blocks("roi.png").touch(train[i]["x"], train[i]["y"], 64)
    prepare(data, tmp_path / "records")
    assert (tmp_path / "split.json").read_text() == drawn
    changed = json.loads(drawn)
    changed["sources"]["roi.png"]["held_out"] = [[0, 0]]
    (tmp_path / "split.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match="split_sha256"):  # never the old records with a new split
        prepare(data, tmp_path / "records")


def test_one_image_without_folders_is_refused_where_folders_split(tmp_path):
    data = shrink(load_config("demo_encoder")).data
    data.split = "folders"
    with pytest.raises(InputError, match="split by a manifest or a split file"):
        prepare(data, tmp_path / "records")


def test_resampling_keeps_physical_size_and_has_no_seams(tmp_path):
    rng = np.random.default_rng(0)
    smooth = np.asarray(
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).resize(
            (600, 400), Image.BICUBIC
        )
    )
    Image.fromarray(smooth).save(tmp_path / "roi.png")
    half = open_image(tmp_path / "roi.png").at(0.5, assumed_mpp=0.25)
    assert (half.width, half.height) == (300, 200)
    whole = half.read(0, 0, 300, 200).astype(int)
    np.testing.assert_allclose(whole, smooth.reshape(200, 2, 300, 2, 3).mean((1, 3)), atol=6)
    tile = half.read(96, 64, 64, 64).astype(int)
    assert np.abs(tile - whole[64:128, 96:160]).max() <= 1  # rounding only


def test_unknown_resolution_and_coarse_images_are_refused(tmp_path):
    Image.new("RGB", (80, 80)).save(tmp_path / "plain.png")
    image = open_image(tmp_path / "plain.png")
    with pytest.raises(InputError, match="source_mpp"):
        image.at(0.5)
    with pytest.raises(InputError, match="coarser"):
        image.at(0.5, assumed_mpp=1.0)


def test_region_outside_and_file_that_is_no_slide(tmp_path):
    with pytest.raises(InputError, match="2220x2967"):
        open_image(demo.SLIDE).read(2000, 0, 256, 256)
    (tmp_path / "notes.svs").write_text("not a slide")
    with pytest.raises(InputError, match="no slide"):
        open_image(tmp_path / "notes.svs")
    with pytest.raises(InputError, match="no image or slide"):
        open_image(tmp_path / "missing.svs")


def test_folders_are_splits_and_resolution_is_assumed(tmp_path):
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        folder = tmp_path / split / "0_N"
        folder.mkdir(parents=True)
        pixels = rng.integers(0, 255, (256, 300, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"roi_{split}.png")
    data = load_config("bracs").data
    data.update({"source": str(tmp_path), "patch_px": 64, "stride_px": 32})
    found = [(patch["split"], patch["x"], patch["y"]) for patch in patches_of(data)]
    assert found.count(("train", 32, 64)) == 1 and ("test", 32, 64) not in found
    assert (
        sum(split == "train" for split, *_ in found) == 3 * 3
    )  # 150 x 128 px at 0.5 µm/px, stride 32
    assert sum(split == "test" for split, *_ in found) == 2 * 2


def test_records_hold_what_was_prepared(records_dir):
    records = open_records(records_dir)
    test = records.source("test")
    assert (len(records.source("train")), len(test)) == (493, 130)
    example = test[17]
    assert example["embedding"].shape == (1, 192) and example["embedding"].dtype == np.float32
    assert example["latent"].shape == (16, 16, 6) and example["latent"].dtype == np.float32
    slide = open_image(demo.SLIDE)
    np.testing.assert_array_equal(example["image"], slide.read(example["x"], example["y"], 64, 64))

    from ssl_diffusion.weights.model import load_autoencoder, load_encoder

    encoder = load_encoder(records_dir / "encoder")
    np.testing.assert_array_equal(encoder.embed(example["image"][None])[0], example["embedding"])
    stage = load_autoencoder(records_dir / "autoencoder")
    raw = stage.encode(example["image"][None])[0].astype(np.float16).astype(np.float32)
    latent = stage.spec["latent"]
    np.testing.assert_allclose(
        example["latent"], (raw - latent["shift"]) * latent["scale"], atol=1e-6
    )
    scaled = np.concatenate(list(records.source("train", ("latent",)).chunks("latent")))
    assert 0.8 < scaled.std() < 1.25  # what the schedule is made for


def test_a_split_that_is_not_there_is_refused(records_dir):
    records = open_records(records_dir)
    assert (records.count("train"), records.count("val"), records.count("dev")) == (493, 0, 0)
    for split in ("val", "dev"):
        with pytest.raises(InputError, match=f"'train': 493.*none of '{split}' to read"):
            records.source(split)


def test_records_open_in_tfds(records_dir):
    source = tfds.builder_from_directory(str(records_dir)).as_data_source("test")
    assert len(source) == 130 and source[0]["image"].startswith(b"\x89PNG")


def test_prepare_reuses_the_same_recipe_and_refuses_another(records_dir):
    data = shrink(load_config("demo")).data
    before = (records_dir / "dataset_info.json").stat().st_mtime_ns
    prepare(data, records_dir)
    assert (records_dir / "dataset_info.json").stat().st_mtime_ns == before
    data.min_saturation = 0.2
    with pytest.raises(InputError, match="min_saturation"):
        prepare(data, records_dir)


def test_failed_preparation_leaves_nothing(tmp_path):
    data = shrink(load_config("demo")).data
    data.min_saturation = 0.999  # no patch passes
    with pytest.raises(InputError, match="patches found"):
        prepare(data, tmp_path / "records")
    assert list(tmp_path.iterdir()) == []


def test_a_config_without_images_says_what_to_get(tmp_path):
    data = ConfigDict(load_config("bracs").data)
    data.source = str(tmp_path)
    with pytest.raises(InputError, match="BRACS_RoI"):
        collect(data, tmp_path / "split.json")


def test_the_split_file_lies_with_the_records(records_dir):
    assert (records_dir / "split.json").read_bytes() == demo.resolve(demo.SPLIT).read_bytes()
