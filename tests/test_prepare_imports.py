"""Data sets that others cut, from their own layout to records."""

import io
import json

import numpy as np
import pytest
from cut_before import SIDE, pixels
from ml_collections import ConfigDict
from PIL import Image
from test_imports_features import COORDS, FEATURES, SLIDES, slides, trident  # noqa: F401
from test_imports_published import FEATURES as PUBLISHED
from test_imports_published import INDICES, NAMES, brca  # noqa: F401
from test_imports_side_files import save
from test_imports_tfds import CLASSES, write

from ssl_diffusion import demo
from ssl_diffusion.data import recipe
from ssl_diffusion.data.records import Records, open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.prepare import prepare
from ssl_diffusion.weights.encoder import load_encoder


def prepared(source, tmp_path, **entries) -> Records:
    data = recipe.section(source=str(source), patch_px=SIDE, stride_px=SIDE, mpp=0.5) | entries
    assert prepare(ConfigDict(data), tmp_path / "records") == []
    assert (tmp_path / "records" / "index.html").stat().st_size > 10_000
    return open_records(tmp_path / "records")


def examples(records: Records, split: str) -> list[dict]:
    source = records.source(split, raw=True)
    return [source[index] for index in range(len(source))]


def test_the_published_training_layout(brca, tmp_path):  # noqa: F811
    records = prepared(brca, tmp_path)
    assert records.metadata["layout"] == "published"
    for split, indices in INDICES.items():
        found = examples(records, split)
        rows = [int(np.flatnonzero((PUBLISHED == e["embedding"]).all(1))[0]) for e in found]
        assert sorted(rows) == sorted(indices)
        for row, example in zip(rows, found, strict=True):
            expected = np.asarray(Image.open(brca / "pyramid" / NAMES[row]).convert("RGB"))
            np.testing.assert_array_equal(example["image"], expected)
    assert records.metadata["embedding"] == {"tokens": 1, "dim": 6}
    assert not (tmp_path / "records" / "encoder").exists()


def test_side_files_keep_their_latents(tmp_path):
    made = save(tmp_path / "pixcell")
    records = prepared(tmp_path / "pixcell", tmp_path)
    found = [e for split in ("train", "val", "test") for e in examples(records, split)]
    assert len(found) == len(made) == 12
    for image, embedding, moments in made.values():
        (example,) = [e for e in found if (e["image"] == image).all()]
        np.testing.assert_array_equal(example["embedding"], embedding.astype(np.float32))
        np.testing.assert_array_equal(example["latent"], moments[:16].transpose(1, 2, 0))
        np.testing.assert_array_equal(example["latent_std"], moments[16:].transpose(1, 2, 0))
    assert records.metadata["latent"] == {"shift": 0.0609, "scale": 1.5305}


def test_features_of_slides_with_a_manifest(trident, slides, tmp_path):  # noqa: F811
    folder = trident / "20x_32px_0px_overlap" / "features_uni"
    lines = [f"{slide}.h5,{split},{label}" for slide, split, label in LISTED]
    (tmp_path / "m.csv").write_text("\n".join(["file,split,label", *lines]))
    records = prepared(folder, tmp_path, slides=str(slides), manifest=str(tmp_path / "m.csv"))
    assert records.metadata["classes"] == ["lum", "tnbc"]
    for slide, split, label in LISTED:
        found = [e for e in examples(records, split) if e["source"].startswith(slide)]
        assert len(found) == len(COORDS) - 1
        for embedding, example in zip(FEATURES[slide], found, strict=False):
            np.testing.assert_array_equal(example["embedding"], [embedding])
            assert example["label"] == ["lum", "tnbc"].index(label)
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("file,label\nnone.h5,lum\n")
    with pytest.raises(InputError, match="1 of the manifest's 1 files are none of"):
        prepared(folder, tmp_path / "b", slides=str(slides), manifest=str(wrong))


LISTED = (
    (SLIDES[0], "train", "tnbc"),
    (SLIDES[1], "test", "lum"),
    (SLIDES[2], "train", "lum"),
)


def test_a_prepared_tfds_set_is_embedded_by_our_encoder(tmp_path, monkeypatch):
    write(tmp_path / "home" / "tiles" / "1.0.0", side=64)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "home"))
    records = prepared("tfds:tiles", tmp_path, patch_px=64, encoder=demo.ENCODER)
    assert {s: records.count(s) for s in ("train", "val", "test")} == {
        "train": 7,
        "val": 1,
        "test": 3,
    }
    assert records.metadata["classes"] == CLASSES
    assert records.metadata["label_counts"]["train"] == [4, 3, 0]
    found = examples(records, "train")
    for seed, example in enumerate(found):
        np.testing.assert_array_equal(example["image"], pixels(seed, 64))
        assert example["label"] == seed % 2
    direct = load_encoder(demo.ENCODER).embed(np.stack([e["image"] for e in found]))
    stored = np.stack([e["embedding"] for e in found])
    np.testing.assert_array_equal(direct.astype(np.float16), stored.astype(np.float16))


def jpegs_with_embeddings(folder, embeddings):
    for index, embedding in enumerate(embeddings):
        path = folder / "patches" / f"slide{index}" / "0_0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels(index, 64)).save(path)
        np.save(path.with_name("0_0_uni.npy"), embedding)
    (folder / "features").mkdir()
    for path in list(folder.glob("patches/*/*_uni.npy")):
        target = folder / "features" / path.relative_to(folder / "patches")
        target.parent.mkdir()
        path.rename(target)


def test_a_model_that_is_named_must_have_made_what_is_there(tmp_path):
    encoder = load_encoder(demo.ENCODER)
    own = encoder.embed(np.stack([pixels(index, 64) for index in range(4)]))
    jpegs_with_embeddings(tmp_path / "own", own.astype(np.float16))
    named = {"patch_px": 64, "encoder": demo.ENCODER}
    records = prepared(tmp_path / "own", tmp_path, **named)
    (found, *_) = examples(records, "test")
    assert found["embedding"].astype(np.float16).tobytes() in {
        one.astype(np.float16).tobytes() for one in own
    }
    assert (tmp_path / "records" / "encoder" / "model.json").is_file()
    jpegs_with_embeddings(tmp_path / "other", np.roll(own, 1, 0))
    with pytest.raises(InputError, match=r"demo:encoder makes differs by 0.20 of its size"):
        prepared(tmp_path / "other", tmp_path / "b", **named)
    jpegs_with_embeddings(tmp_path / "wide", own.repeat(2, -1))
    with pytest.raises(InputError, match=r"as \[1, 384\], but demo:encoder makes \[1, 192\]"):
        prepared(tmp_path / "wide", tmp_path / "c", **named)
    with pytest.raises(InputError, match="of the patches as they are; set it to 1"):
        prepared(tmp_path / "own", tmp_path / "d", patch_px=64, variants=2)


def test_jpeg_bytes_are_kept_to_the_byte(tmp_path):
    made = save(tmp_path / "pixcell")
    prepared(tmp_path / "pixcell", tmp_path)
    import tensorflow_datasets as tfds

    stored = tfds.builder_from_directory(str(tmp_path / "records")).as_data_source()
    kept = {bytes(one["image"]) for split in stored.values() for one in split}
    files = {path.read_bytes() for path in (tmp_path / "pixcell").rglob("*.jpeg")}
    assert kept == files and len(files) == len(made)
    assert all(Image.open(io.BytesIO(one)).format == "JPEG" for one in kept)
    assert json.loads((tmp_path / "records" / "metadata.json").read_text())["layout"]
