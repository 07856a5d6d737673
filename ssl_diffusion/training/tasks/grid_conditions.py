"""What the grids of a batch are conditioned on: read from the records, drawn anew for each use."""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from ssl_diffusion.data.grids import Grids
from ssl_diffusion.data.records import Records
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.grid_conditioner import KINDS, GridConditioner
from ssl_diffusion.prior.captions import choose, read_captions
from ssl_diffusion.prior.clusters import colours, fit_clusters
from ssl_diffusion.prior.vectors import fit_standard, read_vectors, standardise
from ssl_diffusion.training.tasks import Batch
from ssl_diffusion.weights.text_encoder import load_text_encoder

FIELDS = {"label": "classes", "text": "text", "vector": "vector", "label_map": "map_classes"}
ASKED = {  # of a kind, in the config
    "label": ("size", "dropout"),
    "text": ("size", "dropout", "encoder", "captions"),
    "vector": ("size", "dropout", "file", "log1p"),
    "label_map": ("size", "dropout", "partial", "clusters"),
}
# Facts of the grids (see data.grids.Grids) that a kind of condition is read from.
FACTS = {"label": "label", "text": "caption", "vector": "vector", "label_map": "cell"}


def make_conditioner(config: ConfigDict) -> GridConditioner:
    """The network of `config.conditions`; InputError for kinds that there are not."""
    conditions = config.conditions
    if unknown := sorted({*conditions} - {*KINDS}):
        raise InputError(
            f"config.conditions has {', '.join(unknown)}; the kinds are {', '.join(KINDS)}"
        )
    for kind in conditions:
        if missing := [name for name in ASKED[kind] if name not in conditions[kind]]:
            raise InputError(
                f"config.conditions.{kind} lacks {', '.join(missing)}; see configs/demo_prior.py"
            )
        if not 0 <= conditions[kind].dropout < 1:
            raise InputError(
                f"config.conditions.{kind}.dropout is {conditions[kind].dropout}, expected a share "
                "from 0 up to below 1"
            )
    sizes = {FIELDS[kind]: conditions[kind].size for kind in conditions}
    return GridConditioner(config.model.architecture.width, **sizes)


class GridConditions:
    """The conditions of one record set.

    Attributes:
      grids: by split, with the facts that the conditions are read from.
      frozen: tables that `draw` reads: embeddings of sentences, which of them may be said, vectors.
      params: what a sampler needs beside the network: moments of vectors, centres of clusters.
      spec: "conditions" of the model.json.

    Raises InputError where the config does not fit the records.
    """

    def __init__(self, config: ConfigDict, records: Records, grids: dict[str, Grids]):
        self.config, self.grids = config, grids
        self.frozen: dict[str, Any] = {}
        self.params: dict[str, Any] = {}
        self.spec: dict[str, Any] = {}
        self.classes = tuple(records.metadata.get("classes") or ())
        self.map_classes: tuple[str, ...] = ()
        add = {  # text last: captions speak of labels and of maps
            "label": self._add_label,
            "label_map": self._add_label_map,
            "vector": self._add_vector,
            "text": self._add_text,
        }
        for kind, add_kind in add.items():
            if kind in config.conditions:
                add_kind(config.conditions[kind])

    def _check_size(self, kind: str, found: int) -> None:
        size = self.config.conditions[kind].size
        if size != found:
            raise InputError(
                f"config.conditions.{kind}.size is {size}, the records have {found}; set it to that"
            )

    def _fact(self, name: str, split: str) -> Int[np.ndarray, " n"]:
        grids = self.grids[split]
        return grids.facts.get(name, np.full(len(grids.source), -1))

    def _add_fact(self, name: str, values: dict[str, np.ndarray]) -> None:
        self.grids = {
            split: grids.with_facts(**{name: values[split]}) for split, grids in self.grids.items()
        }

    def _add_label(self, settings: ConfigDict) -> None:
        if not self.classes:
            raise InputError(
                "config.conditions.label needs records with labels; these have none: prepare them "
                "with a manifest or folders that tell them, or leave the condition out"
            )
        self._check_size("label", len(self.classes))
        self.spec["label"] = {"classes": list(self.classes)}

    def _add_label_map(self, settings: ConfigDict) -> None:
        labels = np.arange(len(self.classes))
        if settings.clusters:
            train = self.grids["train"]
            names, clusters = fit_clusters(
                train.embedding,
                self._fact("label", "train"),
                self.classes,
                settings.clusters,
                self.config.seed,
            )
            self.params["clusters"], labels = clusters
            cells = {
                split: clusters.of(grids.embedding, self._fact("label", split))
                for split, grids in self.grids.items()
            }
        else:
            names = self.classes
            cells = {split: self._fact("label", split) for split in self.grids}
        renamed = settings.names.to_dict() if "names" in settings else {}
        told = [*(renamed.get(name, name) for name in names)]
        if settings.clusters and len({*told, *self.classes}) < len(told) + len(self.classes):
            raise InputError(
                f"config.conditions.label_map.names gives the classes {', '.join(told)}; expected "
                f"all different, and none of the labels {', '.join(self.classes)}"
            )
        if unknown := sorted(renamed.keys() - {*names}):
            raise InputError(
                f"config.conditions.label_map.names has {', '.join(unknown)}; the classes are "
                f"{', '.join(names)}"
            )
        self.map_classes = tuple(told)
        self._check_size("label_map", len(names))
        self._add_fact("cell", cells)
        self.spec["label_map"] = {
            "classes": list(self.map_classes),
            "colours": colours(len(names)),
            "labels": labels.tolist(),  # the label of which each class is a part
            "clusters": settings.clusters,
        }

    def _add_vector(self, settings: ConfigDict) -> None:
        table = read_vectors(settings.file)
        self._check_size("vector", len(table.names))
        rows = {split: table.of(grids) for split, grids in self.grids.items()}
        missing = sum(int((own < 0).sum()) for own in rows.values())
        every = np.concatenate([*rows.values()])
        used = np.unique(every[every >= 0])
        if not (rows["train"] >= 0).any():
            raise InputError(
                f"vectors {settings.file} name none of the records' sources or patches, such as "
                f"{self.grids['train'].sources[0]}; use the names in sources.jsonl"
            )
        if missing:
            patches = sum(len(own) for own in rows.values())
            logging.warning(
                "%d of %d patches have no row in %s: they have no vector",
                missing,
                patches,
                settings.file,
            )
        values = table.values[used]  # what nothing here has is neither looked at nor an error
        renumbered = np.full(len(table.rows) + 1, -1)  # the last is that of -1
        renumbered[used] = np.arange(len(used))
        rows = {split: renumbered[own] for split, own in rows.items()}
        trained = np.unique(rows["train"][rows["train"] >= 0])
        mean, std = fit_standard(values, trained, settings.log1p, table.names)
        self.params["vector"] = {"mean": mean, "std": std}
        self.frozen["vectors"] = standardise(values, mean, std, settings.log1p)
        self._add_fact("vector", rows)
        self.spec["vector"] = {"names": list(table.names), "log1p": settings.log1p}

    def _add_text(self, settings: ConfigDict) -> None:
        known = [*self.classes, *self.map_classes]
        captions = read_captions(settings.captions, known) if settings.captions else {}
        texts = self.grids["train"].texts
        facts = {
            split: np.stack([self._fact(name, split) for name in ("label", "cell", "text")], axis=1)
            for split in self.grids
        }
        sizes = np.cumsum([len(rows) for rows in facts.values()])[:-1]
        choices, keys = choose(
            np.concatenate([*facts.values()]), captions, self.classes, self.map_classes, texts
        )
        if not choices.sentences:
            raise InputError(
                "config.conditions.text needs records with texts, or captions: a JSON file "
                '{"class": ["a sentence", ...]} in config.conditions.text.captions'
            )
        encoder = load_text_encoder(settings.encoder)
        self._check_size("text", encoder.dim)
        self.frozen["sentences"] = encoder.embed(choices.sentences)
        self.frozen["choices"] = choices.table.astype(np.int32)
        self.frozen["counts"] = choices.counts.astype(np.int32)
        self._add_fact("caption", dict(zip(facts, np.split(keys, sizes), strict=True)))
        self.spec["text"] = {
            "encoder": "minilm" if settings.encoder == "minilm" else Path(settings.encoder).name,
            "encoder_sha256": encoder.sha256,
            "dim": encoder.dim,
        }


def condition_fields(config: ConfigDict) -> tuple[str, ...]:
    """The facts that a batch needs."""
    return tuple(FACTS[kind] for kind in KINDS if kind in config.conditions)


def draw_conditions(
    conditioner: GridConditioner,
    config: ConfigDict,
    frozen: PyTree,
    batch: Batch,
    present: Bool[Array, "b h w"],
    keys: Key[Array, " b"],
) -> tuple[dict[str, Array], Bool[Array, "b kinds"]]:
    """(conditions, which are given) of the cells that are present, one random choice of them.

    A label is the share of each class among the cells; a vector the mean of the cells'; of the
    sentences that may be said of one cell, drawn by chance, one is said. Each kind is left out by
    its own `dropout`, and of some label maps (`partial`) a random part of the cells is not said.
    """
    keys = jax.vmap(lambda key: jax.random.split(key, 5))(keys)
    conditions: dict[str, Array] = {}
    given: list[Array] = []

    def share(known: Bool[Array, "b h w"]) -> tuple[Float[Array, "b h w"], Bool[Array, " b"]]:
        count = known.sum((1, 2))
        weight = known / jnp.maximum(count, 1)[:, None, None]
        return weight, count > 0

    for kind in conditioner.kinds:
        fact = batch[FACTS[kind]]
        known = present & (fact >= 0)
        match kind:
            case "label":
                weight, has = share(known)
                one_hot = jax.nn.one_hot(fact, conditioner.classes)
                conditions[kind] = jnp.einsum("bhw,bhwk->bk", weight, one_hot)
            case "vector":
                weight, has = share(known)
                vectors = frozen["vectors"][jnp.maximum(fact, 0)]  # of weight 0 where not known
                conditions[kind] = jnp.einsum("bhw,bhwk->bk", weight, vectors)
            case "text":
                known &= frozen["counts"][fact] > 0
                has = known.any((1, 2))
                sentence = jax.vmap(_sentence, (0, 0, 0, None))(keys[:, 0], fact, known, frozen)
                conditions[kind] = frozen["sentences"][sentence]
            case "label_map":
                has = known.any((1, 2))
                rate = config.conditions[kind].partial
                said = jax.vmap(_said, (0, None, None))(keys[:, 1], rate, fact.shape[1:])
                conditions[kind] = jnp.where(known & said, fact, -1)
        rate = config.conditions[kind].dropout
        dropped = jax.vmap(
            lambda key, kind=kind, rate=rate: jax.random.bernoulli(
                jax.random.fold_in(key, KINDS.index(kind)), rate
            )
        )(keys[:, 2])
        given.append(has & ~dropped)
    if not given:
        return conditions, jnp.zeros((len(present), 0), bool)
    every = jax.vmap(lambda key: jax.random.bernoulli(key, config.model.condition_dropout))
    return conditions, jnp.stack(given, axis=1) & ~every(keys[:, 3])[:, None]


def _sentence(key: Array, fact: Array, known: Array, frozen: PyTree) -> Int[Array, ""]:
    """One sentence of those that may be said of one of the known cells."""
    cell_key, sentence_key = jax.random.split(key)
    chance = jnp.where(known, jax.random.uniform(cell_key, known.shape), -1.0)
    choice = fact.reshape(-1)[chance.argmax()]
    number = jax.random.randint(sentence_key, (), 0, jnp.maximum(frozen["counts"][choice], 1))
    return frozen["choices"][choice, number]


def _said(key: Array, rate: float, shape: tuple[int, int]) -> Bool[Array, "h w"]:
    """Which cells of a map are said: all, or by the chance `rate` a random share of them."""
    partly, share, cells = jax.random.split(key, 3)
    least = jax.random.uniform(share) * jax.random.bernoulli(partly, rate)
    return jax.random.uniform(cells, shape) >= least
