"""By which split whatever generates was trained: it decides whether it may know what is tested."""

import logging
from collections.abc import Mapping
from typing import Any

from ssl_diffusion.data.records import Records


def split_of(spec: Mapping[str, Any], records: Records, what: str, known: str) -> str | None:
    """SHA-256 of the split that a model of this model.json was trained by; None if it is not told.

    Where the records have another a line in the log says that `what` (the model, the prior) may
    know `known` (patches, slides).
    """
    split = spec.get("trained", {}).get("split_sha256")
    if split and split != records.metadata.get("split_sha256"):
        logging.warning(
            "%s was trained with another split than these records': it may know %s that are held "
            "out here",
            what,
            known,
        )
    return split
