"""Task: the embedding-conditioned latent denoiser (Graikos et al. 2024, sec. 3.1)."""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree
from ml_collections import ConfigDict

from ssl_diffusion.data.records import Records
from ssl_diffusion.diffusion.denoiser import check_denoiser
from ssl_diffusion.diffusion.loss import denoising_loss, read_objective
from ssl_diffusion.diffusion.sampling import read_sampling
from ssl_diffusion.diffusion.solvers import keyed_noise, solve
from ssl_diffusion.encoders.encoder import SSLEncoder
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.build import PRECISIONS, Policy, build_conditioner, build_network
from ssl_diffusion.pixels import pair_sheet, to_uint8
from ssl_diffusion.stitching.windows import window_origins
from ssl_diffusion.training.alignment import make_alignment
from ssl_diffusion.training.state import example_keys
from ssl_diffusion.training.tasks import MEASURED, Batch, Task, Terms, split_keys
from ssl_diffusion.training.tasks.latents import LatentInput, make_input
from ssl_diffusion.weights.encoder import load_encoder
from ssl_diffusion.weights.folder import write_model
from ssl_diffusion.weights.model import Model, init_denoiser, load_autoencoder

PICTURED = 16
MEASURED_CHUNK, MEASURED_DRAWS = 32, 8  # held-out patches at once; noise draws of each
NOISE_LEVELS = 4  # equal parts of the timesteps, whose losses are logged apart


class DenoiserTask(Task):
    """Denoising score matching on latents; the embedding is dropped per example for guidance.

    Without `records` only `batch`, `init` and `loss` work, on shapes that the config tells: enough
    to compile a step. Raises InputError for a config that does not fit itself or the records.
    """

    def __init__(self, config: ConfigDict, records: Records | None):
        self.config, self.records = config, records
        policy = Policy(**config.model.policy)
        if policy.params != "float32" or not {*policy} <= PRECISIONS.keys():
            raise InputError(
                f"model.policy {policy}; expected float32 or bfloat16, and float32 parameters: "
                "training adds up steps that bfloat16 would lose"
            )
        self.policy = policy
        network = build_network(config.model.architecture.to_dict(), policy)
        self.network = network.clone(remat=config.model.remat)
        self.conditioner = build_conditioner(config.model.conditioner.to_dict())
        objective = config.objective.to_dict()
        repa = objective.pop("repa", None)
        dropout = config.model.condition_dropout
        if not 0 <= dropout < 1:
            raise InputError(
                f"model.condition_dropout is {dropout}, expected a share from 0 up to below 1"
            )
        self.objective = read_objective(config.diffusion.to_dict(), objective)
        self.embedding = config.data.embedding.tokens, config.data.embedding.dim
        self.input: LatentInput = make_input(config, records)
        channels = self.input.shape[-1]
        if self.network.out_channels not in (channels, 2 * channels):
            raise InputError(
                f"model.architecture.out_channels is {self.network.out_channels}, the latents have "
                f"{channels} channels (config.data.latent); set it to that "
                "(or to twice that: a learned variance, which is carried along untrained)"
            )
        tokens = _patch_tokens(config, records)
        self.alignment = make_alignment(repa, self.network, tokens)
        self.frozen = self.input.frozen
        self._shapes = {"embedding": jax.ShapeDtypeStruct(self.embedding, jnp.float32)}
        self._shapes |= self.input.fields
        if self.alignment:
            self._shapes["tokens"] = jax.ShapeDtypeStruct(tokens, jnp.float16)
        self.fields = tuple(self._shapes)
        self._check()
        if records:
            self.encoder = _encoder(records)
            self.first_stage = load_autoencoder(records.folder / "autoencoder")

    def _check(self) -> None:
        """Raises InputError now for what would else stop a run half-way, at its first picture."""
        config, sampling = self.config, self.config.sampling
        if self.records:
            found = self.records.metadata.get("embedding")
            expected = {"tokens": self.embedding[0], "dim": self.embedding[1]}
            if not found or {name: found[name] for name in expected} != expected:
                raise InputError(
                    f"records in {self.records.folder} hold embeddings {found or 'of no encoder'}, "
                    f"config.data.embedding says {expected}; set it to theirs, or prepare records "
                    "with the encoder that the config means"
                )
        check_denoiser(config.diffusion.prediction, sampling.guidance)
        read_sampling(sampling.to_dict()).plan(self.objective.schedule)
        window = self.input.shape[0]
        window_origins(window, window, sampling.stride)
        jax.eval_shape(self.init, jax.random.key(0))

    def batch(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct((count, *one.shape), one.dtype)
            for name, one in self._shapes.items()
        }

    def init(self, key: Array) -> PyTree:
        params = init_denoiser(
            self.network, self.conditioner, self.embedding, self.input.shape, key
        )
        if self.alignment:
            latent = jnp.zeros((1, *self.input.shape))
            context = self.conditioner.apply(
                {"params": params["conditioner"]}, jnp.zeros((1, *self.embedding))
            )
            given = params["denoiser"], latent, jnp.zeros(1), context
            # 0 and 1 are the keys of the network and the conditioner.
            params["projector"] = self.alignment.init(jax.random.fold_in(key, 2), *given)
        return params

    def loss(
        self, params: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[Float[Array, " b"], Terms]:
        drop_keys, keys = split_keys(keys)
        rate = self.config.model.condition_dropout
        drop = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(drop_keys)
        return self._loss(params, frozen, batch, drop, keys)

    def _loss(
        self,
        params: PyTree,
        frozen: PyTree,
        batch: Batch,
        drop: Bool[Array, " b"],
        keys: Key[Array, " b"],
    ) -> tuple[Float[Array, " b"], Terms]:
        latent_keys, noise_keys = split_keys(keys)
        latent = self.input.latent(frozen, batch, latent_keys)
        context = self.conditioner.apply(
            {"params": params["conditioner"]}, batch["embedding"], drop
        )
        noised = self.objective.draw(latent, noise_keys)
        given = noised.x, noised.timestep, context
        if self.alignment:
            output, hidden = self.alignment.apply(params["denoiser"], *given)
        else:
            output = self.network.apply({"params": params["denoiser"]}, *given)
        # A variance that is predicted after the mean is left out.
        output = output[..., : latent.shape[-1]].astype(self.policy.output)
        loss = denoising_loss(output, noised)
        terms = self._by_noise_level(loss, noised.timestep)
        if self.alignment:
            terms["denoising"] = loss
            terms["alignment"] = self.alignment.loss(params["projector"], hidden, batch["tokens"])
            loss = loss + self.alignment.weight * terms["alignment"]
        return loss, terms

    def _by_noise_level(self, loss: Float[Array, " b"], timestep: Float[Array, " b"]) -> Terms:
        steps = self.objective.schedule.steps
        edges = [level * steps // NOISE_LEVELS for level in range(NOISE_LEVELS + 1)]
        return {
            f"loss_timestep_{low}_{high - 1}": jnp.where(
                (low <= timestep) & (timestep < high), loss, jnp.nan
            )
            for low, high in zip(edges, edges[1:], strict=False)
        }

    def picture(self, params: PyTree) -> np.ndarray:
        examples = self.records.source("test", ("image", "embedding")).spread(PICTURED)
        model = self._model(params)
        shape = (len(examples["image"]), *self.input.shape)
        start_key, noise_key = jax.random.split(jax.random.key(self.config.seed))
        sampling, context = (
            read_sampling(self.config.sampling.to_dict()),
            model.context(examples["embedding"]),
        )
        plan = sampling.plan(model.schedule)
        denoisers = sampling.denoisers(model.schedule, plan, model.denoiser)
        latent = solve(
            plan,
            lambda k: (denoisers[k], context),
            jax.random.normal(start_key, shape),
            noise=keyed_noise(jax.random.split(noise_key, len(examples["image"]))),
        )
        return pair_sheet(examples["image"], to_uint8(model.decode(latent)), columns=4)

    def measure(self, params: PyTree) -> dict[str, int | float]:
        """Held-out loss with the right embedding, without one, and with another patch's."""
        examples = self.records.source("test", self.fields, raw=True).spread(MEASURED)
        count = len(examples["embedding"])
        shuffled = examples | {"embedding": np.roll(examples["embedding"], count // 2, axis=0)}
        cases = {
            "loss": (examples, False),
            "dropped": (examples, True),
            "shuffled": (shuffled, False),
        }
        loss = jax.jit(lambda *given: self._loss(*given)[0])

        def mean_loss(examples: dict[str, np.ndarray], dropped: bool) -> float:
            # Every case sees the same noise and timesteps, several of each, so that they can be
            # compared; the chunks bound the memory.
            losses = []
            for start in range(0, count, MEASURED_CHUNK):
                # The last chunk is filled up with its last example: one compilation does.
                rows = np.minimum(np.arange(start, start + MEASURED_CHUNK), count - 1)
                chunk = {name: jnp.asarray(values[rows]) for name, values in examples.items()}
                drop = jnp.full(MEASURED_CHUNK, dropped)
                for draw in range(MEASURED_DRAWS):
                    keys = example_keys(draw, start, MEASURED_CHUNK)
                    found = loss(params, self.frozen, chunk, drop, keys)
                    losses.append(np.asarray(found)[: count - start])
            return float(np.mean(np.concatenate(losses)))

        return {f"held_out_{name}": mean_loss(*case) for name, case in cases.items()}

    def export(self, params: PyTree, folder: Path, trained: dict[str, Any]) -> None:
        names = ("encoder", "autoencoder") if self.encoder else ("autoencoder",)
        parts = {name: self.records.folder / name for name in names}
        kept = {name: params[name] for name in ("denoiser", "conditioner")}
        write_model(folder, self._spec(trained), kept, parts)

    def _model(self, params: PyTree) -> Model:
        return Model(
            self.network,
            self.conditioner,
            params,
            self._spec({}),
            self.objective.schedule,
            self.first_stage,
            self.encoder,
            sha256=None,
            policy=self.policy,
        )

    def _spec(self, trained: dict[str, Any]) -> dict[str, Any]:
        config, metadata = self.config, self.records.metadata
        return {
            "kind": "denoiser",
            "architecture": config.model.architecture.to_dict(),
            "conditioner": config.model.conditioner.to_dict(),
            "patch_px": metadata["patch_px"],
            "mpp": metadata["mpp"],
            "embedding": metadata["embedding"],
            "diffusion": config.diffusion.to_dict(),
            "sampling": config.sampling.to_dict(),
            "trained": trained,
        }


def _encoder(records: Records) -> SSLEncoder | None:
    """The encoder that the records were made with; None where it left no folder, as a function."""
    folder = records.folder / "encoder"
    if folder.exists() or "encoder_sha256" in records.metadata["recipe"]:
        return load_encoder(folder)
    logging.warning(
        "the records hold no encoder: the model will make images of embeddings, but embed none"
    )
    return None


def _patch_tokens(config: ConfigDict, records: Records | None) -> tuple[int, int] | None:
    """(count, dim) of the records' patch tokens; None where they are to have none.

    InputError where the records have others than the config says.
    """
    if not config.data.patch_tokens:
        return None
    expected = config.data.tokens.to_dict()
    if records and records.metadata.get("tokens") != expected:
        raise InputError(
            f"records in {records.folder} hold the patch tokens {records.metadata.get('tokens')}, "
            f"config.data.tokens says {expected}; set it to theirs"
        )
    return expected["count"], expected["dim"]
