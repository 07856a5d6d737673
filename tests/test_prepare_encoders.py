"""Published encoders at work in prepare: what a record holds is what the recorded network gives."""

import json

import jax
import numpy as np
import oracle
import pytest
from conftest import convert
from flax import traverse_util
from ml_collections import ConfigDict
from slide_files import texture, write_slide

from ssl_diffusion.data import recipe
from ssl_diffusion.data.records import open_records
from ssl_diffusion.encoders.build import build_encoder
from ssl_diffusion.prepare import prepare
from ssl_diffusion.weights.encoder import load_encoder
from ssl_diffusion.weights.layouts import swin, vit
from ssl_diffusion.weights.safetensors_file import write_tensors

# Their parity with the recordings is shown in test_parity_encoders.py and test_swin.py.
ENCODERS = {
    "encoder_timm_vit_small": (vit, 64),
    "encoder_hf_dinov2_small_at_96": (vit, 96),
    "encoder_ctranspath_small": (swin, 56),
}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    for number, split in enumerate(("train", "val", "test")):
        (folder / split).mkdir()
        write_slide(folder / split / "s.tif", texture(number, 300, 300), 0.5, levels=1)
    return folder


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("patch_px", [64, 96])
def test_parity_through_prepare(name, patch_px, slides, tmp_path):
    """To the last bit of float16 as from the encoder called directly, in other chunks."""
    layout, size = ENCODERS[name]
    (tmp_path / "published").mkdir()
    write_tensors(tmp_path / "published" / "model.safetensors", oracle.tensors(name))
    (tmp_path / "published" / "config.json").write_text(json.dumps(oracle.manifest(name)[1]))
    folder = convert(tmp_path / "published", tmp_path / "encoder", image_size=size)
    told = {"source": str(slides), "patch_px": patch_px, "stride_px": patch_px}
    data = ConfigDict(recipe.section() | told | {"encoder": str(folder)})
    prepare(data, tmp_path / "records")
    records = open_records(tmp_path / "records")
    source = records.source("train")
    found = [source[index] for index in range(len(source))]
    stored = np.stack([one["embedding"] for one in found])
    images = np.stack([one["image"] for one in found])
    encoder = load_encoder(folder)
    for batch in (slice(0, 1), slice(3, 8), slice(None)):
        direct = encoder.embed(images[batch]).astype(np.float16)
        np.testing.assert_array_equal(direct, stored[batch].astype(np.float16))
    if patch_px != size:
        return
    # The published tensors themselves, without folders and chunks.
    fields, params, _ = layout.read(oracle.tensors(name), oracle.manifest(name)[1])
    params = traverse_util.unflatten_dict(params, sep="/")
    pixels = (images / 255.0 - np.array(encoder.spec["mean"])) / np.array(encoder.spec["std"])
    plain = jax.jit(build_encoder(fields).apply)({"params": params}, pixels.astype(np.float32))
    assert oracle.difference(stored, np.asarray(plain)) < 3e-5
