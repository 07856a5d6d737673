"""Model folders: written whole, read with every fault named."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ssl_diffusion import demo
from ssl_diffusion.diffusion.plans import make_plan
from ssl_diffusion.diffusion.solvers import solve
from ssl_diffusion.diffusion.timesteps import trailing_timesteps
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import replacing, write_json
from ssl_diffusion.models.autoencoder import Autoencoder
from ssl_diffusion.pixels import pair_sheet
from ssl_diffusion.weights.encoder import load_encoder
from ssl_diffusion.weights.folder import read_params, read_spec, write_model
from ssl_diffusion.weights.model import load_autoencoder, load_model

PARAMS = {
    "a": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)},
    "b": np.ones(4, np.float32),
}


def test_parameters_come_back_exactly(tmp_path):
    spec = read_spec(demo.ENCODER, "encoder")
    write_model(tmp_path / "model", spec, PARAMS)
    back = read_params(tmp_path / "model", PARAMS)
    jax.tree.map(np.testing.assert_array_equal, back, PARAMS)
    modes = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert len(modes) == 1  # the weights are as readable as the rest
    assert read_spec(tmp_path / "model", "encoder") == spec


def test_every_wrong_tensor_is_named_at_once(tmp_path):
    write_model(tmp_path / "model", {"kind": "encoder"}, PARAMS)
    expected = {"a": {"kernel": np.zeros((3, 2))}, "c": np.zeros(4)}
    with pytest.raises(InputError) as error:
        read_params(tmp_path / "model", expected)
    for part in (
        "a/kernel: found (2, 3), expected (3, 2)",
        "b: found (4,), expected nothing",
        "c: found nothing",
    ):
        assert part in str(error.value)


def test_damaged_and_foreign_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_model(tmp_path / "nothing")
    with pytest.raises(InputError, match="'encoder' model, expected a 'denoiser'"):
        load_model(demo.ENCODER)
    (tmp_path / "model.json").write_text('{"kind": "encoder"')
    with pytest.raises(InputError, match="not valid JSON"):
        load_encoder(tmp_path)
    spec = read_spec(demo.AUTOENCODER, "autoencoder")
    spec["architecture"]["middle"] = True
    write_json(tmp_path / "model.json", spec)
    with pytest.raises(InputError, match="middle"):
        load_autoencoder(tmp_path)
    del spec["latent"]
    write_json(tmp_path / "model.json", spec)
    with pytest.raises(InputError, match="lacks latent"):
        load_autoencoder(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes((10**12).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="damaged"):
        read_params(tmp_path, PARAMS)


def test_half_written_files_and_folders_never_appear(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "model") as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["old"]
    with replacing(tmp_path / "model") as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    write_json(tmp_path / "x.json", {"a": 1})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert {path.name for path in tmp_path.iterdir()} == {"model", "x.json"}


def test_loaded_model_denoises_like_the_parameters_it_was_written_with(run_dir):
    """Round trip through the folder: same samples to the bit, whichever object they come from."""
    first, second = load_model(run_dir / "model"), load_model(run_dir / "model")
    flat = safetensors.numpy.load_file(run_dir / "model" / "weights.safetensors")
    kernel = first.params["conditioner"]["projection"]["kernel"]
    np.testing.assert_array_equal(kernel, flat["conditioner/projection/kernel"])
    embedding = jax.random.normal(jax.random.key(0), (2, 1, 192))
    noise = jax.random.normal(jax.random.key(1), (2, 16, 16, first.latent_channels))
    plan = make_plan("ddim", first.schedule, trailing_timesteps(first.schedule.steps, 2))
    results = [
        solve(plan, lambda k, m=m: (m.denoiser(2.0), m.context(embedding)), noise)
        for m in (first, second)
    ]
    np.testing.assert_array_equal(*results)
    with pytest.raises(InputError, match=r"expected \[n, 1, 192\]"):
        first.context(jnp.zeros((2, 1, 64)))


def test_shipped_autoencoder_reconstructs_and_ignores_the_batch():
    stage = load_autoencoder(demo.AUTOENCODER)
    images = np.random.default_rng(0).integers(0, 255, (33, 64, 64, 3), np.uint8)
    together = stage.encode(images)
    np.testing.assert_array_equal(stage.encode(images[32:]), together[32:])
    measured = stage.spec["trained"]["measured"]
    assert measured["psnr_db"] >= 26


def test_autoencoder_quantises_to_the_nearest_code():
    network = Autoencoder(32, (1, 1), 1, latent_channels=3, codebook=16)
    image = jnp.zeros((1, 16, 16, 3))
    params = network.init(jax.random.key(0), image)
    latent = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    codes = np.asarray(params["params"]["codes"])
    nearest = network.apply(params, latent, method="nearest_code")
    distances = ((np.asarray(latent)[..., None, :] - codes) ** 2).sum(-1)
    np.testing.assert_array_equal(nearest, distances.argmin(-1))
    exact = network.apply(params, jnp.asarray(codes[nearest]), method="decode")
    np.testing.assert_allclose(network.apply(params, latent, method="decode"), exact, atol=1e-6)


def test_autoencoder_of_the_published_size_has_its_number_of_parameters():
    network = Autoencoder(128, (1, 2, 4), 2, latent_channels=3, codebook=8192)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6, 1) == 55.3


def test_pair_sheet_places_pairs_row_by_row():
    left = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    sheet = pair_sheet(left, left + 100, columns=2)
    assert sheet.shape == (2 * 12 + 4, 2 * 20 + 4, 3)
    assert (sheet[16:24, 4:12] == 2).all() and (sheet[16:24, 12:20] == 102).all()
    assert (sheet[:4] == 255).all()
