"""Sentences as a condition: which may be said of a patch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json


class Choices(NamedTuple):
    """Which sentences may be said of what.

    Attributes:
      sentences: all of them.
      table: [keys, most] indices of sentences, each row repeating its own to the end.
      counts: [keys] how many different ones a row has; 0 where nothing is known to say.
    """

    sentences: tuple[str, ...]
    table: Int[np.ndarray, "keys most"]
    counts: Int[np.ndarray, " keys"]


def read_captions(path: str | Path, known: Sequence[str]) -> dict[str, list[str]]:
    """Reads a JSON file {class: [sentence, ...]} of labels and of classes of label maps.

    Raises InputError for another content, an empty sentence, and a class that is not `known`.
    """
    found = read_json(path, "captions")
    if not isinstance(found, dict) or not all(
        isinstance(sentences, list) and all(isinstance(one, str) for one in sentences)
        for sentences in found.values()
    ):
        raise InputError(f'captions {path} are none; expected {{"class": ["a sentence", ...]}}')
    if unknown := sorted(found.keys() - {*known}):
        raise InputError(
            f"captions {path} are of {', '.join(unknown[:5])}; the classes are {', '.join(known)}"
        )
    if empty := [name for name, sentences in found.items() if not all(map(str.strip, sentences))]:
        raise InputError(f"captions {path} of {empty[0]!r} hold an empty sentence; take it out")
    return found


def choose(
    facts: Int[np.ndarray, "n 3"],
    captions: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    map_classes: Sequence[str],
    texts: Sequence[str],
) -> tuple[Choices, Int[np.ndarray, " n"]]:
    """(choices, the key of each patch) by what is known of patches.

    `facts` are indices of each patch's label, class of the label map and text, -1 if not known. Of
    a patch may be said what `captions` say of the first two, and its own text.
    """
    kinds, keys = np.unique(facts, axis=0, return_inverse=True)
    numbers: dict[str, int] = {}
    rows: list[list[int]] = []
    for label, cell, text in kinds.tolist():
        said = [
            *(captions.get(classes[label], ()) if label >= 0 else ()),
            *(captions.get(map_classes[cell], ()) if cell >= 0 else ()),
            *([texts[text]] if text >= 0 else ()),
        ]
        rows.append(
            [numbers.setdefault(sentence, len(numbers)) for sentence in dict.fromkeys(said)]
        )
    most = max(1, *map(len, rows))
    table = np.array([np.resize(row or [0], most) for row in rows])
    counts = np.array([len(row) for row in rows])
    return Choices(tuple(numbers), table, counts), keys.reshape(-1)
