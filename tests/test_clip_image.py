"""CLIP's image tower: the recorded embeddings, its files in and out, what is refused."""

import json
import logging

import jax
import numpy as np
import oracle
import pytest
from conftest import assert_same_tensors, convert
from flax import traverse_util
from text_folders import text_folder

from ssl_diffusion.encoders.vit import ViT
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.build import build
from ssl_diffusion.weights.encoder import load_encoder
from ssl_diffusion.weights.exporting import export
from ssl_diffusion.weights.layouts import vit
from ssl_diffusion.weights.layouts.vit_names import recognise
from ssl_diffusion.weights.safetensors_file import write_tensors
from ssl_diffusion.weights.text_encoder import load_text_encoder

NAME = "encoder_clip_image_small"
TOLERANCE = 3e-5  # as of the other encoders
FIELDS = {
    "image_size": 32,
    "patch_size": 8,
    "width": 48,
    "depth": 2,
    "heads": 4,
    "mlp_ratio": 2.0,
    "mlp": "quick_gelu",
    "epsilon": 1e-5,
    "pre_norm": True,
    "projection": 32,
}


@pytest.fixture
def tower(tmp_path):
    """The folder of the image tower alone, as transformers leaves it."""
    folder = tmp_path / "tower"
    folder.mkdir()
    write_tensors(folder / "model.safetensors", oracle.tensors(NAME))
    (folder / "config.json").write_text(json.dumps(oracle.manifest(NAME)[1]))
    return folder


@pytest.fixture
def whole(tmp_path):
    """The folder of a whole CLIP: both towers, and their settings under their names."""
    folder = text_folder(tmp_path / "clip", "clip_text")
    tensors = oracle.tensors("text_clip_small") | oracle.tensors(NAME)
    tensors |= {"logit_scale": np.ones((), np.float32)}
    tensors |= {"vision_model.embeddings.position_ids": np.arange(17)[None]}
    # A tower of texts may be the deeper one.
    layers = {k: t for k, t in tensors.items() if k.startswith("text_model.encoder.layers.1.")}
    tensors |= {key.replace("layers.1.", "layers.2."): t for key, t in layers.items()}
    write_tensors(folder / "model.safetensors", tensors)
    texts = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    images = oracle.manifest(NAME)[1]
    del images["num_hidden_layers"]
    config = {"text_config": texts, "vision_config": images, "projection_dim": 32}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_parity_of_clip_images():
    fields, params, dropped = vit.read(oracle.tensors(NAME), oracle.manifest(NAME)[1])
    assert fields == FIELDS and dropped == []
    recording, network = oracle.recorded(NAME), build(ViT, fields)
    variables = {"params": traverse_util.unflatten_dict(params, sep="/")}
    found, patches = jax.jit(network.apply, static_argnames="method")(
        variables, oracle.nhwc(recording["image"]), method="with_patches"
    )
    assert oracle.difference(found[:, 0], recording["embedding"]) < TOLERANCE
    assert found.shape == (2, 1, network.dim) and patches.shape == (2, 16, network.patch_dim)


def test_the_image_tower_is_converted_runs_and_comes_back(tower, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        folder = convert(tower, tmp_path / "model")
    assert "nothing says the mean of the encoder's input: CLIP's" in caplog.text
    spec = json.loads((folder / "model.json").read_text())
    assert spec["embedding"] == {"tokens": 1, "dim": 32} and spec["image_size"] == 32
    assert spec["mean"] == [0.48145466, 0.4578275, 0.40821073]
    encoder = load_encoder(folder)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    embedding, patches = encoder.embed_with_patches(images)
    assert embedding.shape == (2, 1, 32) and patches.shape[1:] == encoder.patch_tokens == (16, 48)
    export(folder, tmp_path / "back")
    assert_same_tensors(tmp_path / "back/model.safetensors", tower / "model.safetensors")
    (tower / "config.json").unlink()
    again = convert(tmp_path / "back", tmp_path / "again")
    np.testing.assert_array_equal(load_encoder(again).embed(images), embedding)


def test_an_exported_tower_without_settings_of_its_own_gets_them(tower, tmp_path):
    folder = convert(tower, tmp_path / "model")
    spec = json.loads((folder / "model.json").read_text())
    spec["source"]["config"] = {}
    (folder / "model.json").write_text(json.dumps(spec))
    export(folder, tmp_path / "back")
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert config["model_type"] == "clip_vision_model"
    assert config.items() >= oracle.manifest(NAME)[1].items()
    again = json.loads((convert(tmp_path / "back", tmp_path / "again") / "model.json").read_text())
    assert again["architecture"] == FIELDS and again["mean"] == spec["mean"]


def test_of_a_whole_clip_one_says_which_tower_to_take(whole, tmp_path):
    with pytest.raises(InputError, match="two towers of a CLIP; .*--layout=vit.*--layout=text"):
        convert(whole, tmp_path / "model")
    images = convert(whole, tmp_path / "images", layout="vit")
    assert json.loads((images / "model.json").read_text())["architecture"] == FIELDS
    texts = convert(whole, tmp_path / "texts", layout="text")
    assert load_text_encoder(texts).dim == load_encoder(images).network.dim == 32


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"visual_projection.weight": None},
            r"visual_projection.weight: missing, expected \[32, 48",
        ),
        ({"vision_model.pre_layrnorm.bias": None}, "pre_layrnorm.bias: missing"),
        (
            {"vision_model.embeddings.patch_embedding.bias": np.zeros(48, np.float32)},
            "patch_embedding.bias: unexpected",
        ),
        (
            {"vision_model.embeddings.class_embedding": np.zeros((1, 48), np.float32)},
            r"class_embedding: found \[1, 48\], expected \[48\]",
        ),
    ],
)
def test_a_tower_that_is_not_whole_is_refused(change, message):
    tensors = oracle.tensors(NAME) | change
    tensors = {key: array for key, array in tensors.items() if array is not None}
    assert recognise(tensors) == "transformers-clip"
    with pytest.raises(InputError, match=message):
        vit.read(tensors, oracle.manifest(NAME)[1])


def test_the_activation_of_clip_is_that_of_its_settings():
    config = oracle.manifest(NAME)[1]
    assert vit.read(oracle.tensors(NAME), config | {"hidden_act": "gelu"})[0].get("mlp") is None
    silent = {key: value for key, value in config.items() if key != "hidden_act"}
    assert vit.read(oracle.tensors(NAME), silent)[0]["mlp"] == "quick_gelu"
    with pytest.raises(InputError, match="activation 'relu', expected 'gelu' or 'quick_gelu'"):
        vit.read(oracle.tensors(NAME), config | {"hidden_act": "relu"})


def test_only_clip_holds_what_is_of_clip():
    with pytest.raises(InputError, match="a norm before the blocks, a projection, quick_gelu"):
        vit.write("timm", FIELDS, {})
    plain = {key: FIELDS[key] for key in ("image_size", "patch_size", "width", "depth", "heads")}
    with pytest.raises(InputError, match="without a norm before the blocks, one without a proj"):
        vit.write("transformers-clip", plain, {})
