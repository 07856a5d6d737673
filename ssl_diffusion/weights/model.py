"""Model folders opened as what one can compute with."""

import dataclasses
import logging
import re
from collections.abc import Mapping
from functools import cached_property, partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, PyTree, UInt8

from ssl_diffusion import demo
from ssl_diffusion.diffusion.denoiser import Denoiser, make_denoiser
from ssl_diffusion.diffusion.schedule import Schedule, make_schedule, with_defaults
from ssl_diffusion.encoders.encoder import SSLEncoder, padded_chunks
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import sha256
from ssl_diffusion.models.autoencoder import Autoencoder
from ssl_diffusion.models.build import FLOAT32, Policy, build, build_conditioner, build_network
from ssl_diffusion.models.conditioner import Conditioner, TokenProjection, null_context
from ssl_diffusion.models.layers import project_context
from ssl_diffusion.weights.encoder import load_encoder
from ssl_diffusion.weights.folder import WEIGHTS, part_of, read_arrays, read_params, read_spec
from ssl_diffusion.weights.reader import autoencoder_shapes

# What a start may lack: what reads the context, and the projector of training.
STAYS_FRESH = re.compile(r"^conditioner/|^projector/|/attn2/to_[kv]/|/context_embed/")
CHUNK = 32  # images per autoencoder call, always padded to this: results do not depend on the batch


@dataclasses.dataclass(frozen=True)
class FirstStage:
    """An autoencoder; `spec["latent"]` has shift and scale: scaled = (raw - shift) * scale."""

    network: Autoencoder
    params: PyTree
    spec: Mapping[str, Any]

    def encode(self, images: UInt8[np.ndarray, "n H W 3"]) -> Float[np.ndarray, "n h w c"]:
        """Raw latents of uint8 images."""
        parts = []
        for chunk, count in padded_chunks(images, CHUNK):
            latent = _encode(self.network, self.params, chunk)
            parts.append(np.asarray(latent)[:count])
        return np.concatenate(parts)

    def posterior(
        self, images: UInt8[np.ndarray, "n H W 3"]
    ) -> tuple[Float[np.ndarray, "n h w c"], Float[np.ndarray, "n h w c"]]:
        """Mean and standard deviation of raw latents, of an autoencoder without a codebook."""
        parts = []
        for chunk, count in padded_chunks(images, CHUNK):
            moments = _moments(self.network, self.params, chunk)
            parts.append([np.asarray(array)[:count] for array in moments])
        mean, log_variance = map(np.concatenate, zip(*parts, strict=True))
        return mean, np.exp(0.5 * log_variance)

    def decode(self, latent: Float[Any, "n h w c"]) -> Float[Array, "n H W 3"]:
        """Images of raw latents, white 1 and black -1; not clipped, for tiles are blended first."""
        return _decode(self.network, self.params, latent)


@partial(jax.jit, static_argnums=0)
def _encode(network: Autoencoder, params: PyTree, images):
    return network.apply({"params": params}, images / 127.5 - 1.0, method="encode")


@partial(jax.jit, static_argnums=0)
def _moments(network: Autoencoder, params: PyTree, images):
    return network.apply({"params": params}, images / 127.5 - 1.0, method="moments")


@partial(jax.jit, static_argnums=0)
def _decode(network: Autoencoder, params: PyTree, latent):
    return network.apply({"params": params}, latent, method="decode")


def load_autoencoder(folder: str | Path) -> FirstStage:
    """Opens an autoencoder's folder; InputError if it is not one or is damaged."""
    spec = read_spec(folder, "autoencoder")
    network = build(Autoencoder, spec["architecture"])
    params = read_params(folder, autoencoder_shapes(spec["architecture"]))
    return FirstStage(network, _on_device(params), spec)


def _on_device(params: PyTree) -> PyTree:
    return jax.tree.map(jnp.asarray, params)


project = jax.jit(project_context, static_argnums=2)


@dataclasses.dataclass(frozen=True)
class Apply:
    """(params, x, timestep, context) -> output; equal networks share a compilation.

    A network that predicts more channels than `x` has predicts a variance after the mean
    (Nichol & Dhariwal 2021, arXiv 2102.09672, sec. 3.1), which is left out.
    """

    network: nn.Module
    output: str = "float32"  # number format

    def __call__(self, params: PyTree, x: Array, timestep: Array, context: PyTree) -> Array:
        y = self.network.apply({"params": params}, x, timestep, context)
        return y[..., : x.shape[-1]].astype(self.output)


@dataclasses.dataclass(frozen=True)
class Model:
    """A denoiser with everything it needs: conditioner, schedule, encoder and first stage.

    Latents here are scaled, as the denoiser sees them.
    """

    network: nn.Module
    conditioner: Conditioner | TokenProjection
    params: PyTree  # {"denoiser": ..., "conditioner": ...}
    spec: Mapping[str, Any]
    schedule: Schedule
    first_stage: FirstStage
    own_encoder: SSLEncoder | None  # None where it came without, or is a function
    sha256: str | None  # of the weights' file, for what is made with them; None while they train
    policy: Policy = FLOAT32

    @property
    def encoder(self) -> SSLEncoder:
        """The SSL encoder whose embeddings condition the model; InputError if it came without."""
        if self.own_encoder is None:
            raise InputError(
                "the model came without its SSL encoder: images can be made of embeddings (sample, "
                "generate --grid), but none can be embedded or judged; where the encoder is a "
                "published one, convert the model again with --encoder=DIR"
            )
        return self.own_encoder

    @property
    def patch_px(self) -> int:
        """Side of a patch (and of a window) in pixels."""
        return self.spec["patch_px"]

    @property
    def mpp(self) -> float:
        """Resolution the model was trained at, µm per pixel; InputError if nothing says it."""
        if self.spec["mpp"] is None:
            raise InputError(
                "nothing says at which resolution the model was trained: convert it again with "
                "--mpp, or write mpp (µm per pixel) into its model.json"
            )
        return self.spec["mpp"]

    @property
    def factor(self) -> int:
        """Pixels per latent pixel."""
        return self.first_stage.network.factor

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.first_stage.network.latent_channels

    @cached_property
    def _latent_scale(self) -> tuple[float, float]:
        latent = self.first_stage.spec["latent"]
        return latent["shift"], latent["scale"]

    def denoiser(self, guidance: float) -> Denoiser:
        """The denoiser under classifier-free guidance of that scale (1: none)."""
        embedding = self.spec["embedding"]
        null = null_context(
            self.conditioner, self.params["conditioner"], embedding["tokens"], embedding["dim"]
        )
        return make_denoiser(
            Apply(self.network, self.policy.output),
            self.params["denoiser"],
            self.schedule,
            self.spec["diffusion"]["prediction"],
            jax.tree.map(itemgetter(0), self._project(null[None])),
            guidance,
        )

    def context(self, embedding: Float[Any, "n tokens dim"]) -> PyTree:
        """What the denoiser's layers make of embeddings, once for all steps: a tree of [n ...].

        Raises InputError unless the embedding is of the model's kind.
        """
        expected = self.spec["embedding"]
        if embedding.ndim != 3 or embedding.shape[1:] != (expected["tokens"], expected["dim"]):
            raise InputError(
                f"embedding of shape {tuple(embedding.shape)}, expected [n, {expected['tokens']}, "
                f"{expected['dim']}]; use embeddings of the model's own encoder"
            )
        params = {"params": self.params["conditioner"]}
        return self._project(self.conditioner.apply(params, jnp.asarray(embedding)))

    def _project(self, tokens: Float[Array, "n m width"]) -> PyTree:
        return project(self.params["denoiser"], tokens, self.policy.compute)

    def encode(self, images: UInt8[np.ndarray, "n H W 3"]) -> Float[np.ndarray, "n h w c"]:
        """Scaled latents of uint8 images."""
        shift, scale = self._latent_scale
        return (self.first_stage.encode(images) - shift) * scale

    def decode(self, latent: Float[Any, "n h w c"]) -> Float[Array, "n H W 3"]:
        """Images of scaled latents, white 1 and black -1, not clipped."""
        shift, scale = self._latent_scale
        return self.first_stage.decode(latent / scale + shift)


def load_model(folder: str | Path, policy: Policy = FLOAT32) -> Model:
    """Opens a trained model's folder. InputError, before anything compiles, if it is not whole."""
    spec = read_spec(folder, "denoiser")
    if spec["conditioner"] is None:
        raise InputError(
            f"{folder} has no conditioner, it embedded classes: train from it (config.init_from)"
        )
    own = part_of(folder, "encoder")
    encoder = load_encoder(own) if own.exists() else None
    first_stage = load_autoencoder(part_of(folder, "autoencoder"))
    network = build_network(spec["architecture"], policy)
    conditioner = build_conditioner(spec["conditioner"])
    side = spec["patch_px"] // first_stage.network.factor
    latent = side, side, first_stage.network.latent_channels
    embedding = spec["embedding"]["tokens"], spec["embedding"]["dim"]
    shapes = jax.eval_shape(
        partial(init_denoiser, network, conditioner, embedding, latent), jax.random.key(0)
    )
    params = read_params(folder, shapes)
    denoiser = jax.tree.map(partial(jnp.asarray, dtype=policy.params), params["denoiser"])
    params = {"denoiser": denoiser, "conditioner": _on_device(params["conditioner"])}
    schedule = make_schedule(**spec["diffusion"]["schedule"])
    digest = sha256(demo.resolve(folder) / WEIGHTS)
    return Model(network, conditioner, params, spec, schedule, first_stage, encoder, digest, policy)


def init_denoiser(
    network: nn.Module,
    conditioner: Conditioner | TokenProjection,
    embedding: tuple[int, int],
    latent: tuple[int, int, int],
    key: Array,
) -> PyTree:
    """Fresh parameters {"denoiser": ..., "conditioner": ...}.

    `embedding` is [tokens, dim] of one patch, `latent` [h, w, c].
    """
    network_key, conditioner_key = jax.random.split(key)
    tokens = jnp.zeros((1, *embedding))
    variables = conditioner.init(conditioner_key, tokens)
    context = conditioner.apply(variables, tokens)
    denoiser = network.init(network_key, jnp.zeros((1, *latent)), jnp.zeros(1), context)
    return {"denoiser": denoiser["params"], "conditioner": variables["params"]}


def _process(diffusion: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    return with_defaults(diffusion["schedule"]), diffusion["prediction"]


def start_params(
    folder: str | Path, architecture: Mapping[str, Any], diffusion: Mapping[str, Any], fresh: PyTree
) -> PyTree:
    """`fresh` parameters of a denoiser, replaced by those of the model in `folder`.

    What reads the context may be of another width there, and the conditioner missing: these stay
    fresh, and the log says so, and also where the noise schedule or the prediction is another.
    Raises InputError for another architecture.
    """
    spec = read_spec(folder, "denoiser")

    def alike(architecture: Mapping[str, Any]) -> nn.Module:
        return build_network(dict(architecture)).clone(pooled_context=False)

    if alike(spec["architecture"]) != alike(architecture):
        raise InputError(
            f"{folder} holds a denoiser of another architecture, {spec['architecture']}; set "
            "model.architecture to it"
        )
    if _process(spec["diffusion"]) != _process(diffusion):
        logging.warning("%s was trained with another process: %s", folder, spec["diffusion"])
    found = read_arrays(folder)
    params, stays, wrong = {}, [], []
    for name, leaf in traverse_util.flatten_dict(fresh, sep="/").items():
        array = found.get(name)
        if array is not None and array.shape == leaf.shape:
            params[name] = np.asarray(array, leaf.dtype)
            continue
        params[name] = leaf
        there = "nothing" if array is None else list(array.shape)
        line = f"{name}: found {there}, expected {list(leaf.shape)}"
        (stays if STAYS_FRESH.search(name) else wrong).append(line)
    if wrong:
        raise InputError(f"{folder} is no start for this architecture: {'; '.join(wrong)}")
    if stays:
        logging.info("trained from the start, for %s has no such: %s", folder, "; ".join(stays))
    return traverse_util.unflatten_dict(params, sep="/")
