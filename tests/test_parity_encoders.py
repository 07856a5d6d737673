"""Published ViT encoders: the recorded embeddings, and their tensors there and back."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import traverse_util
from PIL import Image

from ssl_diffusion.encoders.vit import ViT, interpolation
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.build import build
from ssl_diffusion.weights.encoder import load_encoder
from ssl_diffusion.weights.folder import write_model
from ssl_diffusion.weights.layouts import vit
from ssl_diffusion.weights.layouts.vit_names import recognise

RECORDED = {
    "encoder_timm_vit_small": "timm",
    "encoder_timm_layerscale_small": "timm",
    "encoder_timm_swiglu_registers_small": "timm",
    "encoder_hf_vit_small": "transformers-vit",
    "encoder_hf_dinov2_small": "transformers-dinov2",
    "encoder_hf_dinov2_small_at_96": "transformers-dinov2",
    "encoder_hipt_vits16_full": "timm",
    "encoder_hipt_vits16_at_256": "timm",
}
# Rounding is 3e-6. The rules of interpolation differ by 1e-4, which oracle.TOLERANCE would hide.
TOLERANCE = 3e-5
SMALL = {"image_size": 32, "patch_size": 8, "width": 64, "depth": 2, "heads": 4}


def _random(fields: dict) -> dict[str, np.ndarray]:
    """Random parameters of a ViT, flat by path."""
    network = build(ViT, fields)
    image = jnp.zeros((1, network.image_size, network.image_size, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(0)
    return {
        path: rng.normal(0, 0.2, leaf.shape).astype(np.float32)
        for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items()
    }


def _embed(fields: dict, params: dict, image: np.ndarray) -> np.ndarray:
    params = traverse_util.unflatten_dict(params, sep="/")
    return np.asarray(jax.jit(build(ViT, fields).apply)({"params": params}, image))[:, 0]


@pytest.mark.parametrize("name", RECORDED)
def test_parity_of_encoder(name):
    _, config = oracle.manifest(name)
    fields, params, _ = vit.read(oracle.tensors(name), config)
    recording = oracle.recorded(name)
    found = _embed(fields, params, oracle.nhwc(recording["image"]))
    difference = oracle.difference(found, recording["embedding"])
    print(f"{name}: {difference:.1e}")
    assert difference < min(TOLERANCE, oracle.TOLERANCE)


@pytest.mark.parametrize("name", RECORDED)
def test_parity_of_names_shapes_and_values_after_a_round_trip(name):
    tensors = oracle.tensors(name)
    assert recognise(tensors.keys()) == RECORDED[name]
    fields, params, dropped = vit.read(tensors, oracle.manifest(name)[1])
    assert dropped == (["embeddings.mask_token"] if "dinov2" in name else [])
    back = vit.write(RECORDED[name], fields, params)
    assert back.keys() == tensors.keys() - set(dropped)
    for key, array in back.items():
        np.testing.assert_array_equal(array, tensors[key])


def test_spelling_of_transformers_4_is_read_and_written_as_it_is():
    options = {"layer_scale": True, "mlp": "swiglu", "mlp_ratio": 2.75, "registers": 4}
    plain, gated = SMALL | {"epsilon": 1e-12}, SMALL | options | {"resize": "antialias"}
    config = {"num_attention_heads": 4, "hidden_act": "gelu"}
    names = {
        "encoder.layer.1.attention.attention.query.weight": (64, 64),
        "encoder.layer.1.attention.output.dense.bias": (64,),
    }
    expected = {
        "transformers-vit-v4": {
            "encoder.layer.0.intermediate.dense.weight": (256, 64),
            "encoder.layer.0.output.dense.weight": (64, 256),
            "encoder.layer.0.layernorm_before.weight": (64,),
        },
        "transformers-dinov2-v4": {
            "embeddings.register_tokens": (1, 4, 64),
            "encoder.layer.0.mlp.weights_in.weight": (352, 64),
            "encoder.layer.0.mlp.weights_out.weight": (64, 176),
            "encoder.layer.0.layer_scale2.lambda1": (64,),
        },
    }
    for fields, (layout, also) in zip((plain, gated), expected.items(), strict=True):
        params = _random(fields)
        tensors = vit.write(layout, fields, params)
        shapes = {key: array.shape for key, array in tensors.items()}
        assert shapes.items() >= (names | also).items()
        wrapped = {f"vit.{key}": array for key, array in tensors.items()}
        wrapped["classifier.weight"] = np.zeros((3, 64), np.float32)
        assert recognise(wrapped) == layout
        found, back, dropped = vit.read(wrapped, config)
        assert found == fields and dropped == ["classifier.weight"]
        jax.tree.map(np.testing.assert_array_equal, back, params)


def test_wrappers_are_removed_and_the_teacher_is_taken(caplog):
    tensors = oracle.tensors("encoder_timm_vit_small")
    both = {f"student.module.backbone.{key}": -array for key, array in tensors.items()}
    both |= {f"teacher.backbone.{key}": array for key, array in tensors.items()}
    both |= {"teacher.head.mlp.0.weight": np.zeros((4, 64)), "decoder_embed.bias": np.zeros(4)}
    with caplog.at_level(logging.INFO):
        fields, params, dropped = vit.read(both, {"num_heads": 4})
    assert fields["heads"] == 4 and len(dropped) == len(tensors) + 2
    plain = vit.read(tensors, {"num_heads": 4})[1]
    jax.tree.map(np.testing.assert_array_equal, params, plain)
    assert "'teacher.backbone.'" in caplog.text and f"dropped {len(dropped)} tensors" in caplog.text


def test_heads_without_a_config_are_guessed_aloud(caplog):
    tensors = oracle.tensors("encoder_hipt_vits16_full")
    with caplog.at_level(logging.INFO):
        assert vit.architecture(tensors, {})["heads"] == 6
    assert "no number of attention heads" in caplog.text
    with pytest.raises(InputError, match="5 attention heads for width 384"):
        vit.architecture(tensors, {"model_args": {"num_heads": 5}})


def test_every_wrong_tensor_of_an_encoder_is_in_one_message():
    tensors = oracle.tensors("encoder_timm_vit_small", "")
    tensors = {f"module.{key}": array for key, array in tensors.items()}
    del tensors["module.blocks.1.norm1.bias"]
    tensors["module.blocks.0.mlp.fc1.weight"] = tensors["module.blocks.0.mlp.fc1.weight"].T
    tensors["module.blocks.0.attn.qkv.bias"] = np.zeros(192, np.int64)
    tensors["module.norm_pre.weight"] = np.zeros(64, np.float32)
    with pytest.raises(InputError) as error:
        vit.read(tensors, {"num_heads": 4})
    assert str(error.value) == (
        "not a whole timm encoder: "
        "module.blocks.0.attn.qkv.bias: found int64, expected floating point; "
        "module.blocks.0.mlp.fc1.weight: found [64, 256], expected [256, 64]; "
        "module.blocks.1.norm1.bias: missing, expected [64]; "
        "module.norm_pre.weight: unexpected"
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_act": "quick_gelu"}, "activation 'quick_gelu', expected 'gelu'"),
        ({"depth": 3}, r"blocks.2.norm1.weight: missing"),
        ({"depth": "two"}, "depth is 'two'"),
    ],
)
def test_config_that_the_tensors_contradict_is_an_error(change, message):
    with pytest.raises(InputError, match=message):
        vit.read(oracle.tensors("encoder_timm_vit_small"), {"num_heads": 4} | change)


def test_what_tells_the_architecture_may_not_be_missing():
    tensors = oracle.tensors("encoder_timm_vit_small")
    norms = {k: t for k, t in tensors.items() if "norm" not in k}
    with pytest.raises(InputError, match="norms, or the layers of its MLPs, are missing"):
        vit.read(norms, {})
    with pytest.raises(InputError, match="15 positions are those of no square"):
        vit.read(tensors | {"pos_embed": tensors["pos_embed"][:, :-2]}, {"num_heads": 4})
    with pytest.raises(InputError, match="no block of one was found"):
        vit.architecture({"layers.0.blocks.0.attn.qkv.weight": np.zeros((3, 1))}, {})
    assert recognise(["model.layers.0.attention.q_proj.weight"]) is None


@pytest.mark.parametrize(
    "layout, options, message",
    [
        ("timm", {"stem": "conv"}, "convolutional stem"),
        ("timm", {"registers": 4}, "registers without positions"),
        ("transformers-vit", {"layer_scale": True, "mlp": "swiglu"}, "LayerScale, a gated MLP"),
        ("transformers-dinov2", {"pooling": "mean"}, "mean pooling, blocks without LayerScale"),
        ("keras", {}, "expected one of timm"),
    ],
)
def test_vit_that_a_layout_has_no_names_for_is_not_written(layout, options, message):
    with pytest.raises(InputError, match=message):
        vit.write(layout, SMALL | options, {})


def test_positions_of_prefix_tokens_are_part_of_those_tokens():
    """A position of a token that never moves can be added to the token once and for all."""
    fields = SMALL | {"registers": 4, "prefix_positions": "all", "resize": "offset"}
    params = _random(fields)
    tensors = vit.write("timm", fields, params)
    assert tensors["pos_embed"].shape == (1, 1 + 4 + 16, 64)
    assert vit.read(tensors, {"num_heads": 4})[0] == fields
    positions = params["pos_embed"]
    folded = params | {
        "cls_token": params["cls_token"] + positions[:, :1],
        "register_tokens": params["register_tokens"] + positions[:, 1:5],
    }
    image = np.random.default_rng(0).normal(0, 1, (1, 32, 32, 3)).astype(np.float32)
    expected = _embed(fields, params, image)
    none = folded | {"pos_embed": positions[:, 5:]}
    class_only = folded | {
        "cls_token": params["cls_token"],
        "pos_embed": np.concatenate([positions[:, :1], positions[:, 5:]], axis=1),
    }
    for which, other in (("none", none), ("class", class_only)):
        found = _embed(fields | {"prefix_positions": which}, other, image)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("old, new", [(14, 16), (16, 37), (16, 9)])
def test_interpolation_keeps_constants_and_antialias_is_what_pillow_does(old, new):
    for rule in ("bicubic", "offset", "antialias"):
        np.testing.assert_allclose(interpolation(old, new, rule).sum(1), 1, atol=1e-6)
    table = np.random.default_rng(0).normal(0, 1, (old, old)).astype(np.float32)
    matrix = interpolation(old, new, "antialias")
    expected = Image.fromarray(table).resize((new, new), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(matrix @ table @ matrix.T, np.asarray(expected), atol=1e-5)


def test_encoder_runs_at_the_size_that_its_model_json_says(tmp_path):
    params = _random(SMALL)
    spec = {"kind": "encoder", "architecture": SMALL, "image_size": 48, "mean": [0.5] * 3}
    spec |= {"std": [0.5] * 3, "embedding": {"tokens": 1, "dim": 64}, "augmentation": {}}
    write_model(tmp_path / "model", spec, traverse_util.unflatten_dict(params, sep="/"))
    encoder = load_encoder(tmp_path / "model")
    images = np.random.default_rng(0).integers(0, 255, (2, 48, 48, 3), np.uint8)
    expected = _embed(SMALL, params, (images / 127.5 - 1).astype(np.float32))
    np.testing.assert_allclose(encoder.embed(images)[:, 0], expected, atol=1e-4)
    assert encoder.reinitialised(0).params["pos_embed"].shape == (1, 17, 64)
    (tmp_path / "model" / "model.json").write_text(json.dumps(spec | {"image_size": 44}))
    with pytest.raises(InputError, match="image_size is 44, expected a multiple of 8 px"):
        load_encoder(tmp_path / "model")


def test_timm_encoder_without_a_class_token_is_read_as_the_mean_of_its_patches():
    fields = SMALL | {"pooling": "mean", "registers": 4, "mlp": "swiglu"}
    params = _random(fields)
    tensors = vit.write("timm", fields, params)
    assert "cls_token" not in tensors and tensors["pos_embed"].shape == (1, 16, 64)
    config = {"architecture": "vit", "model_args": {"num_heads": 4, "act_layer": "SiLU"}}
    found, back, _ = vit.read(tensors, config)
    assert found == fields | {"resize": "antialias"}
    jax.tree.map(np.testing.assert_array_equal, back, params)
    with pytest.raises(InputError, match="activation 'gelu_tanh', expected 'silu'"):
        vit.read(tensors, config | {"act_layer": "gelu_tanh", "model_args": {"num_heads": 4}})


def test_unknown_option_of_the_vit_is_an_error():
    with pytest.raises(InputError, match="pooling is 'token', expected one of class, mean"):
        build(ViT, SMALL | {"pooling": "token"})
