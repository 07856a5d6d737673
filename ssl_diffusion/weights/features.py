"""A feature network for distances between sets of images, by its model folder."""

from pathlib import Path

import jax
import jax.numpy as jnp

from ssl_diffusion import demo
from ssl_diffusion.encoders.features import FeatureNetwork, build_feature_network
from ssl_diffusion.files import sha256
from ssl_diffusion.weights.folder import WEIGHTS, read_params, read_spec
from ssl_diffusion.weights.reader import feature_shapes


def load_features(folder: str | Path, resize: str | None = None) -> FeatureNetwork:
    """Opens the folder that `convert` made of FID's Inception-v3.

    `resize`, one of `features.RESIZES`, is that of its model.json unless given. Raises InputError
    if it is no feature network, or is damaged, or for another resize.
    """
    spec = read_spec(folder, "features")
    network = build_feature_network(spec["architecture"])
    params = jax.tree.map(jnp.asarray, read_params(folder, feature_shapes(spec["architecture"])))
    digest = sha256(demo.resolve(folder) / WEIGHTS)
    return FeatureNetwork(network, params, spec, digest, resize or spec["resize"])
