"""The Inception-v3 of FID in the layout of its PyTorch ports: its tensors, there to here."""

import re
from collections.abc import Collection, Mapping

import numpy as np

from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.layouts.wrapped import bare, find_prefix, read_all
from ssl_diffusion.weights.naming import Naming
from ssl_diffusion.weights.reader import feature_shapes

LAYOUT = "inception-2015-12-05"
ARCHITECTURE = {"name": "inception"}
NAMING = Naming(rules=((r"/bn/(mean|var)$", r"/bn/running_\1"),))
_ANCHOR = r"Mixed_\d[a-e]\.branch1x1\.conv\.weight"
_CLASSES = 1008  # of the graph: 1000, a background, and 7 that stand for nothing
_BUFFERS = r".*\.num_batches_tracked"


def recognise(names: Collection[str]) -> bool:
    """Whether a checkpoint with these tensor names, wrapped or not, is an Inception-v3's."""
    return find_prefix(names, _ANCHOR) is not None


def read(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns ({our path: array, a view}, names of the tensors dropped: the classifier).

    Raises InputError for an Inception-v3 that is not FID's, and one that names every missing,
    unexpected, mis-shaped and non-floating tensor.
    """
    prefix = find_prefix(tensors.keys(), _ANCHOR)
    if prefix is None:
        raise InputError("no Inception-v3: no branch of one was found")
    _check_is_fids(bare(tensors, prefix))
    return read_all(tensors, prefix, NAMING, feature_shapes(ARCHITECTURE), "Inception-v3", _BUFFERS)


def _check_is_fids(tensors: Mapping[str, np.ndarray]) -> None:
    """Others have the same shapes but other weights, and their distances compare to nobody's."""
    classes = {tensors[name].shape[0] for name in ("fc.bias", "fc.weight") if name in tensors}
    if classes - {_CLASSES} or any(re.match(r"AuxLogits\.", name) for name in tensors):
        raise InputError(
            f"an Inception-v3 of {', '.join(map(str, sorted(classes))) or 'unknown'} classes, not "
            f"the one of FID ({_CLASSES} classes, no AuxLogits): distances in it are no FID; give "
            "the weights ported from inception-2015-12-05, as pytorch-fid and torch-fidelity use"
        )
