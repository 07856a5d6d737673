"""The feature spaces in which images are judged: conditioning encoder, judge, further networks."""

import logging
from collections.abc import Sequence
from pathlib import Path

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

    Raises InputError where the judge is the encoder that conditions the model, and for two networks
    of one name.
    """
    spaces = []
    if judge != NO_JUDGE:
        spaces.append(open_space(judge, JUDGE))
        weights = [space.settings["weights_sha256"] for space in (conditioning, spaces[0])]
        if weights[0] == weights[1]:
            raise InputError(
                f"--judge={judge} is the encoder that conditions the model: it is not independent, "
                "and would praise what the model was made to please; give another encoder, or none"
            )
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
