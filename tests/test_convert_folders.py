"""diffusers folders and ViT encoders in, the same files out."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same_tensors, convert
from oracle import TOLERANCE, difference, nhwc, recorded, tensors

from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.exporting import export
from ssl_diffusion.weights.model import (
    load_encoder,
    load_model,
)
from ssl_diffusion.weights.safetensors_file import read_tensors, write_tensors

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


def test_an_encoder_of_another_size_than_the_patches_is_told_of(published, tmp_path, caplog):
    """CTransPath takes 224 px, the patches have 256; a ViT could see them whole."""
    small = tensors("encoder_timm_vit_small")
    vit = {  # of the denoiser's 48 channels
        name: np.zeros([{64: 48, 192: 144, 256: 192}.get(n, n) for n in t.shape], np.float32)
        for name, t in small.items()
    }
    vit["pos_embed"] = np.zeros((1, small["pos_embed"].shape[1], 48), np.float32)
    write_tensors(tmp_path / "vit.safetensors", vit)
    encoder = convert(tmp_path / "vit.safetensors", tmp_path / "encoder")
    with caplog.at_level("WARNING"):
        folder = convert(published[0], tmp_path / "model", encoder=str(encoder))
    assert "patches of 256 px are resized to that; if it is to see" in caplog.text
    patches = np.zeros((1, 256, 256, 3), np.uint8)
    assert load_model(folder).encoder.embed(patches).shape == (1, 1, 48)
