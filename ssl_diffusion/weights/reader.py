"""Taking the parameters of several networks out of one set of published tensors."""

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from ssl_diffusion.encoders.build import build_encoder
from ssl_diffusion.encoders.features import build_feature_network
from ssl_diffusion.encoders.text_networks import build_text_network
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.autoencoder import Autoencoder
from ssl_diffusion.models.build import build, build_conditioner, build_network
from ssl_diffusion.weights.naming import Naming, to_ours


@dataclasses.dataclass(frozen=True)
class Imported:
    """A model folder to be: content of model.json, parameters (views), models it needs by name.

    `files` are what else it holds: name and text.
    """

    spec: dict[str, Any]
    params: PyTree
    parts: dict[str, "Imported"] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)


class Reader:
    """Takes families of parameters out of one set of tensors, and remembers every problem."""

    def __init__(self, path: Path, tensors: Mapping[str, np.ndarray]):
        self.path, self.tensors = path, tensors
        self.left, self._problems = set(tensors), []

    def take(self, naming: Naming, shapes: PyTree) -> dict[str, Any]:
        """The parameters of one network, as a tree of views."""
        params, used, problems = to_ours(naming, shapes, self.tensors)
        self.left -= used
        self._problems += problems
        return traverse_util.unflatten_dict(params, sep="/")

    def drop(self, pattern: str, why: str) -> list[str]:
        """Leaves out what is left of the names that match, with a line in the log."""
        names = sorted(name for name in self.left if re.fullmatch(pattern, name))
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            logging.info("left out %s%s: %s", names[0], more, why)
        self.left -= set(names)
        return names

    def infer(self, read: Callable[[Mapping[str, np.ndarray]], Any], names: str) -> Any:
        """What `read` makes of the tensors; None, and one more problem, if that is an InputError.

        The tensors whose names match belong to it: without it there is nothing to say of them.
        """
        try:
            return read(self.tensors)
        except InputError as error:
            self.left = {name for name in self.left if not re.fullmatch(names, name)}
            self._problems.append(str(error))
            return None

    def finish(self) -> None:
        """Raises one InputError for every missing, mis-shaped, ill-typed or unexpected tensor."""
        self._problems += [f"{name}: unexpected" for name in sorted(self.left)]
        if self._problems:
            raise InputError(f"{self.path} does not fit: " + "; ".join(self._problems))


def network_shapes(architecture: Mapping[str, Any], channels: int, width: int) -> PyTree:
    """Shapes of a denoiser's parameters."""
    network = build_network(dict(architecture))
    latent, context = jnp.zeros((1, 64, 64, channels)), jnp.zeros((1, 1, width))
    return _shapes(network, latent, jnp.zeros(1), context)


def conditioner_shapes(fields: Mapping[str, Any], tokens: int, dim: int) -> PyTree:
    """Shapes of a conditioner's parameters."""
    return _shapes(build_conditioner(dict(fields)), jnp.zeros((1, tokens, dim)))


def autoencoder_shapes(architecture: Mapping[str, Any]) -> PyTree:
    """Shapes of an autoencoder's parameters."""
    return _shapes(build(Autoencoder, architecture), jnp.zeros((1, 64, 64, 3)))


def encoder_shapes(architecture: Mapping[str, Any]) -> PyTree:
    """Shapes of an SSL encoder's parameters; they do not depend on the size of its images."""
    network = build_encoder(architecture)
    return _shapes(network, jnp.zeros((1, network.size_step, network.size_step, 3)))


def feature_shapes(architecture: Mapping[str, Any]) -> PyTree:
    """Shapes of a feature network's parameters."""
    network = build_feature_network(architecture)
    return _shapes(network, jnp.zeros((1, network.size, network.size, 3)))


def text_encoder_shapes(architecture: Mapping[str, Any]) -> PyTree:
    """Shapes of a text encoder's parameters; they do not depend on the length of its texts."""
    network = build_text_network(architecture)
    return _shapes(network, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))


def _shapes(network: nn.Module, *inputs: Any) -> PyTree:
    return jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
