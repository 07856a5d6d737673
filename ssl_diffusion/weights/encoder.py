"""An SSL encoder by its name: a model folder, or a function of the user's own."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp

from ssl_diffusion import demo
from ssl_diffusion.encoders.build import build_encoder, check_image_size
from ssl_diffusion.encoders.encoder import RESIZES, SSLEncoder
from ssl_diffusion.encoders.function import FunctionEncoder, import_function
from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.folder import read_params, read_spec
from ssl_diffusion.weights.reader import encoder_shapes

_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_function(source: str | Path) -> bool:
    """Whether `source` has the form "my_package.my_module:make"; a Path never has.

    What is read from a data or model file is a Path, or goes nowhere near `load_encoder`: only a
    user, on the command line or in a config, may name code to run. A name of what the project
    ships ("demo:encoder") is a folder's.
    """
    if not isinstance(source, str) or source.startswith(demo.PREFIX):
        return False
    return bool(_FUNCTION.fullmatch(source))


def load_encoder(source: str | Path, patch_px: int = 256) -> SSLEncoder | FunctionEncoder:
    """Opens an SSL encoder's folder, or imports "module:function" and calls the function.

    A folder's encoder runs at the `image_size` of its model.json, which may be another than its
    architecture's. A function's is tried on patches of `patch_px`, which a folder's ignores.
    Raises InputError if it is no encoder or is damaged.
    """
    if is_function(source):
        return FunctionEncoder(source, import_function(source), patch_px)
    spec = read_spec(source, "encoder")
    network = build_encoder(spec["architecture"])
    check_image_size(network, spec["image_size"], f"{source}: image_size")
    if (rule := spec.get("image_resize", "bicubic")) not in (*RESIZES,):
        raise InputError(
            f"{source}: image_resize is {rule!r}, expected one of {', '.join(RESIZES)}"
        )
    params = read_params(source, encoder_shapes(spec["architecture"]))
    return SSLEncoder(network, jax.tree.map(jnp.asarray, params), spec)
