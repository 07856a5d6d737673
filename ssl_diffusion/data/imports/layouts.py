"""Which layout a data set has that somebody cut before."""

from ml_collections import ConfigDict

from ssl_diffusion.data.imports import feature_files, published, side_files, tfds_sets
from ssl_diffusion.data.origins import Collection

LAYOUTS = (tfds_sets, published, side_files, feature_files)  # by how surely it is recognised


def find(data: ConfigDict) -> Collection | None:
    """The origins in `data.source`, or None if it has none of the layouts known here.

    Raises InputError where a layout is recognised, and what it takes is not there.
    """
    for layout in LAYOUTS:
        if layout.recognise(data.source):
            return layout.collect(data)
    return None
