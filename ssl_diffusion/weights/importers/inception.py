"""The Inception-v3 of FID."""

from pathlib import Path

from flax import traverse_util

from ssl_diffusion.weights.importers.settings import Settings
from ssl_diffusion.weights.layouts import inception
from ssl_diffusion.weights.reader import Imported
from ssl_diffusion.weights.tensor_files import open_tensors


def import_inception(path: Path, settings: Settings) -> Imported:
    """Reads the file; InputError for what does not fit. `settings` has nothing that it wants."""
    params, _ = inception.read(open_tensors(path))
    spec = {
        "kind": "features",
        "architecture": inception.ARCHITECTURE,
        "resize": "tensorflow",
        "source": {"names": inception.LAYOUT},
    }
    return Imported(spec, traverse_util.unflatten_dict(params, sep="/"))
