"""Models trained here in published layouts, and the tables of their noise schedule."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_same_tensors, convert

from ssl_diffusion.diffusion.schedule import find_schedule, make_betas
from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.exporting import export
from ssl_diffusion.weights.layouts import ldm
from ssl_diffusion.weights.layouts.diffusers import diffusion, scheduler_config
from ssl_diffusion.weights.model import (
    load_autoencoder,
)
from ssl_diffusion.weights.safetensors_file import read_tensors, write_tensors

BETAS = make_betas("ldm_linear", 1000, beta_start=0.0015, beta_end=0.0195)


def schedule_tables() -> dict[str, np.ndarray]:
    """By the definitions in Ho et al. 2020 (eq. 4 and 7), one timestep after the other."""
    tables = {name: [] for name in ldm.schedule_tables(BETAS)}
    before = 1.0
    for beta in BETAS:
        now = before * (1 - beta)
        variance = (1 - before) / (1 - now) * beta
        row = {
            "betas": beta,
            "alphas_cumprod": now,
            "alphas_cumprod_prev": before,
            "sqrt_alphas_cumprod": now**0.5,
            "sqrt_one_minus_alphas_cumprod": (1 - now) ** 0.5,
            "log_one_minus_alphas_cumprod": math.log(1 - now),
            "sqrt_recip_alphas_cumprod": (1 / now) ** 0.5,
            "sqrt_recipm1_alphas_cumprod": (1 / now - 1) ** 0.5,
            "posterior_variance": variance,
            "posterior_log_variance_clipped": math.log(max(variance, 1e-20)),
            "posterior_mean_coef1": before**0.5 * beta / (1 - now),
            "posterior_mean_coef2": (1 - beta) ** 0.5 * (1 - before) / (1 - now),
        }
        for name, value in row.items():
            tables[name].append(value)
        before = now
    return {name: np.array(values, np.float32) for name, values in tables.items()}


def test_schedule_tables_follow_their_definitions():
    for name, table in ldm.schedule_tables(BETAS).items():
        np.testing.assert_allclose(table, schedule_tables()[name], rtol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "ldm_linear", "steps": 1000, "beta_start": 0.00085, "beta_end": 0.012},
        {"name": "linear", "steps": 50, "beta_start": 0.0001, "beta_end": 0.02},
        {"name": "cosine", "steps": 1000},
    ],
)
def test_schedule_is_found_from_its_betas(schedule):
    assert find_schedule(make_betas(**schedule).astype(np.float32)) == schedule


def test_a_rescaled_schedule_comes_back_from_a_scheduler_config():
    schedule = {"name": "linear", "steps": 10, "beta_start": 0.001, "beta_end": 0.02}
    for rescaled in ({}, {"zero_terminal_snr": True}):
        section = {"schedule": schedule | rescaled, "prediction": "v"}
        config = scheduler_config(section)
        assert config["rescale_betas_zero_snr"] == bool(rescaled)
        assert diffusion(config) == section


def test_unknown_schedules_are_refused():
    with pytest.raises(InputError, match="are of none of the schedules"):
        find_schedule(np.linspace(0.1, 0.2, 10) ** 3)


def test_models_trained_here_in_published_networks_open_there(published, pipeline, tmp_path):
    """As train writes them: no source, settings left to their defaults."""
    for start, architecture in ((published[1], "unet"), (convert(pipeline, tmp_path / "p"), "dit")):
        folder = Path(shutil.copytree(start, tmp_path / architecture))
        for part in (folder, folder / "autoencoder"):
            spec = json.loads((part / "model.json").read_text())
            spec.pop("source", None)
            if "diffusion" in spec:
                spec["diffusion"]["schedule"] = {"name": "ldm_linear"}
            (part / "model.json").write_text(json.dumps(spec))
        back = tmp_path / f"{architecture}_back{'.safetensors' * (architecture == 'unet')}"
        export(folder, back)
        again = convert(back, tmp_path / f"{architecture}_again")
        assert_same_tensors(again / "weights.safetensors", start / "weights.safetensors")
        schedule = json.loads((again / "model.json").read_text())["diffusion"]["schedule"]
        np.testing.assert_allclose(make_betas(**schedule), BETAS)


def test_a_prediction_that_ldm_cannot_say_is_not_exported(published, tmp_path):
    folder = Path(shutil.copytree(published[1], tmp_path / "model"))
    spec = json.loads((folder / "model.json").read_text())
    spec["diffusion"]["prediction"] = "v"
    (folder / "model.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match="cannot hold prediction 'v'"):
        export(folder, tmp_path / "x.safetensors")


def test_the_gain_of_the_latents_goes_there_and_back(published, tmp_path):
    arrays = dict(read_tensors(published[0])) | {"scale_factor": np.array(0.5, np.float32)}
    write_tensors(tmp_path / "scaled.safetensors", arrays)
    folder = convert(tmp_path / "scaled.safetensors", tmp_path / "model")
    assert load_autoencoder(folder / "autoencoder").spec["latent"]["scale"] == 0.5
    export(folder, tmp_path / "back.safetensors")
    assert_same_tensors(tmp_path / "back.safetensors", tmp_path / "scaled.safetensors")


def test_older_names_of_attention_and_no_scale(pipeline, tmp_path, caplog):
    (tmp_path / "vae").mkdir()
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    arrays = read_tensors(pipeline / "vae" / "diffusion_pytorch_model.safetensors")
    renamed = {}
    for name, array in arrays.items():
        for newer, older in new.items():
            name = name.replace(f"attentions.0.{newer}.", f"attentions.0.{older}.")
        renamed[name] = array
    assert renamed.keys() != arrays.keys()
    write_tensors(tmp_path / "vae" / "model.safetensors", renamed)
    config = json.loads((pipeline / "vae" / "config.json").read_text())
    del config["scaling_factor"]
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    with caplog.at_level("INFO"):
        folder = convert(tmp_path / "vae", tmp_path / "model")
    assert load_autoencoder(folder).spec["latent"]["scale"] == 0.18215
    assert "no scaling_factor" in caplog.text


@pytest.mark.parametrize("what", ["", "autoencoder", "encoder"])
def test_models_of_the_demo_are_exported_or_refused(run_dir, what, tmp_path):
    """The demo's U-Net and encoder have parts that no published layout holds."""
    if what == "autoencoder":
        export(run_dir / "model" / what, tmp_path / "vae")
        again = convert(tmp_path / "vae", tmp_path / "again")
        weights = run_dir / "model" / what / "weights.safetensors"
        assert_same_tensors(again / "weights.safetensors", weights)
        return
    with pytest.raises(InputError, match="cannot hold"):
        export(run_dir / "model" / what, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_flow_has_no_name_in_the_layouts_of_others():
    for name, what in (("linear", "prediction 'flow'"), ("flow", "'flow' schedule")):
        with pytest.raises(InputError, match=f"cannot hold a? ?{what}"):
            scheduler_config({"schedule": {"name": name}, "prediction": "flow"})
