"""A prior's folder opened as what one can sample from."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ssl_diffusion import demo
from ssl_diffusion.diffusion.denoiser import Denoiser, make_denoiser
from ssl_diffusion.diffusion.schedule import Schedule, make_schedule
from ssl_diffusion.encoders.text import TextEncoder
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import sha256
from ssl_diffusion.models.build import build
from ssl_diffusion.models.grid_conditioner import GridConditioner
from ssl_diffusion.models.grid_transformer import GridTransformer
from ssl_diffusion.prior.asked import Asked, check_asked
from ssl_diffusion.prior.clusters import Clusters
from ssl_diffusion.prior.vectors import standardise
from ssl_diffusion.prior.whitening import Whitening
from ssl_diffusion.weights.folder import WEIGHTS, read_params, read_spec
from ssl_diffusion.weights.model import Apply
from ssl_diffusion.weights.text_encoder import load_text_encoder

NETWORKS = ("denoiser", "conditioner")


@dataclasses.dataclass(frozen=True)
class Prior:
    """p(grid of embeddings | condition): a denoiser of whitened embeddings and what it needs.

    Attributes:
      network, conditioner: the modules.
      params: theirs, as "denoiser" and "conditioner".
      whitening: embeddings <-> what the denoiser sees.
      extra: "vector" {"mean", "std"} and "clusters" [classes, dim], where it has such conditions.
      spec: the model.json.
      schedule: the noise table.
      sha256: of the weights' file; None while they train.
      text_encoder: folder or name of the text encoder; the spec's by default.
    """

    network: GridTransformer
    conditioner: GridConditioner
    params: PyTree
    whitening: Whitening
    extra: Mapping[str, Any]
    spec: Mapping[str, Any]
    schedule: Schedule
    sha256: str | None = None
    text_encoder: str | None = None

    @property
    def window(self) -> int:
        """Side of the largest grid it was trained on, cells."""
        return self.network.window

    @property
    def tokens(self) -> int:
        """Of one cell's embedding."""
        return self.spec["embedding"]["tokens"]

    @property
    def dim(self) -> int:
        """Of one token."""
        return self.spec["embedding"]["dim"]

    @property
    def clusters(self) -> Clusters | None:
        """Which class of the label map a cell is of; None where these are labels, or none."""
        if "clusters" not in self.extra:
            return None
        labels = self.spec["conditions"]["label_map"]["labels"]
        return Clusters(np.asarray(self.extra["clusters"]), np.array(labels))

    def denoiser(self, guidance: float) -> Denoiser:
        """The denoiser of whitened grids under classifier-free guidance of that scale."""
        null = self._context({}, (1, 1))
        return make_denoiser(
            Apply(self.network),
            self.params["denoiser"],
            self.schedule,
            self.spec["diffusion"]["prediction"],
            jax.tree.map(lambda leaf: leaf[0], null),
            guidance,
        )

    def context(self, asked: Asked, rows: int, cols: int) -> dict[str, Array]:
        """What the denoiser attends to: a tree whose first axis is 1.

        Raises InputError for what this prior cannot be asked, and for a text encoder that is not
        the one it was trained with.
        """
        check_asked(asked, self.spec, rows, cols)
        conditions: dict[str, np.ndarray] = {}
        known = self.spec["conditions"]
        if asked.label is not None:
            shares = [asked.label.get(name, 0.0) for name in known["label"]["classes"]]
            conditions["label"] = np.array([shares], np.float32)
        if asked.text is not None:
            conditions["text"] = self.embed_text(asked.text)
        if asked.vector is not None:
            moments = self.extra["vector"]
            values = np.asarray(asked.vector, np.float32)[None]
            log1p = known["vector"]["log1p"]
            conditions["vector"] = standardise(values, moments["mean"], moments["std"], log1p)
        if asked.label_map is not None:
            conditions["label_map"] = np.asarray(asked.label_map, np.int32)[None]
        return self._context(conditions, (rows, cols))

    def _context(
        self, conditions: Mapping[str, np.ndarray], shape: tuple[int, int]
    ) -> dict[str, Array]:
        """Of one example with these conditions and no others."""
        kinds = self.conditioner.kinds
        given = jnp.array([[kind in conditions for kind in kinds]], bool).reshape(1, len(kinds))
        nothing = empty_conditions(self.conditioner, 1, shape)
        said = {kind: jnp.asarray(array) for kind, array in conditions.items()}
        return _condition(self.conditioner, self.params["conditioner"], nothing | said, given)

    def embed_text(self, text: str) -> Float[np.ndarray, "1 dim"]:
        """What the text encoder makes of a sentence.

        Raises InputError for another text encoder than the prior was trained with, and a text that
        it does not take.
        """
        return self._encoder.embed([text])

    @cached_property
    def _encoder(self) -> TextEncoder:
        """Opened once, at the first sentence."""
        told = self.spec["conditions"]["text"]
        encoder = load_text_encoder(self.text_encoder or told["encoder"])
        if encoder.sha256 != told["encoder_sha256"]:
            raise InputError(
                f"the text encoder {self.text_encoder or told['encoder']} is not the one that the "
                f"prior was trained with, {told['encoder']} (SHA-256 {told['encoder_sha256'][:12]}"
                "...); give that one"
            )
        return encoder


@partial(jax.jit, static_argnums=0)
def _condition(conditioner: GridConditioner, params: PyTree, conditions: PyTree, given: Array):
    return conditioner.apply({"params": params}, conditions, given)


def empty_conditions(
    conditioner: GridConditioner, count: int, shape: tuple[int, int]
) -> dict[str, Array]:
    """Conditions of `count` examples of [rows, cols] cells that say nothing, of every kind."""
    widths = {"label": conditioner.classes, "text": conditioner.text, "vector": conditioner.vector}
    empty = {
        kind: jnp.zeros((count, width))
        for kind, width in widths.items()
        if kind in conditioner.kinds
    }
    if "label_map" in conditioner.kinds:
        empty["label_map"] = jnp.full((count, *shape), -1)
    return empty


def init_prior(
    network: GridTransformer, conditioner: GridConditioner, components: int, key: Array
) -> PyTree:
    """Fresh parameters of both networks, of grids of so many white components."""
    network_key, conditioner_key = jax.random.split(key)
    empty = empty_conditions(conditioner, 1, (1, 1))
    given = jnp.ones((1, len(conditioner.kinds)), bool)
    variables = conditioner.init(conditioner_key, empty, given)
    context = conditioner.apply(variables, empty, given)
    grid = jnp.zeros((1, 1, 1, components))
    denoiser = network.init(network_key, grid, jnp.zeros(1), context)
    return {"denoiser": denoiser["params"], "conditioner": variables["params"]}


def load_prior(folder: str | Path, text_encoder: str | None = None) -> Prior:
    """Opens a prior's folder; InputError, before anything compiles, if it is not whole.

    `text_encoder` is the folder of the text encoder where it is not found by the spec's name.
    """
    spec = read_spec(folder, "prior")
    network = build(GridTransformer, spec["architecture"])
    conditioner = build(GridConditioner, spec["conditioner"])
    flat = spec["embedding"]["tokens"] * spec["embedding"]["dim"]
    shapes = jax.eval_shape(
        partial(init_prior, network, conditioner, spec["components"]), jax.random.key(0)
    )
    expected: dict[str, Any] = shapes | {"whitening": whitening_shapes(flat, spec["components"])}
    told = spec["conditions"]
    if "vector" in told:
        one = jax.ShapeDtypeStruct((len(told["vector"]["names"]),), jnp.float32)
        expected["vector"] = {"mean": one, "std": one}
    if told.get("label_map", {}).get("clusters"):
        classes = len(told["label_map"]["classes"])
        expected["clusters"] = jax.ShapeDtypeStruct((classes, flat), jnp.float32)
    params = read_params(folder, expected)
    return Prior(
        network,
        conditioner,
        jax.tree.map(jnp.asarray, {name: params.pop(name) for name in NETWORKS}),
        Whitening(**params.pop("whitening")),
        params,
        spec,
        make_schedule(**spec["diffusion"]["schedule"]),
        sha256(demo.resolve(folder) / WEIGHTS),
        text_encoder,
    )


def whitening_shapes(flat: int, components: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Of the arrays of a whitening, by name."""
    shapes = {"mean": (flat,), "whiten": (flat, components), "colour": (components, flat)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
