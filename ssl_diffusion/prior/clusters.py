"""Classes of cells where nobody has drawn any: clusters of their embeddings."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ssl_diffusion.errors import InputError

NO_CLASS = -1  # label of the clusters of records without labels
MOST = 50_000  # embeddings of a class that centres are fitted to

# Of the classes of a label map, told apart by eye (Kelly's and Tableau's, mixed); further ones are
# drawn. No black and no white: those are what people fill a picture with.
COLOURS = (
    "#e6194b #3cb44b #4363d8 #f58231 #911eb4 #46f0f0 #f032e6 #bcf60c #fabebe #008080 #e6beff "
    "#9a6324 #fffac8 #800000 #aaffc3 #808000 #ffd8b1 #000075 #808080 #ffe119"
).split()


class Clusters(NamedTuple):
    """Classes of cells by the nearest of some unit vectors.

    Attributes:
      centres: [m, d] of the clusters.
      labels: [m] the label of which each is a part, NO_CLASS of records without labels.
    """

    centres: Float[np.ndarray, "m d"]
    labels: Int[np.ndarray, " m"]

    def of(
        self,
        embedding: Float[np.ndarray, "*n tokens dim"],
        label: Int[np.ndarray, "*n"] | None = None,
    ) -> Int[np.ndarray, "*n"]:
        """Index of the nearest centre of each embedding.

        With `label`, the nearest of those that are parts of it; -1 if there are none.
        """
        unit = _unit(np.asarray(embedding, np.float32).reshape(*embedding.shape[:-2], -1))
        # |u - c|^2 without u's own square, which is the same for all centres.
        distance = np.sum(self.centres**2, -1) - 2 * unit @ self.centres.T
        if label is not None:
            distance = np.where(self.labels == label[..., None], distance, np.inf)
        return np.where(np.isfinite(distance).any(-1), distance.argmin(-1), -1)


def fit_clusters(
    embedding: Float[np.ndarray, "n tokens dim"],
    label: Int[np.ndarray, " n"],
    classes: tuple[str, ...],
    count: int,
    seed: int,
) -> tuple[tuple[str, ...], Clusters]:
    """(names, clusters): `count` clusters of each class, by k-means of unit vectors.

    Named "CLASS 0" and following, the largest first; "cell 0" where there are no classes. Raises
    InputError where a class has fewer embeddings than clusters.
    """
    from sklearn.cluster import KMeans  # takes a second to import

    unit = _unit(embedding.reshape(len(embedding), -1).astype(np.float32))
    groups = {index: (name, label == index) for index, name in enumerate(classes)}
    names: list[str] = []
    centres: list[np.ndarray] = []
    owners: list[int] = []
    groups = groups or {NO_CLASS: ("cell", np.ones(len(unit), bool))}
    for owner, (name, own) in groups.items():
        if not own.any():
            continue  # a class of which there is nothing
        members = unit[own]
        if len(members) < count:
            raise InputError(
                f"{len(members)} training patches of {name!r} for {count} clusters; expected more: "
                "set config.conditions.label_map.clusters lower"
            )
        members = members[np.linspace(0, len(members) - 1, min(MOST, len(members))).astype(int)]
        found = KMeans(count, n_init=4, random_state=seed).fit(members)
        largest_first = np.argsort(-np.bincount(found.labels_, minlength=count), kind="stable")
        owners += [owner] * count
        names += [f"{name} {number}" for number in range(count)]
        centres += list(found.cluster_centers_[largest_first])
    return tuple(names), Clusters(np.stack(centres).astype(np.float32), np.array(owners))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def colours(count: int) -> list[str]:
    """So many colours, as "#rrggbb", all different."""
    rng = np.random.default_rng(0)
    found = list(COLOURS[:count])
    while len(found) < count:
        drawn = "#{:02x}{:02x}{:02x}".format(*rng.integers(24, 232, 3))
        if drawn not in found:
            found.append(drawn)
    return found
