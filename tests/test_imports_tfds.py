"""Data sets that TFDS prepared, in ArrayRecord and in TFRecord files."""

import io
import json
import struct
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from cut_before import SIDE, pixels, read
from PIL import Image

from ssl_diffusion.data.imports.tfrecords import TFRecords, masked
from ssl_diffusion.errors import InputError

CLASSES = ["stroma", "tumor"]
COUNTS = {"train": 7, "validation": 1, "test": 3}


def encoded(seed, side=SIDE, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed, side)).save(buffer, kind)
    return buffer.getvalue()


def write(folder, counts=COUNTS, features=None, **image):
    """A data set with two records a file; images are numbered on from split to split."""
    folder.mkdir(parents=True)
    version = tfds.core.Version("1.0.0")
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="tiles", version=version, data_dir=str(folder), module_name=""
    )
    features = features or {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=CLASSES),
    }
    features = tfds.features.FeaturesDict(features)
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(info, 2, file_format="array_record")
    writer.initialize_splits(list(counts))
    seeds = iter(range(100))
    for split, count in counts.items():
        for seed in (next(seeds) for _ in range(count)):
            example = {"image": encoded(seed, **image), "label": seed % 2}
            writer.add_examples({split: [{name: example[name] for name in features}]})
    writer.close_all()
    return folder


def as_tfrecords(folder):
    """The same data set in TFRecord files."""
    for path in folder.glob("*array_record*"):
        with open(path.with_name(path.name.replace("array_record", "tfrecord")), "wb") as file:
            for record in ArrayRecordDataSource(str(path)):
                length = struct.pack("<Q", len(record))
                file.write(length + struct.pack("<I", masked(length)))
                file.write(record + struct.pack("<I", masked(record)))
        path.unlink()
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    return folder


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_records_are_taken_as_they_are(tmp_path, monkeypatch, kind):
    folder = write(tmp_path / "tiles" / "1.0.0")
    if kind == "tfrecord":
        as_tfrecords(folder)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    collection, examples = read("tfds:tiles")
    assert (collection.layout, collection.classes) == ("TFDS", ("stroma", "tumor"))
    assert [e["encoded"] for e in examples] == [encoded(seed) for seed in range(11)]
    assert [e["label"] for e in examples] == [CLASSES[seed % 2] for seed in range(11)]
    assert [e["split"] for e in examples] == ["train"] * 7 + ["val"] + ["test"] * 3
    assert "tensorflow" not in sys.modules
    assert [e["encoded"] for e in read(folder)[1]] == [e["encoded"] for e in examples]


def test_jpeg_stays_jpeg_and_labels_may_lack(tmp_path):
    features = {"image": tfds.features.Image(shape=(None, None, 3))}
    folder = write(tmp_path / "1.0.0", features=features, kind="JPEG")
    collection, examples = read(folder)
    assert collection.classes == () and "label" not in examples[0]
    assert examples[3]["encoded"] == encoded(3, kind="JPEG")


def test_version_and_config_are_found(tmp_path):
    for place, count in (("a/1.0.0", 2), ("a/1.0.10", 3), ("a/1.0.9", 4), ("b/1.0.0", 5)):
        write(tmp_path / "tiles" / place, {"train": count, "test": 1})

    def count(source):
        return len(read(source, tfds_dir=str(tmp_path))[1]) - 1

    assert count("tfds:tiles/a") == 3  # 10 is after 9
    assert count("tfds:tiles/a:1.0.9") == 4
    assert count("tfds:tiles/b") == 5
    for source, match in (
        ("tfds:tiles", r"configs \['a', 'b'\]"),
        ("tfds:tiles/a:2.0.0", r"versions there: \['1.0.0', '1.0.9', '1.0.10'\]"),
        ("tfds:other", "versions there: none"),
        ("tfds:../tiles", "expected tfds:NAME"),
        ("tfds:tiles/..", "versions there: none"),
    ):
        with pytest.raises(InputError, match=match):
            count(source)


def test_a_train_split_alone_is_drawn_from_only_if_asked(tmp_path):
    folder = write(tmp_path / "1.0.0", {"train": 20, "extra": 1})
    with pytest.raises(InputError, match="set config.data.split to 'records'"):
        read(folder)
    collection, examples = read(folder, split="records", held_out=(0.1, 0.3))
    splits = [e["split"] for e in examples]
    assert [splits.count(s) for s in ("train", "val", "test")] == [12, 2, 6]
    assert {e["encoded"] for e in examples} == {encoded(seed) for seed in range(20)}
    assert collection.settings["left_out"] == ["extra"]


def test_other_sizes_and_features_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"record 0 of split train in .* has 16x16 px, expected"):
        read(write(tmp_path / "a" / "1.0.0", side=16))
    features = {"label": tfds.features.ClassLabel(names=CLASSES)}
    with pytest.raises(InputError, match=r"features \['label'\], expected images in `image`"):
        read(write(tmp_path / "b" / "1.0.0", features=features))
    folder = write(tmp_path / "c" / "1.0.0")
    path = folder / "features.json"
    path.write_text(path.read_text().replace("tensorflow_datasets.core.features.image_", "evil."))
    with pytest.raises(InputError, match="the class evil.feature.Image, which is not TFDS's own"):
        read(folder)


def test_shards_stay_in_the_folder(tmp_path):
    folder = write(tmp_path / "1.0.0")
    path = folder / "dataset_info.json"
    path.write_text(path.read_text().replace("{DATASET}-", "../{DATASET}-"))
    for shard in folder.glob("tiles-*"):
        shard.rename(tmp_path / shard.name)
    with pytest.raises(InputError, match="is missing in"):
        read(folder)


def test_damage_is_named(tmp_path):
    folder = as_tfrecords(write(tmp_path / "1.0.0"))
    path = next(folder.glob("*train*00001*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="no TFRecord file, or cut off"):
        read(folder)
    path.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    with pytest.raises(InputError, match="record 3 of split train .*has changed since"):
        read(folder)
    first = TFRecords([str(path)])[0]
    path.write_bytes(whole[: 12 + len(first) + 4])
    with pytest.raises(InputError, match="has 7 records, found 6"):
        read(folder)
    path.unlink()
    with pytest.raises(InputError, match="is missing in .* a shard of split train"):
        read(folder)


def test_large_splits_are_shared_between_origins(tmp_path, monkeypatch):
    monkeypatch.setattr("ssl_diffusion.data.imports.tfds_sets.PER_ORIGIN", 3)
    monkeypatch.setattr("ssl_diffusion.data.imports.tfds_sets.ROW", 2)
    collection, examples = read(write(tmp_path / "1.0.0"))
    assert [o.name for o in collection.origins] == [
        "train-0",
        "train-1",
        "train-2",
        "validation-0",
        "test-0",
    ]
    assert [e["encoded"] for e in examples] == [encoded(seed) for seed in range(11)]
    assert np.ceil(3 / 2) == collection.origins[0].open().rows
