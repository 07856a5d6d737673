"""FID's Inception-v3: the recorded features, its resizes, the weights that it takes and refuses."""

import json
import logging

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from conftest import convert

from ssl_diffusion.encoders.features import (
    FeatureNetwork,
    build_feature_network,
    resize_clean,
    resize_tensorflow,
)
from ssl_diffusion.encoders.vit import interpolation
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.spaces import open_space
from ssl_diffusion.weights.encoder import load_encoder
from ssl_diffusion.weights.exporting import export
from ssl_diffusion.weights.features import load_features
from ssl_diffusion.weights.layouts import inception, swin
from ssl_diffusion.weights.layouts.vit_names import recognise as recognise_vit
from ssl_diffusion.weights.safetensors_file import write_tensors

TOLERANCE = 3e-5  # as of the encoders; rounding is 4e-6


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return oracle.tensors("inception_fid")


@pytest.fixture(scope="module")
def weights_file(tensors, tmp_path_factory):
    """As it is handed round: beside the counters of training."""
    file = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    counters = {"Mixed_6e.branch_pool.bn.num_batches_tracked": np.zeros((), np.int64)}
    write_tensors(file, tensors | counters)
    return file


@pytest.fixture(scope="module")
def folder(weights_file):
    return convert(weights_file, weights_file.parent / "model")


def random_images(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def test_parity_of_inception_its_resize_included(folder):
    recording, network = oracle.recorded("inception_fid"), load_features(folder)
    images = oracle.nhwc(recording["image"])
    found = network.features(images)
    for width in (768, 2048):
        assert found[width].shape == (2, width) and found[width].dtype == np.float32
        assert oracle.difference(found[width], recording[f"features_{width}"]) < TOLERANCE
    clean = open_space(folder, "inception", "clean").embed(images)
    assert clean.shape == found[2048].shape
    assert np.abs(clean - found[2048]).max() > 0.1 * found[2048].std()
    assert network.features(images[:0])[768].shape == (0, 768)


def test_the_model_folder_says_what_it_is(folder, weights_file):
    spec = json.loads((folder / "model.json").read_text())
    assert spec["kind"] == "features" and spec["resize"] == "tensorflow"
    assert spec["source"]["layout"] == "inception" and len(spec["source"]["sha256"]) == 64
    network = load_features(folder)
    assert len(network.digest) == 64 and network.resize == "tensorflow"
    with pytest.raises(InputError, match="describes a 'features' model, expected a 'encoder'"):
        load_encoder(folder)
    with pytest.raises(InputError, match="kind 'features', which no published layout holds"):
        export(folder, folder.parent / "back")
    with pytest.raises(InputError, match="resize is 'area', expected one of tensorflow, clean"):
        load_features(folder, resize="area")
    with pytest.raises(InputError, match="--image_size given, but .* kind 'features'"):
        convert(weights_file, folder.parent / "resized", image_size=256)
    with pytest.raises(InputError, match="feature network name 'vgg', expected one of inception"):
        build_feature_network({"name": "vgg"})


def test_the_first_resize_is_that_of_tensorflow_1():
    """Output i lies at i * old / new, and the last input stands for what lies beyond it."""
    row = jnp.asarray([0.0, 8.0, 4.0])
    image = jnp.broadcast_to(row[None, None, :, None], (1, 3, 3, 3))
    found = resize_tensorflow(image, 6)
    np.testing.assert_array_equal(found[0, 4, :, 1], [0, 4, 8, 6, 4, 4])
    np.testing.assert_array_equal(resize_tensorflow(image.swapaxes(1, 2), 6), found.swapaxes(1, 2))
    long = jnp.arange(12.0).reshape(1, 1, 12, 1) * jnp.ones((1, 5, 1, 3))
    np.testing.assert_array_equal(resize_tensorflow(long, 4)[0, 0, :, 0], [0, 3, 6, 9])
    same = jnp.asarray(random_images(1, 299, 299), jnp.float32)
    np.testing.assert_array_equal(resize_tensorflow(same, 299), same)


@pytest.mark.parametrize("height, width", [(64, 40), (700, 512)])
def test_the_clean_resize_is_antialiased_cubic_convolution(height, width):
    image = random_images(1, height, width)[0]
    down, across = (interpolation(side, 299, "antialias") for side in (height, width))
    expected = np.einsum("ih,jw,hwc->ijc", down, across, image, optimize=True)
    found = resize_clean(image, 299)
    np.testing.assert_allclose(found, expected.clip(0, 255), atol=0.01)
    assert (expected.min() < 0) == (height < 299)  # noise overshoots where it is enlarged


def test_images_without_pixels_are_refused(folder):
    network: FeatureNetwork = load_features(folder)
    with pytest.raises(InputError, match=r"images of shape \(0, 5, 3\), expected pixels"):
        network.features(np.zeros((2, 0, 5, 3), np.uint8))


def test_wrapped_weights_are_recognised_and_the_classifier_is_dropped(tensors, caplog):
    wrapped = {f"module.{name}": array for name, array in tensors.items()}
    assert inception.recognise(wrapped)
    assert not swin.recognise(wrapped) and recognise_vit(wrapped) is None
    with caplog.at_level(logging.INFO):
        params, dropped = inception.read(wrapped)
    assert dropped == ["module.fc.bias", "module.fc.weight"]
    assert len(params) + len(dropped) == len(tensors)
    assert "dropped 2 tensors" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"fc.weight": np.zeros((1000, 2048), np.float32)},
        {"AuxLogits.conv0.conv.weight": np.zeros((128, 768, 1, 1), np.float32)},
    ],
)
def test_an_inception_that_is_not_of_fid_is_refused(change, tensors):
    with pytest.raises(InputError, match="not the one of FID .* are no FID; give the weights"):
        inception.read(tensors | change)


def test_every_wrong_tensor_is_in_one_message(tensors, tmp_path):
    wrong = dict(tensors)
    del wrong["Mixed_7c.branch3x3dbl_3b.bn.running_var"]
    wrong["Mixed_6b.branch7x7_2.conv.weight"] = np.zeros((128, 128, 7, 1), np.float32)
    wrong["Mixed_5b.branch_pool.bn.bias"] = np.zeros(32, np.int64)
    wrong["Mixed_8a.branch1x1.bn.bias"] = np.zeros(32, np.float32)
    write_tensors(tmp_path / "bad.safetensors", wrong)
    with pytest.raises(InputError) as error:
        convert(tmp_path / "bad.safetensors", tmp_path / "model")
    assert str(error.value) == (
        f"{tmp_path / 'bad.safetensors'}: not a whole Inception-v3 encoder: "
        "Mixed_5b.branch_pool.bn.bias: found int64, expected floating point; "
        "Mixed_6b.branch7x7_2.conv.weight: found [128, 128, 7, 1], expected [128, 128, 1, 7]; "
        "Mixed_7c.branch3x3dbl_3b.bn.running_var: missing, expected [384]; "
        "Mixed_8a.branch1x1.bn.bias: unexpected"
    )
    with pytest.raises(InputError, match="no Inception-v3: no branch of one was found"):
        inception.read({"fc.bias": np.zeros(1008, np.float32)})
    assert not (tmp_path / "model").exists()


def test_its_space_is_the_deeper_feature_and_fid_is_of_one_resize(folder, caplog):
    space = open_space(folder, "inception")
    assert space.embed(random_images(1, 8, 8)[:0]).shape == (0, 2048)
    assert (
        space.title == "FD (Inception)" and space.settings["layer"] == "2048, mean over positions"
    )
    assert not space.settings["published_weights"]
    assert "its distances are not called FID" in caplog.text
    clean = open_space(folder, "inception", "clean")
    assert clean.title == "FD (Inception, clean resize)" and clean.digest != space.digest
    assert len(clean.settings["source_sha256"]) == 64
