"""LDM checkpoints in, the same files out."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, assert_same_tensors, convert
from flax.traverse_util import flatten_dict, unflatten_dict
from oracle import TOLERANCE, difference, manifest, nhwc, recorded, stand_in

from ssl_diffusion.diffusion.sampling import Sampling
from ssl_diffusion.diffusion.schedule import make_betas
from ssl_diffusion.errors import InputError
from ssl_diffusion.stitching.large_image import LargeImage
from ssl_diffusion.stitching.settings import Settings
from ssl_diffusion.weights.exporting import export
from ssl_diffusion.weights.layouts import ldm
from ssl_diffusion.weights.model import (
    load_autoencoder,
    load_model,
    start_params,
)
from ssl_diffusion.weights.safetensors_file import read_tensors, write_tensors

BETAS = make_betas("ldm_linear", 1000, beta_start=0.0015, beta_end=0.0195)
RELEASED = ("brca_hipt_20x", "crc_ibot_20x", "brca_ctranspath_5x", "naip_vitb16")


def whole(name: str) -> dict[str, np.ndarray]:
    """The checkpoint of a manifest: drawn tensors, and the schedule's tables computed."""
    tables = ldm.schedule_tables(BETAS)
    shapes, _ = manifest(name)
    return {
        key: tables[key] if key in tables else stand_in(key, shape) for key, shape in shapes.items()
    }


def test_parity_of_a_converted_ldm_checkpoint(published):
    reference = recorded("unet_small")
    model = load_model(published[1])
    context = model.context(reference["embedding"][:, None])
    x, timestep = jnp.asarray(nhwc(reference["latent"])), jnp.asarray(reference["timestep"])
    found = model.denoiser(guidance=1.0)(x, timestep, context).eps
    assert difference(found, nhwc(reference["eps"])) < TOLERANCE


def test_ldm_checkpoint_comes_back_as_it_was(published, tmp_path):
    export(published[1], tmp_path / "back.safetensors")
    assert_same_tensors(tmp_path / "back.safetensors", published[0])


# The peak of the process itself: what `wait` reports begins at that of the one it was forked from.
CONVERT_AND_TELL_PEAK = """
import pathlib, re, runpy
runpy.run_module("ssl_diffusion.convert", run_name="__main__", alter_sys=True)
print(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_released_checkpoints_convert_and_come_back(name, tmp_path):
    """At full size, within a memory of 2.5 times the file."""
    write_tensors(tmp_path / "full.safetensors", whole(name))
    size = (tmp_path / "full.safetensors").stat().st_size
    model, back = tmp_path / "model", tmp_path / "back.safetensors"
    for arguments in (
        [f"--input={tmp_path / 'full.safetensors'}", f"--output={model}"],
        ["--export", f"--input={model}", f"--output={back}"],
    ):
        command = [sys.executable, "-c", CONVERT_AND_TELL_PEAK, *arguments]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
        assert int(done.stdout) * 1024 < 2.5 * size
    assert_same_tensors(back, tmp_path / "full.safetensors")
    spec = json.loads((model / "model.json").read_text())
    assert spec["embedding"]["dim"] == (384 if "hipt" in name else 768)


def test_model_json_says_what_the_model_is(published):
    spec = json.loads((published[1] / "model.json").read_text())
    assert spec["diffusion"] == {
        "schedule": {
            "name": "ldm_linear",
            "steps": 1000,
            "beta_start": 0.0015,
            "beta_end": 0.0195,
        },
        "prediction": "eps",
    }
    assert spec["embedding"] == {"tokens": 1, "dim": 48, "encoder": None}
    assert spec["patch_px"] == 256
    assert spec["source"]["file"] == "small.safetensors" and len(spec["source"]["sha256"]) == 64
    stage = json.loads((published[1] / "autoencoder" / "model.json").read_text())
    assert stage["latent"] == {"shift": 0.0, "scale": 1.0}


def test_lightning_checkpoint_with_companions_and_wrappers(published, tmp_path, caplog):
    """As torch writes it: `module.` before the names, EMA copies, a loss beside the parameters."""
    arrays = {f"module.{name}": array for name, array in read_tensors(published[0]).items()}
    arrays |= {
        "module.model_ema.decay": np.float32(0.9),
        "module.model_ema.diffusion_modelout2bias": np.zeros(3, np.float32),
        "module.first_stage_model.loss.logvar": np.zeros(1, np.float32),
    }
    write_tensors(tmp_path / "module.safetensors", {k: np.asarray(v) for k, v in arrays.items()})
    with caplog.at_level("INFO"):
        folder = convert(tmp_path / "module.safetensors", tmp_path / "model")
    assert_same_tensors(folder / "weights.safetensors", published[1] / "weights.safetensors")
    assert "model_ema" in caplog.text and "loss" in caplog.text


def test_imagenet_ldm_is_a_start_for_training(published, run_dir, tmp_path, caplog):
    arrays = dict(read_tensors(published[0]))
    for name in [name for name in arrays if name.startswith("cond_stage_model.")]:
        del arrays[name]
    arrays["cond_stage_model.embedding.weight"] = np.zeros((1001, 64), np.float32)
    write_tensors(tmp_path / "imagenet.safetensors", arrays)
    with caplog.at_level("INFO"):
        folder = convert(tmp_path / "imagenet.safetensors", tmp_path / "model")
    assert "it embeds classes" in caplog.text
    with pytest.raises(InputError, match="config.init_from"):
        load_model(folder)
    # Another width of context: what reads it is trained from the start, and the log says so.
    stored = read_tensors(folder / "weights.safetensors")
    fresh = {name: np.full(array.shape, 7.0, np.float32) for name, array in stored.items()}
    widened = [name for name in fresh if "/attn2/to_k/" in name or "/attn2/to_v/" in name]
    for name in widened:
        fresh[name] = np.full((48, fresh[name].shape[1]), 7.0, np.float32)
    fresh["conditioner/projection/kernel"] = np.full((384, 48), 7.0, np.float32)
    nested = unflatten_dict(fresh, sep="/")
    spec = json.loads((folder / "model.json").read_text())
    architecture, diffusion = spec["architecture"], spec["diffusion"]
    with caplog.at_level("INFO"):
        started = flatten_dict(start_params(folder, architecture, diffusion, nested), sep="/")
    for name, array in started.items():
        kept = name in widened or name.startswith("conditioner/")
        np.testing.assert_array_equal(array, fresh[name] if kept else stored[name])
    assert widened[0] in caplog.text and "conditioner/projection/kernel" in caplog.text
    with caplog.at_level("INFO"):
        start_params(folder, architecture, diffusion | {"prediction": "v"}, nested)
    assert "trained with another process" in caplog.text
    with pytest.raises(InputError, match="of another architecture"):
        start_params(folder, architecture | {"heads": 2}, diffusion, nested)


def test_first_stage_by_itself(published, tmp_path):
    prefix = "first_stage_model."
    arrays = {
        name.removeprefix(prefix): array
        for name, array in read_tensors(published[0]).items()
        if name.startswith(prefix)
    } | {"loss.logvar": np.zeros(1, np.float32)}
    write_tensors(tmp_path / "vq.safetensors", arrays)
    folder = convert(tmp_path / "vq.safetensors", tmp_path / "model")
    assert load_autoencoder(folder).network.codebook
    whole_model = published[1] / "autoencoder" / "weights.safetensors"
    assert_same_tensors(folder / "weights.safetensors", whole_model)
    export(folder, tmp_path / "back.safetensors")
    del arrays["loss.logvar"]
    write_tensors(tmp_path / "vq.safetensors", arrays)
    assert_same_tensors(tmp_path / "back.safetensors", tmp_path / "vq.safetensors")


def test_bfloat16_folder_holds_half_the_bytes_and_nearly_the_same(published, tmp_path):
    folder = convert(published[0], tmp_path / "model", dtype="bfloat16")
    sizes = [(path / "weights.safetensors").stat().st_size for path in (folder, published[1])]
    assert sizes[0] < 0.52 * sizes[1]
    stored = read_tensors(published[1] / "weights.safetensors")
    for name, array in flatten_dict(load_model(folder).params, sep="/").items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, stored[name], rtol=2**-8, atol=1e-30)


def test_generate_needs_the_embedding_that_the_model_was_trained_with(published, tmp_path):
    model = load_model(published[1])
    with pytest.raises(InputError, match=r"expected \[rows, cols, 1, 48\]"):
        settings = Settings(Sampling(1, 1.0), "overlap", 64, "uniform", 256, seed=0)
        LargeImage(model, np.zeros((1, 1, 1, 384), np.float32), 256, 256, settings, 1)
    with pytest.raises(InputError, match="came without its SSL encoder"):
        _ = model.encoder
    with pytest.raises(InputError, match="--mpp"):
        _ = model.mpp
