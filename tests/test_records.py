"""Records on the disk: what is stored, what is read of it, and what damage comes to."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ssl_diffusion.data.image_bytes import encode
from ssl_diffusion.data.records import open_records
from ssl_diffusion.data.writer import Layout, RecordsWriter
from ssl_diffusion.errors import InputError

COUNT = 40
METADATA = {"recipe": {}, "latent": {"shift": 0.5, "scale": 2.0}}


def example(index: int) -> dict:
    """Noise, so that no damage is compressed away."""
    rng = np.random.default_rng(index)
    return {
        "image": rng.integers(0, 255, (32, 32, 3), np.uint8),
        "x": index,
        "y": 2 * index,
        "source": "slide.svs",
        "embedding": rng.standard_normal((1, 8), np.float32),
        "latent": rng.standard_normal((4, 4, 3)).astype(np.float16),
        "latent_std": rng.random((4, 4, 3)).astype(np.float16),
        "tokens": rng.standard_normal((4, 8)).astype(np.float16),
        "variant": index % 2,
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("records") / "records"
    writer = RecordsWriter(
        folder,
        ("train",),
        Layout((1, 8), (4, 4, 3), posterior=True, tokens=(4, 8), variants=True),
    )
    for index in range(COUNT):
        writer.add("train", example(index))
    writer.close(METADATA)
    return folder


@pytest.fixture
def damaged(whole, tmp_path) -> tuple[Path, Path]:
    """(a copy of the records to damage, its only shard)."""
    folder = Path(shutil.copytree(whole, tmp_path / "records"))
    return folder, next(folder.glob("*.array_record*"))


def test_a_record_is_read_as_it_was_written(whole):
    records = open_records(whole)
    found, stored = records.source("train", raw=True)[7], example(7)
    assert found.keys() == {*stored, "mpp"} and found["source"] == "slide.svs"
    for name in stored.keys() - {"source", "x", "y", "variant"}:
        assert found[name].dtype == stored[name].dtype
        np.testing.assert_array_equal(found[name], stored[name])
    assert (found["x"], found["y"], found["variant"]) == (7, 14, 1)
    assert records.shape("tokens") == (4, 8) and records.shape("latent") == (4, 4, 3)


def test_latents_and_their_deviations_are_scaled_unless_raw(whole):
    scaled = open_records(whole).source("train", ("latent", "latent_std"))[3]
    raw = example(3)
    assert scaled["latent"].dtype == scaled["latent_std"].dtype == np.float32
    np.testing.assert_allclose(scaled["latent"], (raw["latent"].astype(np.float32) - 0.5) * 2)
    np.testing.assert_allclose(scaled["latent_std"], raw["latent_std"].astype(np.float32) * 2)


def test_a_record_says_where_it_lies(whole):
    source = open_records(whole).source("train", ("latent",))
    assert source.place(7) == f"{whole} train[7], slide.svs at x=7 y=14"


def test_records_of_lists_of_numbers_are_read(tmp_path):
    """As they were written before arrays were stored as bytes."""
    features = {
        "image": tfds.features.Tensor(shape=(), dtype=np.object_),
        "latent": tfds.features.Tensor(shape=(4, 4, 3), dtype=np.float16),
    }
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="patches", version=tfds.core.Version("1.0.0"), data_dir=str(tmp_path), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict(METADATA),
    )
    writer = tfds.core.SequentialWriter(info, 100, file_format="array_record")
    writer.initialize_splits(["train"])
    latent = example(0)["latent"]
    writer.add_examples({"train": [{"image": encode(example(0)["image"]), "latent": latent}]})
    writer.close_all()
    found = open_records(tmp_path).source("train", raw=True)[0]
    assert found["latent"].dtype == np.float16
    np.testing.assert_array_equal(found["latent"], latent)
    np.testing.assert_array_equal(found["image"], example(0)["image"])


@pytest.mark.parametrize(
    "field, remedy",
    [("tokens", "config.data.patch_tokens"), ("latent_std", "config.data.posterior")],
)
def test_a_field_that_is_not_there_says_how_to_get_it(tmp_path, field, remedy):
    writer = RecordsWriter(tmp_path / "records", ("train",))
    plain = {name: example(0)[name] for name in ("image", "x", "y", "source")}
    writer.add("train", plain)
    writer.close(METADATA)
    with pytest.raises(InputError, match=f"not {field}; prepare them with {remedy}"):
        open_records(tmp_path / "records").source("train", ("image", field))


def test_flipped_bytes_are_one_record_that_cannot_be_read(damaged):
    folder, shard = damaged
    content = bytearray(shard.read_bytes())
    place = content.find(example(11)["tokens"].tobytes())
    content[place + 5] ^= 1
    shard.write_bytes(content)
    source = open_records(folder).source("train")
    for index in {*range(COUNT)} - {11}:
        assert source[index]["x"] == index
    message = f"record {folder} train\\[11\\] cannot be read .*prepare them again"
    with pytest.raises(InputError, match=message):
        source[11]


def test_no_flipped_byte_goes_unseen(damaged):
    folder, shard = damaged
    content = shard.read_bytes()
    refused = 0
    for place in np.random.default_rng(0).integers(0, len(content), 60):
        flipped = bytearray(content)
        flipped[place] ^= 255
        shard.write_bytes(flipped)
        try:
            source = open_records(folder).source("train", ("tokens", "x"))
        except InputError:
            refused += 1
            continue
        for index in range(COUNT):
            try:
                found = source[index]
            except InputError:
                refused += 1
                continue
            assert found["x"] == index
            np.testing.assert_array_equal(found["tokens"], example(index)["tokens"])
    assert refused > 30  # the others hit padding


@pytest.mark.parametrize("left", [None, 0, 0.5, 0.99])
def test_a_shard_that_is_missing_or_cut_off_is_refused_at_once(damaged, left):
    folder, shard = damaged
    if left is None:
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[: int(left * shard.stat().st_size)])
    message = f"records in {folder}: split 'train' has 40 .*cut off: {shard.name}; .*prepare them"
    with pytest.raises(InputError, match=message):
        open_records(folder).source("train")


def test_a_shard_of_other_records_is_refused(damaged, tmp_path):
    folder, shard = damaged
    other = RecordsWriter(tmp_path / "other", ("train",), Layout((1, 8)))
    names = ("image", "x", "y", "source", "embedding")
    other.add("train", {name: example(0)[name] for name in names})
    other.close(METADATA)
    shutil.copyfile(next((tmp_path / "other").glob("*.array_record*")), shard)
    with pytest.raises(InputError, match="has 40 in 1 shards, found 1 in them"):
        open_records(folder).source("train")
