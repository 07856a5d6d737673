"""Text encoders as transformers leaves them on disk, with the recorded weights and few words."""

import json
from pathlib import Path

import numpy as np
import oracle

from ssl_diffusion.weights.safetensors_file import write_tensors

NAMES = {"bert": "text_minilm_small", "clip_text": "text_clip_small"}
# 200 tokens each, as the weights have. "tissue" is in BERT's vocabulary, "tissues" in two parts.
BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "tissue", "##s", "dense", "of", "a"]
BERT_WORDS += [f"word{i}" for i in range(190)]
LETTERS = "abcdefghijklmnopqrstuvwxyz'"
# The first two make "tis" and "tissue</w>" what they are made of.
MERGES = ["t i", "s u", "ti s", "su e</w>", "tis sue</w>"]
CLIP_TOKENS = [*LETTERS, *(letter + "</w>" for letter in LETTERS)]
CLIP_TOKENS += [merge.replace(" ", "") for merge in MERGES]
CLIP_TOKENS += [f"unused{i}" for i in range(198 - len(CLIP_TOKENS))]
CLIP_TOKENS += ["<|startoftext|>", "<|endoftext|>"]


def text_folder(folder: Path, layout: str, **config) -> Path:
    """Writes the folder of a small "bert" or "clip_text"; `config` changes its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", oracle.tensors(NAMES[layout]))
    config = oracle.manifest(NAMES[layout])[1] | config
    (folder / "config.json").write_text(json.dumps(config))
    if layout == "bert":
        (folder / "vocab.txt").write_text("\n".join(BERT_WORDS) + "\n")
    else:
        ids = {token: index for index, token in enumerate(CLIP_TOKENS)}
        (folder / "vocab.json").write_text(json.dumps(ids))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    return folder


def change_tensors(folder: Path, **change: np.ndarray | None) -> None:
    """Replaces tensors of the folder, adds some, or takes them away (None)."""
    name = "bert" if (folder / "vocab.txt").exists() else "clip_text"
    tensors = oracle.tensors(NAMES[name]) | change
    kept = {key: array for key, array in tensors.items() if array is not None}
    write_tensors(folder / "model.safetensors", kept)
