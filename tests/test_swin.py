"""CTransPath: the recorded embeddings, its tensors there and back, its windows."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from conftest import assert_same_tensors, convert
from flax import traverse_util

from ssl_diffusion.encoders.build import build_encoder
from ssl_diffusion.encoders.swin import APART, relative_positions, shift_mask
from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.encoder import load_encoder
from ssl_diffusion.weights.exporting import export
from ssl_diffusion.weights.layouts import swin
from ssl_diffusion.weights.layouts.vit_names import recognise as recognise_vit
from ssl_diffusion.weights.safetensors_file import write_tensors

RECORDED = ("encoder_ctranspath_small", "encoder_ctranspath_full")
SMALL = {
    "name": "swin",
    "width": 32,
    "depths": [2, 2],
    "heads": [2, 4],
    "window": 7,
    "mlp_ratio": 4.0,
}
TOLERANCE = 3e-5  # as of the other encoders; rounding is 1e-6


@pytest.fixture
def published(tmp_path):
    """The file of the small encoder."""
    write_tensors(tmp_path / "ctranspath.safetensors", oracle.tensors(RECORDED[0]))
    return tmp_path / "ctranspath.safetensors"


@pytest.mark.parametrize("name", RECORDED)
def test_parity_of_ctranspath(name):
    fields, params, _ = swin.read(oracle.tensors(name))
    config = oracle.manifest(name)[1]
    for ours, theirs in {"width": "embed_dim", "depths": "depths", "heads": "num_heads"}.items():
        assert fields[ours] == config[theirs]
    recording = oracle.recorded(name)
    variables = {"params": traverse_util.unflatten_dict(params, sep="/")}
    network = build_encoder(fields)
    image = oracle.nhwc(recording["image"])
    found, patches = jax.jit(network.apply, static_argnames="method")(
        variables, image, method="with_patches"
    )
    assert oracle.difference(found[:, 0], recording["embedding"]) < TOLERANCE
    assert patches.shape == (2, (image.shape[1] // network.patch_size) ** 2, network.dim)
    np.testing.assert_allclose(patches.mean(1), found[:, 0], atol=1e-6)


@pytest.mark.parametrize("name", RECORDED)
def test_parity_of_names_shapes_and_values_with_wrappers_buffers_and_a_head(name, caplog):
    tensors = oracle.tensors(name)
    buffers = {
        "layers.0.blocks.0.attn.relative_position_index": np.zeros((49, 49), np.int64),
        "layers.0.blocks.1.attn_mask": np.zeros((4, 49, 49), np.float32),
        "patch_embed.proj.1.num_batches_tracked": np.zeros((), np.int64),
        "head.weight": np.zeros((3, 64), np.float32),
    }
    wrapped = {f"module.{key}": array for key, array in (tensors | buffers).items()}
    assert swin.recognise(wrapped) and recognise_vit(wrapped) is None
    with caplog.at_level(logging.INFO):
        _, params, dropped = swin.read(wrapped)
    assert dropped == sorted(f"module.{key}" for key in buffers)
    assert "dropped 4 tensors" in caplog.text
    back = swin.write(params)
    assert back.keys() == tensors.keys()
    for key, array in back.items():
        np.testing.assert_array_equal(array, tensors[key])


def test_ctranspath_is_converted_runs_and_comes_back(published, tmp_path):
    colours = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.25)}
    folder = convert(published, tmp_path / "model", **colours)
    spec = json.loads((folder / "model.json").read_text())
    assert spec["architecture"] == SMALL and spec["image_size"] == 56
    assert spec["image_resize"] == "bilinear"
    assert spec["embedding"] == {"tokens": 1, "dim": 64} and spec["mean"] == [0.1, 0.2, 0.3]
    encoder = load_encoder(folder)
    images = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), np.uint8)
    embedding, patches = encoder.embed_with_patches(images)
    assert patches.shape[1:] == encoder.patch_tokens == (49, 64)
    normal = (images / 255 - np.array(colours["mean"])) / np.array(colours["std"])
    expected = encoder.network.apply({"params": encoder.params}, jnp.asarray(normal, jnp.float32))
    np.testing.assert_allclose(embedding, expected, atol=1e-4)
    np.testing.assert_array_equal(encoder.embed(images[1:]), encoder.embed(images)[1:])
    assert np.abs(encoder.reinitialised(0).embed(images) - embedding).max() > 1e-2
    export(folder, tmp_path / "back")
    assert_same_tensors(tmp_path / "back" / "model.safetensors", published)
    again = json.loads((convert(tmp_path / "back", tmp_path / "again") / "model.json").read_text())
    for name in ("architecture", "mean", "std"):
        assert again[name] == spec[name]
    assert convert(published, tmp_path / "imagenet").is_dir()
    assert load_encoder(tmp_path / "imagenet").spec["mean"] == [0.485, 0.456, 0.406]


def test_ctranspath_takes_whole_windows_at_every_stage(published, tmp_path):
    with pytest.raises(InputError, match="--image_size is 64, expected a multiple of 56 px"):
        convert(published, tmp_path / "model", image_size=64)
    folder = convert(published, tmp_path / "model", image_size=112)
    images = np.random.default_rng(0).integers(0, 256, (1, 112, 112, 3), np.uint8)
    assert load_encoder(folder).embed(images).shape == (1, 1, 64)
    spec = json.loads((folder / "model.json").read_text())
    for size in (224 + 28, "56", 0, 56.0):
        (folder / "model.json").write_text(json.dumps(spec | {"image_size": size}))
        with pytest.raises(InputError, match=f"image_size is {size!r}, expected a multiple of 56"):
            load_encoder(folder)
    assert build_encoder(swin.architecture(oracle.tensors(RECORDED[1]))).size_step == 224


def test_every_wrong_tensor_of_ctranspath_is_in_one_message(published, tmp_path):
    tensors = oracle.tensors(RECORDED[0])
    del tensors["layers.1.blocks.1.norm2.bias"]
    tensors["layers.0.downsample.reduction.weight"] = np.zeros((128, 64), np.float32)
    tensors["patch_embed.proj.1.running_mean"] = np.zeros(4, np.int64)
    tensors["layers.2.downsample.norm.bias"] = np.zeros(4, np.float32)
    write_tensors(published, tensors)
    with pytest.raises(InputError) as error:
        convert(published, tmp_path / "model")
    assert str(error.value) == (
        f"{published}: not a whole CTransPath encoder: "
        "layers.0.downsample.reduction.weight: found [128, 64], expected [64, 128]; "
        "layers.1.blocks.1.norm2.bias: missing, expected [64]; "
        "layers.2.downsample.norm.bias: unexpected; "
        "patch_embed.proj.1.running_mean: found int64, expected floating point"
    )
    assert not (tmp_path / "model").exists()


def test_a_swin_without_the_convolutional_stem_is_named_by_what_it_lacks():
    tensors = oracle.tensors(RECORDED[0])
    plain = {key: t for key, t in tensors.items() if "patch_embed.proj" not in key}
    plain["patch_embed.proj.weight"] = np.zeros((32, 3, 4, 4), np.float32)
    with pytest.raises(InputError, match="proj.0.weight: missing.*proj.weight: unexpected"):
        swin.read(plain)


@pytest.mark.parametrize("gone", ["relative_position_bias_table", r"norm", "mlp.fc1.bias"])
def test_what_tells_the_architecture_of_a_swin_may_not_be_missing(gone):
    tensors = {k: t for k, t in oracle.tensors(RECORDED[0]).items() if gone not in k}
    with pytest.raises(InputError, match="architecture is unknown|no Swin in timm's layout"):
        swin.read(tensors)


def test_depths_and_heads_without_a_block_in_between_are_reported_as_missing():
    tensors = oracle.tensors(RECORDED[0])
    gone = {k: t for k, t in tensors.items() if not k.startswith("layers.1.blocks.0.")}
    with pytest.raises(InputError, match=r"layers.1.blocks.0.attn.qkv.weight: missing"):
        swin.read(gone)
    far = f"layers.{'9' * 5000}.blocks.{'9' * 5000}.norm1.bias"
    with pytest.raises(InputError, match=r"9.norm1.bias: unexpected"):
        swin.read(tensors | {far: np.zeros(32, np.float32)})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": "resnet"}, "encoder name 'resnet', expected one of vit, swin"),
        ({"heads": [2, 5]}, r"heads \(2, 5\); expected blocks and heads for every stage"),
        ({"heads": [2]}, "blocks and heads for every stage"),
        ({"depths": [2, 0]}, "blocks and heads for every stage"),
        ({"width": 36, "heads": [2, 4]}, "a multiple of 8"),
        ({"window": 33}, "window is 33, expected at most 32 positions a side"),
        ({"window": "7"}, "window is '7', expected a positive int"),
    ],
)
def test_architectures_that_are_none_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        build_encoder(SMALL | change)


def test_an_architecture_without_a_name_is_a_vit():
    fields = {"image_size": 32, "patch_size": 8, "width": 64, "depth": 1, "heads": 4}
    assert build_encoder(fields) == build_encoder({"name": "vit"} | fields)
    assert build_encoder(fields).size_step == 8


@pytest.mark.parametrize("side, window, shift", [(14, 7, 3), (28, 7, 3), (8, 4, 2), (7, 7, 0)])
def test_only_neighbours_of_the_image_see_each_other(side, window, shift):
    """Brute force: the place that each position had before the cyclic shift."""
    mask = shift_mask(side, window, shift)
    for index, (top, left) in enumerate(np.ndindex(side // window, side // window)):
        rows, cols = ((np.arange(window) + start * window + shift) % side for start in (top, left))
        place = np.stack(np.meshgrid(rows, cols, indexing="ij"), -1).reshape(-1, 2)
        near = (np.abs(place[:, None] - place) < window).all(-1)
        found = np.broadcast_to(mask, ((side // window) ** 2, *mask.shape[1:]))[index]
        np.testing.assert_array_equal(found, np.where(near, 0, APART))


def test_pairs_with_the_same_offset_share_a_bias():
    index = relative_positions(3)
    assert len(np.unique(index)) == 25 and index.max() == 24 and index.min() == 0
    row, col = np.divmod(np.arange(9), 3)
    offset = 100 * (row[:, None] - row) + col[:, None] - col
    for value in np.unique(index):
        assert len(np.unique(offset[index == value])) == 1
