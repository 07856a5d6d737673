"""Text encoders of transformers in, the same files out; what does not fit is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_same_tensors, convert
from oracle import tensors
from text_folders import BERT_WORDS, NAMES, change_tensors, text_folder

from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.exporting import export
from ssl_diffusion.weights.importers.tokenizer import wordpiece
from ssl_diffusion.weights.safetensors_file import write_tensors
from ssl_diffusion.weights.text_encoder import load_text_encoder, packaged_minilm

LAYOUTS = ["bert", "clip_text"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_text_encoder_comes_back_as_it_was(layout, tmp_path):
    published = text_folder(tmp_path / "published", layout)
    if layout == "bert":
        (published / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    model = convert(published, tmp_path / "model")
    assert {file.name for file in model.iterdir()} == {
        "model.json",
        "weights.safetensors",
        "tokenizer.json",
    }
    export(model, tmp_path / "back")
    assert_same_tensors(tmp_path / "back/model.safetensors", published / "model.safetensors")
    configs = [json.loads((f / "config.json").read_text()) for f in (published, tmp_path / "back")]
    assert configs[0] == configs[1]
    first, again = load_text_encoder(model), load_text_encoder(tmp_path / "back")
    assert first.sha256 == again.sha256
    assert first.spec["max_tokens"] == again.spec["max_tokens"] == {"bert": 20}.get(layout, 16)
    text = "dense tissue of a tissue"
    assert first.tokenizer.encode(text).ids == again.tokenizer.encode(text).ids


def test_words_of_bert_are_cut_as_its_vocabulary_has_them(tmp_path):
    folder = text_folder(tmp_path, "bert")
    encoder = load_text_encoder(folder)
    tokens = encoder.tokenizer.encode("Dénse TISSUES,\tof stroma").tokens
    assert tokens == ["[CLS]", "dense", "tissue", "##s", "[UNK]", "of", "[UNK]", "[SEP]"]
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    tokens = load_text_encoder(folder).tokenizer.encode("Dense tissue").tokens
    assert tokens == ["[CLS]", "[UNK]", "tissue", "[SEP]"]


def test_words_of_clip_are_merged_in_order(tmp_path):
    tokenizer = load_text_encoder(text_folder(tmp_path, "clip_text")).tokenizer
    tokens = tokenizer.encode("Tissue's  tis\n").tokens
    assert tokens == ["<|startoftext|>", "tissue</w>", "'", "s</w>", "ti", "s</w>", "<|endoftext|>"]
    assert tokenizer.encode("a").ids == [198, 27, 199]


def test_minilm_from_its_vocabulary_reads_as_its_tokenizer_does():
    encoder = load_text_encoder("minilm")
    built = wordpiece(packaged_minilm() / "vocab.txt", lowercase=True)
    for text in (
        "DCIS, H&E; 0.25 µm/px",
        "naïve façade of 日本's crops",
        "unbelievably-long\u200b",
    ):
        assert built.encode(text).ids == encoder.tokenizer.encode(text).ids


def test_wrappers_and_what_a_text_does_not_need_are_left_out(tmp_path):
    """A masked language model's heads; the other tower of a CLIP."""
    plain = {layout: text_folder(tmp_path / layout, layout) for layout in LAYOUTS}
    rest = {name: np.zeros(2, np.float32) for name in ("cls.predictions.bias", "bert.pooler.bias")}
    rest["bert.embeddings.position_ids"] = np.arange(40)[None]
    whole = {f"bert.{name}": array for name, array in tensors("text_minilm_small").items()} | rest
    other = tensors("encoder_hf_vit_small")
    clip = tensors("text_clip_small") | {f"vision_model.{k}": array for k, array in other.items()}
    clip |= {name: np.zeros(2, np.float32) for name in ("logit_scale", "visual_projection.weight")}
    clip["text_model.embeddings.position_ids"] = np.arange(16)[None]
    for layout, wrapped in (("bert", whole), ("clip_text", clip)):
        expected = load_text_encoder(plain[layout]).sha256
        write_tensors(plain[layout] / "model.safetensors", wrapped)
        assert load_text_encoder(plain[layout]).sha256 == expected


@pytest.mark.parametrize("end", [2, 199])
def test_the_end_of_clip_texts_and_settings_of_the_tower_alone(end, tmp_path):
    own = json.loads((text_folder(tmp_path, "clip_text") / "config.json").read_text())
    tower = own | {"eos_token_id": end, "hidden_act": "gelu", "layer_norm_eps": 2e-5}
    config = {"hidden_size": 999, "text_config": tower, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    network = load_text_encoder(tmp_path).network
    assert (network.end, network.mlp, network.epsilon) == (199, "gelu", 2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_wrong_tensor_is_in_one_message(layout, tmp_path):
    folder = text_folder(tmp_path / "in", layout)
    bias, kernel = {
        "bert": ("encoder.layer.1.output.LayerNorm.bias", "encoder.layer.0.output.dense.weight"),
        "clip_text": (
            "text_model.encoder.layers.1.layer_norm2.bias",
            "text_model.encoder.layers.0.mlp.fc2.weight",
        ),
    }[layout]
    transposed = tensors(NAMES[layout])[kernel].T
    change_tensors(folder, **{bias: None, kernel: transposed, "surprise": np.zeros(1, np.float32)})
    with pytest.raises(InputError) as error:
        convert(folder, tmp_path / "out")
    for part in (
        f"not a whole {layout} encoder: ",
        f"{bias}: missing, expected [48]",
        f"{kernel}: found [96, 48], expected [48, 96]",
        "surprise: unexpected",
    ):
        assert part in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


CONFIGS = {
    "width": ("bert", {"hidden_size": 64}, "of width 64, the tensors have 48"),
    "heads": ("bert", {"num_attention_heads": 5}, "5 attention heads for width 48"),
    "no heads": ("clip_text", {"num_attention_heads": None}, "no num_attention_heads"),
    "activation": ("bert", {"hidden_act": "relu"}, "activation 'relu', expected gelu"),
    "clip's activation": ("clip_text", {"hidden_act": "relu"}, "expected gelu or quick_gelu"),
    "model": ("bert", {"model_type": "roberta"}, "model_type 'roberta', expected 'bert'"),
    "epsilon": ("bert", {"layer_norm_eps": "small"}, "epsilon is 'small', expected a positive"),
    "end": ("clip_text", {"eos_token_id": 150}, "does not end a text with the token 150"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_config_that_is_not_followed_is_refused(what, tmp_path):
    layout, change, message = CONFIGS[what]
    with pytest.raises(InputError, match=message):
        load_text_encoder(text_folder(tmp_path, layout, **change))


def _without(name: str):
    return lambda folder: (folder / name).unlink()


def _with(name: str, content: str):
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)

    return write


SIDE_FILES = {
    "no config": ("bert", _without("config.json"), "no config.json beside the tensors"),
    "no vocabulary": ("bert", _without("vocab.txt"), "no tokenizer.json and no vocab.txt"),
    "no merges": ("clip_text", _without("merges.txt"), "no vocab.json and merges.txt"),
    "other merges": ("clip_text", _with("merges.txt", "q q\n"), "does not fit vocab.json"),
    "no end": ("clip_text", _with("vocab.json", '{"a": 0}'), "lacks <|startoftext|>, <|endof"),
    "a list": ("clip_text", _with("vocab.json", "[]"), "lacks a table of tokens"),
    "no separator": ("bert", _with("vocab.txt", "[UNK]\n[CLS]\n"), r"lacks \[SEP\]"),
    "another's vocabulary": (
        "bert",
        _with("vocab.txt", "\n".join([*BERT_WORDS, "more"])),
        "ids up to 200, the encoder 200 tokens",
    ),
    "no tokenizer": ("bert", _with("tokenizer.json", "{}"), "tokenizer.json is no tokenizer"),
    "too many tokens": (
        "bert",
        _with("sentence_bert_config.json", '{"max_seq_length": 41}'),
        "texts of 41 tokens, expected 3 to 40",
    ),
    "another pooling": (
        "bert",
        _with("1_Pooling/config.json", '{"pooling_mode_cls_token": true}'),
        "says pooling_mode_cls_token, expected pooling_mode_mean_tokens",
    ),
}


@pytest.mark.parametrize("what", SIDE_FILES)
def test_side_files_that_do_not_fit_are_refused(what, tmp_path):
    layout, change, message = SIDE_FILES[what]
    folder = text_folder(tmp_path / "in", layout)
    change(folder)
    with pytest.raises(InputError, match=message):
        load_text_encoder(folder)
    with pytest.raises(InputError, match=message):
        convert(folder, tmp_path / "out", layout="text")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_tells_the_architecture_may_not_be_missing(tmp_path):
    folder = text_folder(tmp_path, "clip_text")
    change_tensors(folder, **{"text_projection.weight": None})
    with pytest.raises(InputError, match="without text_projection.weight the architecture is"):
        load_text_encoder(folder)
