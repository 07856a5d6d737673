"""Feature spaces: what they are called, what pins them, one vector on any number of devices."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from ssl_diffusion import demo
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.spaces import CLIP_FID_WEIGHTS, encoder_space, open_space, title_of
from ssl_diffusion.files import sha256
from ssl_diffusion.weights.encoder import load_encoder
from ssl_diffusion.weights.folder import WEIGHTS

CLIP_B32 = {
    "name": "vit",
    "image_size": 224,
    "patch_size": 32,
    "width": 768,
    "depth": 12,
    "heads": 12,
    "pre_norm": True,
    "projection": 512,
    "mlp": "quick_gelu",
}
DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from ssl_diffusion.encoders.build import build_encoder
from ssl_diffusion.encoders.features import CHUNK as FEW, FeatureNetwork
from ssl_diffusion.encoders.encoder import CHUNK, SSLEncoder
from ssl_diffusion.encoders.inception import Inception

class Small(Inception):
    size = 9
    def __call__(self, image):
        weights = self.variables["params"]["weights"]
        return {width: image.reshape(len(image), -1) @ weights[:, :width] for width in self.widths}

assert jax.local_device_count() == 4
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (CHUNK + 70, 16, 16, 3), np.uint8)
vit = build_encoder({"image_size": 8, "patch_size": 4, "width": 16, "depth": 1, "heads": 2})
spec = {"image_size": 8, "mean": [0.5] * 3, "std": [0.2] * 3, "embedding": {"tokens": 1, "dim": 16}}
encoder = SSLEncoder(vit, vit.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"], spec)
weights = rng.standard_normal((243, 2048)).astype(np.float32)
network = FeatureNetwork(Small(), {"weights": weights}, {}, "", "clean")
for run, size in ((encoder.embed, CHUNK), (lambda part: network.features(part)[2048], FEW)):
    alone = [run(images[start : start + size]) for start in range(0, len(images), size)]
    np.testing.assert_allclose(run(images), np.concatenate(alone), rtol=1e-5, atol=1e-5)
assert len(encoder._params_on_each["norm"]["bias"].sharding.device_set) == 4
assert len(network._params_on_each["weights"].sharding.device_set) == 4
print("same")
"""


@pytest.fixture(scope="module")
def space():
    return open_space("demo:encoder", "judge")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)


def test_an_encoders_space_is_its_embedding_and_says_what_pins_it(space, images):
    encoder = load_encoder("demo:encoder")
    np.testing.assert_array_equal(space.embed(images), encoder.embed(images)[:, 0])
    assert (space.name, space.title) == ("judge", "FD (judge)")
    weights = sha256(demo.FOLDER / "encoder" / WEIGHTS)
    pinned = {"input_px": 64, "resize": "bicubic, antialiased, 8 bits", "weights_sha256": weights}
    assert pinned.items() <= space.settings.items()
    again = encoder_space(encoder, "encoder", "FD (project encoder)", weights)
    assert again.digest == space.digest and again.title == "FD (project encoder)"


@pytest.mark.parametrize(
    "change", [{"mean": [0.1, 0.2, 0.3]}, {"image_size": 128}, {"image_resize": "bilinear"}]
)
def test_whatever_decides_a_vector_is_in_the_digest(space, change):
    encoder = load_encoder("demo:encoder")
    weights = space.settings["weights_sha256"]
    changed = type(encoder)(encoder.network, encoder.params, encoder.spec | change)
    assert encoder_space(changed, "judge", "", weights).digest != space.digest
    assert encoder_space(encoder, "judge", "", "0" * 64).digest != space.digest


def test_clip_fid_is_of_one_published_tower():
    openai = {"file": "pytorch_model.bin", "sha256": CLIP_FID_WEIGHTS}
    folder = {"sha256": {"config.json": "0" * 64, "pytorch_model.bin": CLIP_FID_WEIGHTS}}
    tower = {"architecture": CLIP_B32, "image_size": 224}
    assert title_of(tower | {"source": openai}, "tower") == "CLIP-FID"
    assert title_of(tower | {"source": folder}, "tower") == "CLIP-FID"
    assert title_of(tower | {"source": openai, "image_size": 256}, "tower") == "FD (CLIP)"
    assert title_of(tower | {"source": openai | {"sha256": "0" * 64}}, "tower") == "FD (CLIP)"
    assert title_of(tower, "tower") == "FD (CLIP)"  # as one of the architecture, but of others
    other = {"architecture": CLIP_B32 | {"pre_norm": False}, "image_size": 224}
    assert title_of(other | {"source": openai}, "tower") == "FD (tower)"


def test_what_is_no_space_is_refused(tmp_path):
    with pytest.raises(InputError, match="kind 'autoencoder', expected 'encoder' or 'features'"):
        open_space("demo:autoencoder", "judge")
    with pytest.raises(
        InputError, match="demo:encoder holds .* 'encoder', expected 'features': im"
    ):
        open_space("demo:encoder", "inception", kind="features")
    with pytest.raises(InputError, match="resize 'clean' given for demo:encoder, an encoder"):
        open_space("demo:encoder", "judge", "clean")
    with pytest.raises(InputError, match="no model: .* does not exist"):
        open_space(tmp_path / "nowhere", "judge")
    (tmp_path / "inception.pth").touch()
    with pytest.raises(InputError, match="inception.pth is a file, .*convert --input="):
        open_space(tmp_path / "inception.pth", "inception")


def test_a_vector_does_not_depend_on_the_number_of_devices():
    flags = "--xla_force_host_platform_device_count=4"
    run = subprocess.run(
        [sys.executable, "-c", DEVICES],
        env=os.environ | {"XLA_FLAGS": flags},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.stdout == "same\n", run.stderr
