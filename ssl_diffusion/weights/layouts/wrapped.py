"""Encoders under wrapper prefixes (`module.`, `teacher.backbone.`, ...), beside other tensors."""

import logging
import re
from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import PyTree

from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.naming import Naming, to_ours

_WRAPPER = (
    r"(?:module|backbone|teacher|student|model|encoder|vit|dinov2|dinov2_with_registers|bert)\."
)
# Tensors beside the encoder that an embedding does not need.
_COMPANIONS = (
    r"(head|head_dist|dino_head|ibot_head|mlp_head|classifier|pooler|decoder|fc|projector|predictor"
    r"|loss|dino_loss|ibot_loss|ibot_patch_loss)\..*|decoder_.*|(embeddings\.)?mask_token|masked_embed"
)


def find_prefix(names: Collection[str], anchor: str) -> str | None:
    """What stands before the encoder's names; a teacher is preferred to its student.

    `anchor` is a pattern of the bare name of a tensor that every such encoder has. None if no name
    is one, with or without wrappers before it.
    """
    pattern = re.compile(rf"((?:{_WRAPPER})*?){anchor}")
    prefixes = {match[1] for name in names if (match := pattern.fullmatch(name))}
    return min(
        prefixes, key=lambda p: ("teacher." not in p, "student." in p, len(p), p), default=None
    )


def bare(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The encoder's own tensors, without the prefix of their names."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def read_all(
    tensors: Mapping[str, np.ndarray],
    prefix: str,
    naming: Naming,
    shapes: PyTree,
    what: str,
    buffers: str = "",
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns ({our path: array, a view}, names of the tensors dropped).

    Dropped is what an embedding does not need: companions, and what the pattern `buffers` matches
    in bare names. Raises one InputError that names every missing, unexpected, mis-shaped and
    non-floating tensor of the encoder, called `what`.
    """
    params, used, problems = to_ours(naming, shapes, bare(tensors, prefix))
    problems = [prefix + problem for problem in problems]
    dropped = []
    for name in sorted(tensors.keys() - {prefix + name for name in used}):
        if _is_companion(name, prefix) or re.fullmatch(buffers, name.removeprefix(prefix)):
            dropped.append(name)
        else:
            problems.append(f"{name}: unexpected")
    if problems:
        raise InputError(f"not a whole {what} encoder: " + "; ".join(sorted(problems)))
    if prefix:
        logging.info("read the encoder from under %r", prefix)
    if dropped:
        some = ", ".join(dropped[:6]) + ", ..." * (len(dropped) > 6)
        logging.info("dropped %d tensors an embedding does not need: %s", len(dropped), some)
    return params, dropped


def _is_companion(name: str, prefix: str) -> bool:
    """Whether a tensor beside the encoder under `prefix` is one that an embedding does not need."""
    if "teacher." in prefix and re.match(rf"(?:{_WRAPPER})*?student\.", name):
        return True
    own = re.sub(rf"^(?:{_WRAPPER})+", "", name.removeprefix(prefix))
    return bool(re.fullmatch(_COMPANIONS, own))
