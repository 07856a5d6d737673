"""The two classifiers: logistic regression of embeddings, and a network that is fine-tuned."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree, UInt8

from ssl_diffusion.encoders.encoder import SSLEncoder, normalise, padded_chunks, resized

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression
FOLDS = 3
LEARNING_RATE, WARMUP, WEIGHT_DECAY = 3e-4, 0.1, 0.01
Read = Callable[[Int[np.ndarray, " b"]], UInt8[np.ndarray, "b h w 3"]]


def linear_probe(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m d"],
    classes: int,
    seed: int,
) -> tuple[Float[np.ndarray, "m {classes}"], float]:
    """(probabilities of the classes for `test`, C): logistic regression, standardised, balanced.

    C is the one of PENALTIES with the best balanced accuracy over FOLDS folds of whole groups; 1
    where there are too few groups or patches of a class for that.
    """
    from sklearn.linear_model import LogisticRegression  # a second to import
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    regression = LogisticRegression(class_weight="balanced", max_iter=1000)
    model = make_pipeline(StandardScaler(), regression)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    best = 1.0
    with threadpool_limits(1):  # matrices are small: threads would wait for each other
        if _enough(labels, groups):
            grid = {"logisticregression__C": PENALTIES}
            search = GridSearchCV(model, grid, scoring="balanced_accuracy", cv=folds, refit=False)
            search.fit(features, labels, groups=groups)
            best = search.best_params_["logisticregression__C"]
        model.set_params(logisticregression__C=best).fit(features, labels)
    probabilities = np.zeros((len(test), classes))
    probabilities[:, model.classes_] = model.predict_proba(test)
    return probabilities, float(best)


def _enough(labels: np.ndarray, groups: np.ndarray) -> bool:
    """Whether every class has patches of enough groups for each fold to train on all classes."""
    return all(len(np.unique(groups[labels == c])) >= 2 * FOLDS for c in np.unique(labels))


class FineTuning:
    """An encoder with a linear head, trained whole, from the encoder's weights each time.

    Every run has the same number of steps on batches of the same size, in which classes are drawn
    alike: a larger training set is no longer training. AdamW (Loshchilov & Hutter 2019), a warm-up
    and a cosine to 0; all runs share one compilation.
    """

    def __init__(self, encoder: SSLEncoder, classes: int, steps: int, batch: int = 32):
        spec = encoder.spec
        self.classes, self.steps, self.batch = classes, steps, batch
        self._encoder, self._size = encoder, spec["image_size"]
        self._rule = spec.get("image_resize", "bicubic")
        width = spec["embedding"]["tokens"] * spec["embedding"]["dim"]
        self._start = {
            "network": encoder.params,
            "head": {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)},
        }
        warmup = min(max(1, round(WARMUP * steps)), steps - 1)
        rate = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, warmup, steps)
        optimizer = optax.adamw(rate, weight_decay=WEIGHT_DECAY)
        self._optimizer = optax.chain(optax.clip_by_global_norm(1.0), optimizer)
        self._step = jax.jit(self._train_step)
        self._predict = jax.jit(lambda params, images: jax.nn.softmax(self._logits(params, images)))

    def settings(self) -> Mapping[str, Any]:
        """What a report pins."""
        return {
            "steps": self.steps,
            "batch": self.batch,
            "learning_rate": LEARNING_RATE,
            "warmup": WARMUP,
            "weight_decay": WEIGHT_DECAY,
        }

    def run(self, read: Read, labels: Int[np.ndarray, " n"], seed: int) -> PyTree:
        """Parameters after training on images of the numbers 0 to n - 1, which `read` gives."""
        rng = np.random.default_rng(seed)
        members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
        params, state = self._start, self._optimizer.init(self._start)
        for _ in range(self.steps):
            drawn = rng.integers(len(members), size=self.batch)
            rows = np.array([rng.choice(members[c]) for c in drawn])
            images = resized(read(rows), self._size, self._rule)
            params, state = self._step(params, state, images, labels[rows])
        return params

    def probabilities(self, params: PyTree, read: Read, count: int) -> Float[np.ndarray, "n c"]:
        """Of the classes, for images of the numbers 0 to `count` - 1."""
        found = []
        for first in range(0, count, 256):
            images = read(np.arange(first, min(first + 256, count)))
            for chunk, kept in padded_chunks(images):
                chunk = resized(chunk, self._size, self._rule)
                found.append(np.asarray(self._predict(params, chunk))[:kept])
        return np.concatenate(found).astype(np.float64)

    def _logits(self, params: PyTree, images: Array) -> Float[Array, "b c"]:
        mean, std = (np.asarray(self._encoder.spec[name], np.float32) for name in ("mean", "std"))
        images = normalise(images / 255.0, mean, std)
        embedding = self._encoder.network.apply({"params": params["network"]}, images)
        flat = embedding.reshape(len(embedding), -1)
        return flat @ params["head"]["kernel"] + params["head"]["bias"]

    def _train_step(self, params: PyTree, state: PyTree, images: Array, labels: Array):
        def loss(params: PyTree) -> Float[Array, ""]:
            logits = self._logits(params, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        gradient = jax.grad(loss)(params)
        updates, state = self._optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state
