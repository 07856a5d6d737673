"""Representation-guided diffusion for large images, in JAX.

In a notebook: `model = ssl_diffusion.load_model(DIR)`, then
`ssl_diffusion.generate_image(model, grid)`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "generate_image": "ssl_diffusion.stitching.large_image",
    "default_settings": "ssl_diffusion.stitching.settings",
    "load_model": "ssl_diffusion.weights.model",
}


def __getattr__(name: str) -> Any:
    """Loads what a notebook needs when it is asked for: importing the package stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
