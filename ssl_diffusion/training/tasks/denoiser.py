"""Task: the embedding-conditioned latent denoiser (Graikos et al. 2024, sec. 3.1)."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from ssl_diffusion.data.records import Records
from ssl_diffusion.diffusion.denoiser import check_denoiser
from ssl_diffusion.diffusion.loss import denoising_loss
from ssl_diffusion.diffusion.sampling import read_sampling
from ssl_diffusion.diffusion.schedule import make_schedule
from ssl_diffusion.diffusion.solvers import keyed_noise, solve
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.build import PRECISIONS, Policy, build_conditioner, build_network
from ssl_diffusion.pixels import pair_sheet, to_uint8
from ssl_diffusion.stitching.windows import window_origins
from ssl_diffusion.training.tasks import MEASURED, Batch
from ssl_diffusion.weights.folder import write_model
from ssl_diffusion.weights.model import Apply, Model, init_denoiser, load_autoencoder, load_encoder

PICTURED = 16
MEASURED_CHUNK, MEASURED_DRAWS = 32, 8  # held-out patches at once; noise draws of each


class DenoiserTask:
    """Denoising score matching on latents; the embedding is dropped per example for guidance."""

    fields = ("latent", "embedding")

    def __init__(self, config: ConfigDict, records: Records):
        self.config, self.records = config, records
        if not records.metadata.get("latent") or not records.metadata.get("embedding"):
            raise InputError(
                f"records in {records.folder} have no embeddings or latents; prepare them with "
                "data.encoder and data.autoencoder set"
            )
        policy = Policy(**config.model.policy)
        if policy.params != "float32" or not {*policy} <= PRECISIONS.keys():
            raise InputError(
                f"model.policy {policy}; expected float32 or bfloat16, and float32 parameters: "
                "training adds up steps that bfloat16 would lose"
            )
        self.policy = policy
        self.network = build_network(config.model.architecture.to_dict(), policy)
        self.conditioner = build_conditioner(config.model.conditioner.to_dict())
        self.schedule = make_schedule(**config.diffusion.schedule.to_dict())
        self.encoder = load_encoder(records.folder / "encoder")
        self.first_stage = load_autoencoder(records.folder / "autoencoder")
        channels = self.first_stage.network.latent_channels
        if self.network.out_channels not in (channels, 2 * channels):
            raise InputError(
                f"model.architecture.out_channels is {self.network.out_channels}, the latents of "
                f"the records have {channels} channels; set it to that "
                "(or to twice that: a learned variance, which is carried along untrained)"
            )
        self._check()

    def _check(self) -> None:
        """Raises InputError now for what would else stop a run half-way, at its first picture."""
        sampling = self.config.sampling
        check_denoiser(self.config.diffusion.prediction, sampling.guidance)
        read_sampling(sampling.to_dict()).plan(self.schedule)
        window = self.config.data.patch_px // self.first_stage.network.factor
        window_origins(window, window, sampling.stride)
        jax.eval_shape(self.init, jax.random.key(0))

    def init(self, key: Array) -> PyTree:
        return init_denoiser(
            self.network, self.conditioner, self._spec({}), self.first_stage.network, key
        )

    def loss(
        self, params: PyTree, batch: Batch, key: Array
    ) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
        drop_key, loss_key = jax.random.split(key)
        drop = jax.random.bernoulli(
            drop_key, self.config.model.condition_dropout, batch["embedding"].shape[:1]
        )
        return self._loss(params, batch, drop, loss_key), {}

    def _loss(self, params: PyTree, batch: Batch, drop: Array, key: Array):
        context = self.conditioner.apply(
            {"params": params["conditioner"]}, batch["embedding"], drop
        )

        network = partial(Apply(self.network, self.policy.output), params["denoiser"])
        kind = self.config.diffusion.prediction
        return denoising_loss(network, self.schedule, kind, batch["latent"], context, key)

    def picture(self, params: PyTree) -> np.ndarray:
        examples = self.records.source("test", ("image", "embedding")).spread(PICTURED)
        model = self._model(params)
        size = self.config.data.patch_px // model.factor
        shape = (len(examples["image"]), size, size, model.latent_channels)
        start_key, noise_key = jax.random.split(jax.random.key(self.config.seed))
        sampling, context = (
            read_sampling(self.config.sampling.to_dict()),
            model.context(examples["embedding"]),
        )
        plan = sampling.plan(self.schedule)
        denoisers = sampling.denoisers(self.schedule, plan, model.denoiser)
        latent = solve(
            plan,
            lambda k: (denoisers[k], context),
            jax.random.normal(start_key, shape),
            noise=keyed_noise(jax.random.split(noise_key, len(examples["image"]))),
        )
        return pair_sheet(examples["image"], to_uint8(model.decode(latent)), columns=4)

    def measure(self, params: PyTree) -> dict[str, int | float]:
        """Held-out loss with the right embedding, without one, and with another patch's."""
        examples = self.records.source("test", ("latent", "embedding")).spread(MEASURED)
        count = len(examples["latent"])
        shuffled = examples | {"embedding": np.roll(examples["embedding"], count // 2, axis=0)}
        cases = {
            "loss": (examples, False),
            "dropped": (examples, True),
            "shuffled": (shuffled, False),
        }
        loss = jax.jit(self._loss)

        def mean_loss(examples: dict[str, np.ndarray], dropped: bool) -> float:
            # Every case sees the same noise and timesteps, several of each, so that they can be
            # compared; the chunks bound the memory.
            losses = []
            for start in range(0, count, MEASURED_CHUNK):
                chunk = {
                    name: jnp.asarray(values[start : start + MEASURED_CHUNK])
                    for name, values in examples.items()
                }
                drop = jnp.full(len(chunk["latent"]), dropped)
                for draw in range(MEASURED_DRAWS):
                    key = jax.random.fold_in(jax.random.key(draw), start)
                    losses.append(np.asarray(loss(params, chunk, drop, key)))
            return float(np.mean(np.concatenate(losses)))

        return {f"held_out_{name}": mean_loss(*case) for name, case in cases.items()}

    def export(self, params: PyTree, folder: Path, trained: dict[str, Any]) -> None:
        parts = {name: self.records.folder / name for name in ("encoder", "autoencoder")}
        write_model(folder, self._spec(trained), params, parts)

    def _model(self, params: PyTree) -> Model:
        return Model(
            self.network,
            self.conditioner,
            params,
            self._spec({}),
            self.schedule,
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
