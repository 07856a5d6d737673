"""Any encoder at all: a function of the user's own, in whatever framework it is written."""

import importlib
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float, UInt8

from ssl_diffusion.encoders.encoder import CHUNK, check_squares, padded_chunks
from ssl_diffusion.errors import InputError

Embed = Callable[[UInt8[np.ndarray, "chunk h w 3"]], Any]
"""uint8 [CHUNK, h, w, 3] -> float32 [CHUNK, tokens, dim], rows in the order of the images."""


def import_function(name: str) -> Embed:
    """What "module:function" returns when it is called without arguments.

    Importing runs the module: `name` must come from the user. Raises InputError if there is no
    such module or function, or what it returns cannot be called.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does
        raise InputError(
            f"encoder {name}: {module_name} cannot be imported ({type(error).__name__}: {error}); "
            "run from the folder it lies in, or put that on PYTHONPATH"
        ) from error
    make = getattr(module, attribute, None)
    if not callable(make):
        raise InputError(
            f"encoder {name}: {module_name} has no function {attribute}; name one that takes no "
            "arguments and returns the encoder"
        )
    embed = make()
    if not callable(embed):
        raise InputError(
            f"encoder {name}: {attribute}() returned {type(embed).__name__}, expected a function "
            f"of uint8 images [{CHUNK}, h, w, 3]"
        )
    return embed


class FunctionEncoder:
    """An encoder that is a function; what it gives may not depend on the other images of a chunk.

    `spec` has `embedding` (tokens and dim, as the function gave them for black patches of
    `patch_px`) and `function`, its name. There is no folder to copy: records and models made with
    it hold none.
    """

    def __init__(self, name: str, function: Embed, patch_px: int):
        self.name, self._function = name, function
        black = self._call(np.zeros((CHUNK, patch_px, patch_px, 3), np.uint8))
        embedding = {"tokens": black.shape[1], "dim": black.shape[2]}
        self.spec = {"kind": "encoder", "function": name, "embedding": embedding}

    def embed(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n tokens dim"]:
        """Embeddings as the function gives them (not normalised), `CHUNK` images at a time.

        Raises InputError unless the images are squares and the function gives for each a finite
        embedding of the shape in `spec`.
        """
        shape = self.spec["embedding"]["tokens"], self.spec["embedding"]["dim"]
        parts = [np.zeros((0, *shape), np.float32)]
        check_squares(images)
        for chunk, count in padded_chunks(images):
            output = self._call(chunk)
            if output.shape[1:] != shape:
                self._refuse(f"{list(output.shape)} after {[CHUNK, *shape]} for other patches")
            if not np.isfinite(output[:count]).all():
                self._refuse("infinite numbers, or NaN")
            parts.append(output[:count])
        return np.concatenate(parts)

    @property
    def patch_tokens(self) -> tuple[int, int]:
        """A function tells of none: raises InputError."""
        raise InputError(
            f"encoder {self.name} is a function, which gives no patch tokens; set "
            "data.patch_tokens to False, or name a model folder"
        )

    def embed_with_patches(self, images: UInt8[np.ndarray, "n h w 3"]) -> NoReturn:
        """Raises InputError, as `patch_tokens` does."""
        _ = self.patch_tokens

    def reinitialised(self, seed: int) -> NoReturn:
        """Raises InputError: what is in the function is not known."""
        raise InputError(
            f"encoder {self.name} is a function, which cannot be had untrained; name a model folder"
        )

    def _call(self, images: UInt8[np.ndarray, "chunk h w 3"]) -> Float[np.ndarray, "chunk t d"]:
        """The function's output; InputError unless it has the type and the axes it should have."""
        output = np.asarray(self._function(images))
        if output.ndim != 3 or len(output) != CHUNK or 0 in output.shape:
            self._refuse(f"shape {list(output.shape)}")
        if output.dtype != np.float32:
            self._refuse(f"numbers of {output.dtype}")
        return output

    def _refuse(self, found: str) -> NoReturn:
        raise InputError(
            f"encoder {self.name} gave {found}; expected float32 [{CHUNK}, tokens, dim] for uint8 "
            f"[{CHUNK}, h, w, 3]"
        )
