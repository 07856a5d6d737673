"""EfficientNet-Lite: recorded embeddings of its PyTorch port, its tensors there and back."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from conftest import assert_same_tensors, convert

from ssl_diffusion.encoders.build import build_encoder
from ssl_diffusion.encoders.efficientnet import Depthwise
from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.encoder import load_encoder
from ssl_diffusion.weights.exporting import export
from ssl_diffusion.weights.layouts import efficientnet, swin
from ssl_diffusion.weights.safetensors_file import write_tensors

NAME = "efficientnet_lite_small"
COUNTER = {"_blocks.0._bn1.num_batches_tracked": np.zeros((), np.int64)}
CLASSIFIER = {"_fc.weight", "_fc.bias"}
TOLERANCE = 3e-5  # as of the other encoders; rounding is 2e-6


@pytest.fixture(scope="module")
def tensors():
    """The stand-in weights, whose torch outputs are the recording."""
    return oracle.tensors(NAME)


@pytest.fixture(scope="module")
def published(tensors, tmp_path_factory):
    file = tmp_path_factory.mktemp("efficientnet") / "lite.safetensors"
    write_tensors(file, tensors | COUNTER)
    return file


@pytest.fixture(scope="module")
def recording():
    with np.load(Path(__file__).parent / "fixtures" / f"{NAME}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def test_the_port_is_matched_converted_and_written_back(published, recording, tensors, tmp_path):
    colours = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    folder = convert(published, tmp_path / "model", image_size=64, **colours)
    spec = json.loads((folder / "model.json").read_text())
    config = oracle.manifest(NAME)[1]
    for field in ("depths", "widths", "stem", "head"):
        assert spec["architecture"][field] == config[field]
    assert spec["source"]["layout"] == "efficientnet" and spec["image_resize"] == "bicubic"
    encoder = load_encoder(folder)
    found, patches = encoder.embed_with_patches(recording["image"])
    assert oracle.difference(found[:, 0], recording["embedding"]) < TOLERANCE
    assert patches.shape == (2, *encoder.patch_tokens) == (2, 4, 40)
    np.testing.assert_allclose(patches.mean(1), found[:, 0], atol=1e-6)
    export(folder, tmp_path / "back")
    kept = {name: array for name, array in tensors.items() if name not in CLASSIFIER}
    write_tensors(tmp_path / "kept.safetensors", kept)
    assert_same_tensors(tmp_path / "back" / "model.safetensors", tmp_path / "kept.safetensors")
    again = json.loads((convert(tmp_path / "back", tmp_path / "again") / "model.json").read_text())
    for name in ("architecture", "image_size", "mean", "std"):
        assert again[name] == spec[name]


def test_its_own_colours_and_size_are_the_default(published, tmp_path):
    spec = json.loads((convert(published, tmp_path / "model") / "model.json").read_text())
    assert spec["image_size"] == 224
    np.testing.assert_allclose(np.array(spec["mean"]) * 255, 127)
    np.testing.assert_allclose(np.array(spec["std"]) * 255, 128)
    with pytest.raises(InputError, match="--image_size is 80, expected a multiple of 32 px"):
        convert(published, tmp_path / "other", image_size=80)


@pytest.mark.parametrize("size, kernel, stride", [(8, 3, 1), (8, 5, 2), (7, 3, 2), (2, 5, 1)])
def test_channels_are_convolved_by_themselves_padded_as_in_tensorflow(size, kernel, stride):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, size, size, 4), np.float32))
    weights = jnp.asarray(rng.standard_normal((kernel, kernel, 1, 4), np.float32))
    found = jax.jit(Depthwise(kernel, stride).apply)({"params": {"kernel": weights}}, x)
    expected = jax.lax.conv_general_dilated(
        x,
        weights,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4,
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_wrapped_weights_are_recognised_and_the_classifier_is_dropped(tensors):
    wrapped = {f"module.{name}": array for name, array in (tensors | COUNTER).items()}
    assert efficientnet.recognise(wrapped) and not swin.recognise(wrapped)
    _, params, dropped = efficientnet.read(wrapped)
    assert dropped == sorted(f"module.{name}" for name in CLASSIFIER | COUNTER.keys())
    assert len(params) == len(tensors) - len(CLASSIFIER)


def test_every_wrong_tensor_is_in_one_message(tensors, tmp_path):
    wrong = dict(tensors)
    del wrong["_blocks.2._bn1.running_var"]
    wrong["_blocks.0._project_conv.weight"] = np.zeros((8, 9, 1, 1), np.float32)
    wrong["_bn1.bias"] = np.zeros(40, np.int64)
    wrong["_conv_tail.weight"] = np.zeros(3, np.float32)
    write_tensors(tmp_path / "bad.safetensors", wrong)
    with pytest.raises(InputError) as error:
        convert(tmp_path / "bad.safetensors", tmp_path / "model")
    assert str(error.value) == (
        f"{tmp_path / 'bad.safetensors'}: not a whole EfficientNet-Lite encoder: "
        "_blocks.0._project_conv.weight: found [8, 9, 1, 1], expected [8, 16, 1, 1]; "
        "_blocks.2._bn1.running_var: missing, expected [96]; "
        "_bn1.bias: found int64, expected floating point; "
        "_conv_tail.weight: unexpected"
    )


def test_other_efficientnets_are_refused(tensors):
    excited = tensors | {"_blocks.0._se_reduce.weight": np.zeros((4, 8, 1, 1), np.float32)}
    with pytest.raises(InputError, match="squeeze-and-excitation; only the Lite variants are read"):
        efficientnet.read(excited)
    short = {name: t for name, t in tensors.items() if not name.startswith("_blocks.7.")}
    with pytest.raises(InputError, match="expected 7 stages between a stem and a head"):
        efficientnet.read(short)
    headless = {n: t for n, t in tensors.items() if n not in ("_conv_head.weight", "_bn1.weight")}
    with pytest.raises(InputError, match="head missing"):
        efficientnet.read(headless)
    with pytest.raises(InputError, match="no depthwise convolution of a block was found"):
        efficientnet.read({"_fc.bias": np.zeros(1000, np.float32)})
    with pytest.raises(InputError, match="expected blocks and channels of 7 stages"):
        build_encoder({"name": "efficientnet_lite", "depths": [1], "widths": [8]})
