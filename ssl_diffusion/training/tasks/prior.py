"""Task: p(grid of embeddings | condition), a diffusion model over grids."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree
from ml_collections import ConfigDict
from PIL import Image

from ssl_diffusion.data.grids import Grids, open_grids
from ssl_diffusion.data.records import Records
from ssl_diffusion.diffusion.loss import denoising_loss, read_objective
from ssl_diffusion.diffusion.sampling import read_sampling
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import replacing
from ssl_diffusion.models.build import PRECISIONS, Policy, build
from ssl_diffusion.models.grid_transformer import GridTransformer
from ssl_diffusion.prior.asked import Asked
from ssl_diffusion.prior.legend import legend, spread_over
from ssl_diffusion.prior.model import Prior, init_prior, whitening_shapes
from ssl_diffusion.prior.sampling import sample_grids
from ssl_diffusion.prior.whitening import Whitening, fit_whitening
from ssl_diffusion.training.state import example_keys
from ssl_diffusion.training.tasks import MEASURED, Batch, Examples, Task, Terms
from ssl_diffusion.training.tasks.grid_conditions import (
    GridConditions,
    condition_fields,
    draw_conditions,
    make_conditioner,
)
from ssl_diffusion.weights.folder import write_model

PICTURED = 8  # grids of each kind
PICTURE_CELL_PX = 12
MEASURED_CHUNK, MEASURED_DRAWS = 32, 4  # held-out grids at once; noise draws of each
LEGEND = "label_map.png"  # in the folder of a prior that can be asked for label maps
FITTED = 100_000  # embeddings that the whitening is fitted to


class PriorTask(Task):
    """Denoising of whitened grids; the condition is dropped per example for guidance.

    Each time a grid is used, it is cut to a random size (`data.full_grids` of them are left whole),
    so that one prior makes single embeddings and grids up to the window. Without `records` only
    `batch`, `init` and `loss` work, on shapes that the config tells. Raises InputError for a config
    that does not fit itself or the records.
    """

    def __init__(self, config: ConfigDict, records: Records | None):
        self.config, self.records, self.window = config, records, config.data.window
        if not (type(self.window) is int and self.window > 0):
            raise InputError(f"config.data.window is {self.window}, expected cells, 1 or more")
        policy = Policy(**config.model.policy)
        if policy.params != "float32" or not {*policy} <= PRECISIONS.keys():
            raise InputError(f"model.policy {policy}; expected float32 parameters, see PRECISIONS")
        architecture = config.model.architecture.to_dict() | {"window": config.data.window}
        self.network = build(GridTransformer, architecture, jnp.dtype(policy.compute))
        self.conditioner = make_conditioner(config)
        self.objective = read_objective(config.diffusion.to_dict(), config.objective.to_dict())
        self.embedding = config.data.embedding.tokens, config.data.embedding.dim
        self.fields = ("embedding", "present", *condition_fields(config))
        self._check()
        if records is None:
            self.frozen = self._frozen_shapes()
            return
        grids = open_grids(records, self.window)
        self._check_records(grids)
        train = grids["train"].embedding
        picks = np.linspace(0, len(train) - 1, min(FITTED, len(train))).astype(int)
        self.whitening, self.variance_kept = fit_whitening(train[picks], config.model.components)
        found = self.whitening.whiten.shape[1]
        if found != config.model.components:
            raise InputError(
                f"config.model.components is {config.model.components}, the training embeddings "
                f"have {found} that vary; set it to at most that"
            )
        self.conditions = GridConditions(config, records, grids)
        self.frozen = {"whitening": self.whitening._asdict()} | self.conditions.frozen
        self.grids = self.conditions.grids

    def _check(self) -> None:
        """Raises InputError now for what would else stop a run half-way."""
        config, sampling = self.config, self.config.sampling
        for name, value in (
            ("model.condition_dropout", config.model.condition_dropout),
            ("data.full_grids", config.data.full_grids),
        ):
            if not 0 <= value <= 1:
                raise InputError(f"config.{name} is {value}, expected a share from 0 to 1")
        if config.data.mix:
            raise InputError(
                "config.data.mix is of denoisers; prepare the sources of a prior into one record "
                "set, and set config.data.balance to see each class as often"
            )
        read_sampling(sampling.to_dict()).plan(self.objective.schedule)
        if not 1 <= sampling.stride <= self.window:
            raise InputError(
                f"config.sampling.stride is {sampling.stride}, expected 1 to {self.window} cells, "
                "config.data.window"
            )
        jax.eval_shape(self.init, jax.random.key(0))

    def _check_records(self, grids: dict[str, Grids]) -> None:
        if "train" not in grids or len(grids) == 1:
            raise InputError(
                f"records in {self.records.folder} have the splits {', '.join(grids)}; expected "
                "train, and test or val"
            )
        found = grids["train"].embedding.shape[1:]
        if found != self.embedding:
            raise InputError(
                f"records in {self.records.folder} hold embeddings of {list(found)}, "
                f"config.data.embedding says {list(self.embedding)}; set it to theirs"
            )

    def _frozen_shapes(self) -> PyTree:
        """Of tables whose length the records would tell, one row."""
        flat = self.embedding[0] * self.embedding[1]
        frozen: dict[str, Any] = {"whitening": whitening_shapes(flat, self.config.model.components)}
        if "text" in self.conditioner.kinds:
            frozen["sentences"] = jax.ShapeDtypeStruct((1, self.conditioner.text), jnp.float32)
            frozen["choices"] = jax.ShapeDtypeStruct((1, 1), jnp.int32)
            frozen["counts"] = jax.ShapeDtypeStruct((1,), jnp.int32)
        if "vector" in self.conditioner.kinds:
            frozen["vectors"] = jax.ShapeDtypeStruct((1, self.conditioner.vector), jnp.float32)
        return frozen

    def examples(self, records: Records, split: str) -> Examples:
        grids = self.grids[split]
        if self.config.data.balance and split == "train":
            if "label" not in grids.facts:
                raise InputError("config.data.balance needs records with labels; set it to False")
            grids = grids.balanced("label")
        return grids

    def batch(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        cells = count, self.window, self.window
        shapes = {
            "embedding": jax.ShapeDtypeStruct((*cells, *self.embedding), jnp.float16),
            "present": jax.ShapeDtypeStruct(cells, bool),
        }
        facts = {name: jax.ShapeDtypeStruct(cells, jnp.int32) for name in self.fields[2:]}
        return shapes | facts

    def init(self, key: Array) -> PyTree:
        return init_prior(self.network, self.conditioner, self.config.model.components, key)

    def loss(
        self, params: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[Float[Array, " b"], Terms]:
        keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        cut = jax.vmap(self._cut)(keys[:, 0])
        present = batch["present"] & cut
        conditions, given = draw_conditions(
            self.conditioner, self.config, frozen, batch, present, keys[:, 1]
        )
        return self._loss(params, frozen, batch, present, conditions, given, keys[:, 2]), {}

    def _cut(self, key: Array) -> Bool[Array, "h w"]:
        """Which cells of a grid are used: all, or those of a random size from its top left on."""
        whole_key, size_key = jax.random.split(key)
        size = jax.random.randint(size_key, (2,), 1, self.window + 1)
        whole = jax.random.bernoulli(whole_key, self.config.data.full_grids)
        rows, cols = jnp.where(whole, self.window, size)
        cell = jnp.arange(self.window)
        return (cell < rows)[:, None] & (cell < cols)

    def _loss(
        self,
        params: PyTree,
        frozen: PyTree,
        batch: Batch,
        present: Bool[Array, "b h w"],
        conditions: PyTree,
        given: Bool[Array, "b kinds"],
        keys: Key[Array, " b"],
    ) -> Float[Array, " b"]:
        """Mean squared error over the cells that are present."""
        whitening = Whitening(**frozen["whitening"])
        there = present[..., None]
        white = whitening.to_white(batch["embedding"].astype(jnp.float32))
        noised = self.objective.draw(jnp.where(there, white, 0.0), keys)
        context = self.conditioner.apply({"params": params["conditioner"]}, conditions, given)
        output = self.network.apply(
            {"params": params["denoiser"]},
            jnp.where(there, noised.x, 0.0),
            noised.timestep,
            context | {"present": present},
        )
        loss = denoising_loss(jnp.where(there, output, noised.target), noised)
        return loss * present[0].size / present.sum((1, 2))

    def picture(self, params: PyTree) -> np.ndarray:
        """Held-out grids above, sampled ones below, as colours of the first three components."""
        grids = self._held_out()
        picks = np.linspace(0, len(grids) - 1, min(PICTURED, len(grids))).astype(int)
        real = [grids[int(index)] for index in picks]
        shape = self.window, self.window
        sampled = sample_grids(
            self._model(params), Asked(), *shape, samples=PICTURED, seed=self.config.seed
        )
        tiles = [
            [self._colours(grid["embedding"].astype(np.float32), grid["present"]) for grid in real],
            [self._colours(grid, np.ones(shape, bool)) for grid in sampled],
        ]
        gap = np.full((self.window * PICTURE_CELL_PX, 4, 3), 255, np.uint8)
        rows = [np.concatenate([part for tile in row for part in (tile, gap)], 1) for row in tiles]
        width = min(row.shape[1] for row in rows)
        line = np.full((4, width, 3), 255, np.uint8)
        return np.concatenate([rows[0][:, :width], line, rows[1][:, :width]])

    def _colours(self, grid: np.ndarray, present: np.ndarray) -> np.ndarray:
        white = np.asarray(self.whitening.to_white(grid))[..., :3]
        white = np.pad(white, ((0, 0), (0, 0), (0, 3 - white.shape[-1])))
        colours = np.clip(127.5 + 50 * white, 0, 255).astype(np.uint8)
        colours[~present] = 255
        return colours.repeat(PICTURE_CELL_PX, 0).repeat(PICTURE_CELL_PX, 1)

    def _held_out(self) -> Grids:
        return self.grids["test" if "test" in self.grids else "val"]

    def measure(self, params: PyTree) -> dict[str, int | float]:
        """Held-out loss with the right conditions, without any, and with another grid's."""
        grids = self._held_out()
        picks = np.linspace(0, len(grids) - 1, min(MEASURED, len(grids))).astype(int)
        examples = [grids[int(index)] for index in picks]
        count = len(examples)

        @jax.jit
        def losses(params: PyTree, frozen: PyTree, batch: Batch, number: Array) -> dict[str, Array]:
            keys = jax.vmap(jax.random.split)(example_keys(0, number, MEASURED_CHUNK))
            config = _without_dropout(self.config)
            conditions, given = draw_conditions(
                self.conditioner, config, frozen, batch, batch["present"], keys[:, 0]
            )
            other = jax.tree.map(lambda rows: jnp.roll(rows, MEASURED_CHUNK // 2, 0), conditions)
            cases = {
                "loss": (conditions, given),
                "dropped": (conditions, jnp.zeros_like(given)),
                "shuffled": (other, given),
            }
            return {
                name: self._loss(params, frozen, batch, batch["present"], *case, keys[:, 1])
                for name, case in cases.items()
            }

        # Shuffled over the whole split, so that the other half of a chunk is of other images.
        order = np.random.default_rng(0).permutation(count)
        found: dict[str, list[np.ndarray]] = {}
        for first in range(0, count, MEASURED_CHUNK):
            rows = order[np.minimum(np.arange(first, first + MEASURED_CHUNK), count - 1)]
            batch = {name: np.stack([examples[row][name] for row in rows]) for name in self.fields}
            for draw in range(MEASURED_DRAWS):
                number = np.uint32(first + draw * count)  # of other noise at every draw
                for name, values in losses(params, self.frozen, batch, number).items():
                    found.setdefault(name, []).append(np.asarray(values)[: count - first])
        means = {f"held_out_{name}": float(np.mean(np.concatenate(v))) for name, v in found.items()}
        return means | {"variance_kept": self.variance_kept}

    def export(self, params: PyTree, folder: Path, trained: dict[str, Any]) -> None:
        model = self._model(params, trained)
        arrays = model.params | {"whitening": model.whitening._asdict()} | dict(model.extra)
        write_model(folder, model.spec, arrays)
        if "label_map" in model.spec["conditions"]:
            with replacing(folder / LEGEND) as temporary:
                Image.fromarray(self._legend(model.spec["conditions"]["label_map"])).save(
                    temporary, "png"
                )

    def _legend(self, told: dict[str, Any]) -> np.ndarray:
        grids = self.grids["train"]
        images = self.records.source("train", ("image",))
        chosen = spread_over(grids.facts["cell"], len(told["classes"]))
        rows = [grids.facts["row"][patches].tolist() for patches in chosen]
        patches = [[images[row]["image"] for row in own] for own in rows]
        return legend(told["classes"], told["colours"], patches)

    def _model(self, params: PyTree, trained: dict[str, Any] | None = None) -> Prior:
        config, metadata = self.config, self.records.metadata
        conditioner = {
            name: size
            for name in ("width", "classes", "text", "vector", "map_classes")
            if (size := getattr(self.conditioner, name))
        }
        spec = {
            "kind": "prior",
            "architecture": config.model.architecture.to_dict() | {"window": self.window},
            "conditioner": conditioner,
            "components": config.model.components,
            "embedding": {"tokens": self.embedding[0], "dim": self.embedding[1]},
            "encoder_sha256": metadata["recipe"].get("encoder_sha256"),
            "patch_px": metadata["patch_px"],
            "mpp": metadata["mpp"],
            "labels": list(self.conditions.classes),
            "conditions": self.conditions.spec,
            "diffusion": config.diffusion.to_dict(),
            "sampling": config.sampling.to_dict(),
            "trained": trained or {},
        }
        return Prior(
            self.network,
            self.conditioner,
            params,
            self.whitening,
            self.conditions.params,
            spec,
            self.objective.schedule,
        )


def _without_dropout(config: ConfigDict) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.model.condition_dropout = 0.0
    for kind in config.conditions:
        config.conditions[kind].dropout = 0.0
    if "label_map" in config.conditions:
        config.conditions.label_map.partial = 0.0
    return config
