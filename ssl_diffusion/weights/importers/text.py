"""Text encoders of transformers and sentence-transformers: MiniLM, CLIP's text tower."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import traverse_util

from ssl_diffusion.encoders.text import check_tokenizer
from ssl_diffusion.encoders.text_networks import build_text_network
from ssl_diffusion.encoders.tokenizer import TOKENIZER
from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.importers.settings import Settings, read_config
from ssl_diffusion.weights.importers.tokenizer import find_tokenizer
from ssl_diffusion.weights.layouts import text
from ssl_diffusion.weights.reader import Imported
from ssl_diffusion.weights.tensor_files import open_tensors


def import_text(path: Path, settings: Settings) -> Imported:
    """Reads the folder of a text encoder, or a file in it; InputError for what does not fit.

    `settings` has nothing that a text encoder wants.
    """
    tensors = open_tensors(path)
    config = read_config(path)
    fields, params, _ = text.read(tensors, config)
    network = build_text_network(fields)
    folder = path if path.is_dir() else path.parent
    _check_pooling(folder / "1_Pooling")
    said = read_config(path, "sentence_bert_config.json").get("max_seq_length")
    spec = {
        "kind": "text_encoder",
        "architecture": fields,
        "max_tokens": network.positions if said is None else said,
        "embedding": {"tokens": 1, "dim": network.dim},
        "source": {"names": fields["name"], "config": config},
    }
    tokenizer = find_tokenizer(folder, fields["name"])
    check_tokenizer(tokenizer, network, spec["max_tokens"], folder)
    params = traverse_util.unflatten_dict(params, sep="/")
    return Imported(spec, params, files={TOKENIZER: tokenizer.to_str()})


def _check_pooling(folder: Path) -> None:
    """Sentence encoders say how they pool tokens: those that do not take the mean are refused."""
    config: Mapping[str, Any] = read_config(folder)
    modes = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    if modes not in ([], ["pooling_mode_mean_tokens"]):
        raise InputError(
            f"{folder} says {', '.join(modes)}, expected pooling_mode_mean_tokens; no other way of "
            "making one vector is read"
        )
