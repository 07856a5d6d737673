"""What trained classifiers said of the test patches, kept: a killed comparison goes on."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ssl_diffusion.augmentation.arms import Patches
from ssl_diffusion.files import replacing

Run = tuple[Float[np.ndarray, "n classes"], dict[str, Any]]  # probabilities, what was chosen


def kept_run(
    folder: Path,
    settings: Mapping[str, Any],
    patches: Patches,
    seed: int,
    classify: Callable[[Patches, int], Run],
) -> Run:
    """What `classify` gives, computed once for all that it depends on.

    `settings` are JSON and hold digests of the images and of the encoder. The file's name is a
    SHA-256 of them, the training patches and the seed; a damaged file is as good as none.
    """
    digest = hashlib.sha256(json.dumps([dict(settings), seed], sort_keys=True).encode())
    for array in (patches.kind, patches.row, patches.label, patches.group):
        digest.update(array.astype(np.int64).tobytes())
    file = folder / f"{digest.hexdigest()}.npz"
    if (found := _kept(file)) is not None:
        return found
    probabilities, chosen = classify(patches, seed)
    with replacing(file) as temporary:
        np.savez(temporary, probabilities=probabilities, chosen=json.dumps(chosen))
    return probabilities, chosen


def _kept(file: Path) -> Run | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return arrays["probabilities"], json.loads(str(arrays["chosen"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
