"""Published files in, the same files out; what does not fit is refused before it is written."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, convert
from flax.traverse_util import flatten_dict, unflatten_dict
from oracle import TOLERANCE, difference, manifest, nhwc, recorded, stand_in, tensors

from ssl_diffusion.diffusion.schedule import find_schedule, make_betas
from ssl_diffusion.errors import InputError
from ssl_diffusion.stitching.large_image import stitch
from ssl_diffusion.weights.exporting import export
from ssl_diffusion.weights.layouts import ldm
from ssl_diffusion.weights.model import (
    load_autoencoder,
    load_encoder,
    load_model,
    start_params,
)
from ssl_diffusion.weights.safetensors_file import read_tensors, write_tensors

BETAS = make_betas("ldm_linear", 1000, beta_start=0.0015, beta_end=0.0195)
RELEASED = ("brca_hipt_20x", "crc_ibot_20x", "brca_ctranspath_5x", "naip_vitb16")


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


def whole(name: str) -> dict[str, np.ndarray]:
    """The checkpoint of a manifest: drawn tensors, and the schedule's tables computed."""
    tables = ldm.schedule_tables(BETAS)
    shapes, _ = manifest(name)
    return {
        key: tables[key] if key in tables else stand_in(key, shape) for key, shape in shapes.items()
    }


def assert_same_tensors(found: Path, expected: Path) -> None:
    found, expected = read_tensors(found), read_tensors(expected)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# LDM checkpoints


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
        command = [sys.executable, "-m", "ssl_diffusion.convert", *arguments]
        process = subprocess.Popen(command, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        assert usage.ru_maxrss * 1024 < 2.5 * size
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
        settings = {"steps": 1, "guidance": 1.0, "stride": 64, "window_batch": 1}
        settings["key"] = jax.random.key(0)
        stitch(model, np.zeros((1, 1, 1, 384), np.float32), 256, 256, **settings)
    with pytest.raises(InputError, match="came without its SSL encoder"):
        _ = model.encoder
    with pytest.raises(InputError, match="--mpp"):
        _ = model.mpp


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


def test_unknown_schedules_are_refused():
    with pytest.raises(InputError, match="are of none of the schedules"):
        find_schedule(np.linspace(0.1, 0.2, 10) ** 3)


# diffusers folders


def test_parity_of_a_converted_diffusers_folder(pipeline, tmp_path):
    model = load_model(convert(pipeline, tmp_path / "model", mpp=0.5))
    reference = recorded("pixart_small")
    x, timestep = jnp.asarray(nhwc(reference["latent"])), jnp.asarray(reference["timestep"])
    context = model.context(reference["embedding"])
    found = model.denoiser(guidance=1.0)(x, timestep.astype(jnp.float32), context).eps
    assert difference(found, nhwc(reference["output"])[..., :16]) < TOLERANCE
    assert model.patch_px == 128 and model.mpp == 0.5
    scaled = model.encode(np.zeros((1, 64, 64, 3), np.uint8))
    raw = model.first_stage.encode(np.zeros((1, 64, 64, 3), np.uint8))
    np.testing.assert_allclose(scaled, (raw - 0.0609) * 1.5305, rtol=1e-5)


def test_diffusers_folder_comes_back_as_it_was(pipeline, tmp_path):
    export(convert(pipeline, tmp_path / "model"), tmp_path / "back")
    files = [file.relative_to(pipeline) for file in pipeline.rglob("*") if file.is_file()]
    assert {file.relative_to(tmp_path / "back") for file in (tmp_path / "back").rglob("*.*")} == {
        *files
    }
    for file in files:
        if file.suffix == ".json":
            assert json.loads((tmp_path / "back" / file).read_text()) == json.loads(
                (pipeline / file).read_text()
            )
        else:
            assert_same_tensors(tmp_path / "back" / file, pipeline / file)


def test_sharded_folder_is_the_same_model(pipeline, tmp_path):
    shutil.copytree(pipeline, tmp_path / "sharded")
    folder = tmp_path / "sharded" / "transformer"
    arrays = read_tensors(folder / "diffusion_pytorch_model.safetensors")
    shards = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(arrays)}
    for shard in set(shards.values()):
        write_tensors(folder / shard, {n: a for n, a in arrays.items() if shards[n] == shard})
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    first = convert(pipeline, tmp_path / "first")
    second = convert(tmp_path / "sharded", tmp_path / "second")
    assert_same_tensors(second / "weights.safetensors", first / "weights.safetensors")


# ViT encoders


def test_parity_of_a_converted_encoder(tmp_path):
    write_tensors(tmp_path / "model.safetensors", tensors("encoder_timm_vit_small"))
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 4}))
    folder = convert(tmp_path, tmp_path / "model", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    encoder = load_encoder(folder)
    reference = recorded("encoder_timm_vit_small")
    image = jnp.asarray(nhwc(reference["image"]))
    found = encoder.network.apply({"params": encoder.params}, image)
    assert difference(found[:, 0], reference["embedding"]) < TOLERANCE
    assert encoder.embed(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 1, 64)
    export(folder, tmp_path / "back")
    assert_same_tensors(tmp_path / "back" / "model.safetensors", tmp_path / "model.safetensors")


def test_encoder_of_another_width_is_not_taken(published, tmp_path):
    write_tensors(tmp_path / "vit.safetensors", tensors("encoder_timm_vit_small"))
    encoder = convert(tmp_path / "vit.safetensors", tmp_path / "encoder", image_size=64)
    with pytest.raises(InputError, match="makes 1 tokens of 64, the denoiser wants 1 of 48"):
        convert(published[0], tmp_path / "model", encoder=str(encoder))


def test_encoders_without_a_config_are_exported_with_one_that_describes_them(tmp_path):
    for name in ("encoder_timm_swiglu_registers_small", "encoder_hf_dinov2_small"):
        write_tensors(tmp_path / f"{name}.safetensors", tensors(name))
        first = convert(tmp_path / f"{name}.safetensors", tmp_path / name, mean=(0.1, 0.2, 0.3))
        export(first, tmp_path / f"{name}_published")
        again = convert(tmp_path / f"{name}_published", tmp_path / f"{name}_again")
        specs = [json.loads((folder / "model.json").read_text()) for folder in (first, again)]
        for spec in specs:  # how positions would be resized is told by who wrote the config
            spec["architecture"].pop("resize", None)
        assert specs[0]["architecture"] == specs[1]["architecture"]
        assert specs[1]["mean"] == [0.1, 0.2, 0.3]
        assert_same_tensors(again / "weights.safetensors", first / "weights.safetensors")


# Models trained here


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
