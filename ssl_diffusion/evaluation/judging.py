"""The feature spaces in which images are judged: conditioning encoder, judge, further networks."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ssl_diffusion import demo
from ssl_diffusion.data.records import Records
from ssl_diffusion.encoders.encoder import SSLEncoder
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.spaces import Space, encoder_space, open_space
from ssl_diffusion.files import sha256
from ssl_diffusion.weights.folder import WEIGHTS, kind_of

NO_JUDGE = "none"
CONDITIONING, JUDGE = "encoder", "judge"  # names of spaces in which single images are judged
# Which networks see whole large images: CLIP's, as CLIP-FID is published for 1024 px images.
WHOLE_IMAGES = ("CLIP-FID", "FD (CLIP)")
ROUNDING = 0.01  # of a vector's length: what storing the weights in another format moves


def conditioning_space(encoder: SSLEncoder, folder: Path) -> Space:
    """The space of the encoder that conditions the model, opened from `folder`."""
    digest = sha256(folder / WEIGHTS)
    return encoder_space(encoder, CONDITIONING, "FD (project encoder)", digest)


def default_judge(records: Records) -> str:
    """The judge that ships, for records whose split it was trained on; else none."""
    own = demo.resolve(demo.JUDGE)
    if not (own / WEIGHTS).is_file():
        return NO_JUDGE
    same = records.metadata.get("split_sha256") == sha256(demo.resolve(demo.SPLIT))
    return demo.JUDGE if same else NO_JUDGE


def further_spaces(
    conditioning: Space, judge: str, networks: Sequence[str], resize: str | None
) -> list[Space]:
    """The judge, unless it is "none", and the networks, named as their folders.

    The settings of the judge say whether it `ships` with the project, which knows how it was made,
    or is taken to be independent because it was given. Raises InputError where the judge has the
    weights of the encoder that conditions the model, for two networks of one name, and for a resize
    that none of them takes.
    """
    if resize and not any(kind_of(folder) == "features" for folder in networks):
        raise InputError(
            f"--resize={resize} is of FID's Inception, and --networks has none; leave it out"
        )
    spaces = []
    if judge != NO_JUDGE:
        space = open_space(judge, JUDGE)
        weights = [one.settings["weights_sha256"] for one in (conditioning, space)]
        if weights[0] == weights[1]:
            raise _not_independent()
        ships = demo.resolve(judge).resolve() == demo.resolve(demo.JUDGE).resolve()
        spaces.append(dataclasses.replace(space, settings={**space.settings, "ships": ships}))
    else:
        logging.warning(
            "no independent judge: all but --networks is measured in the space of the encoder that "
            "conditions the model (--judge=DIR)"
        )
    for folder in networks:
        name = demo.resolve(folder).resolve().name
        if name in (CONDITIONING, JUDGE, *(space.name for space in spaces)):
            raise InputError(
                f"--networks={','.join(networks)}: the name {name!r} comes twice, or is taken; "
                "give folders of distinct names"
            )
        feature_network = kind_of(folder) == "features"
        spaces.append(open_space(folder, name, resize if feature_network else None))
    return spaces


def check_independent(
    conditioning: Space, judge: Space, images: UInt8[np.ndarray, "n h w 3"]
) -> None:
    """Raises InputError where both give the same vectors: the one encoder, saved again."""
    if conditioning.settings["layer"] != judge.settings["layer"]:
        return
    own, other = conditioning.embed(images), judge.embed(images)
    apart = np.linalg.norm(own - other, axis=1)
    if (apart <= ROUNDING * np.linalg.norm(own, axis=1)).all():
        raise _not_independent()


def _not_independent() -> InputError:
    return InputError(
        "--judge is the encoder that conditions the model: it is not independent, and would praise "
        "what the model was made to please; give another encoder, or none"
    )
