"""A text encoder ready to use: sentences in, one vector each, in chunks of few compiled sizes."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Bool, Float, Int, PyTree
from tokenizers import Tokenizer

from ssl_diffusion.encoders.text_networks import Bert, ClipText
from ssl_diffusion.encoders.tokenizer import tokenize
from ssl_diffusion.errors import InputError

CHUNK = 16  # sentences, always padded to this
SHORTEST = 16  # tokens: sentences are padded to this, or to its next double that holds them


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """`spec` is its model.json: `architecture`, `max_tokens` of a text, `embedding`."""

    network: Bert | ClipText
    params: PyTree
    spec: Mapping[str, Any]
    tokenizer: Tokenizer

    @property
    def dim(self) -> int:
        """Channels of the vectors."""
        return self.network.dim

    @functools.cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the parameters, the same for a published folder and one made of it.

        Of each, in the order of their paths: the path, a newline, and its numbers as little-endian
        float32, row by row.
        """
        digest = hashlib.sha256()
        for path, array in sorted(traverse_util.flatten_dict(self.params, sep="/").items()):
            digest.update(f"{path}\n".encode())
            digest.update(np.ascontiguousarray(array, "<f4").data)
        return digest.hexdigest()

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "n dim"]:
        """One vector of length 1 for each text; it depends on that text alone.

        Raises InputError for a text that is empty, or longer than the encoder's `max_tokens`.
        """
        ids = [tokenize(self.tokenizer, text, self.spec["max_tokens"]) for text in texts]
        vectors = np.zeros((len(ids), self.dim), np.float32)
        places: dict[int, list[int]] = {}  # by padded length
        for place, tokens in enumerate(ids):
            places.setdefault(self._padded(len(tokens)), []).append(place)
        for length, alike in places.items():
            for start in range(0, len(alike), CHUNK):
                chunk = alike[start : start + CHUNK]
                table, mask = _padded_chunk([ids[place] for place in chunk], length)
                vectors[chunk] = _embed(self.network, self.params, table, mask)[: len(chunk)]
        return vectors

    def _padded(self, count: int) -> int:
        length = SHORTEST
        while length < count:
            length *= 2
        return min(length, self.network.positions)


def check_tokenizer(
    tokenizer: Tokenizer, network: Bert | ClipText, max_tokens: Any, folder: Path
) -> None:
    """Raises InputError unless the tokenizer's ids, and texts so long, are what the network has."""
    if type(max_tokens) is not int or not 2 < max_tokens <= network.positions:
        raise InputError(
            f"{folder}: texts of {max_tokens!r} tokens, expected 3 to {network.positions}, the "
            "encoder's positions"
        )
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= highest < network.vocabulary:
        raise InputError(
            f"{folder}: the tokenizer has ids up to {highest}, the encoder {network.vocabulary} "
            "tokens; give the tokenizer that belongs to it"
        )
    if isinstance(network, ClipText) and tokenizer.encode("a").ids[-1:] != [network.end]:
        raise InputError(
            f"{folder}: the tokenizer does not end a text with the token {network.end}, as the "
            "encoder expects; give the tokenizer that belongs to it"
        )


def _padded_chunk(
    ids: Sequence[Sequence[int]], length: int
) -> tuple[Int[np.ndarray, "chunk {length}"], Bool[np.ndarray, "chunk {length}"]]:
    """Ids and mask of `CHUNK` texts; rows of padding have a token each, to attend to."""
    table, mask = np.zeros((CHUNK, length), np.int32), np.zeros((CHUNK, length), bool)
    mask[:, 0] = True
    for row, tokens in enumerate(ids):
        table[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = True
    return table, mask


@partial(jax.jit, static_argnums=0)
def _embed(network: Bert | ClipText, params: PyTree, ids: Array, mask: Array):
    vectors = network.apply({"params": params}, ids, mask)
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
