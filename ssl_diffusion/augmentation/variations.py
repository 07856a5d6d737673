"""Which variations are made of which patches, and the embedding that each is made from.

All is drawn by the seed and a variation's number (original x variations + which): batch, number of
devices, and where a run was stopped make no difference.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from ssl_diffusion.augmentation.examples import Examples
from ssl_diffusion.augmentation.pixel_labels import Labels
from ssl_diffusion.data.records import Records
from ssl_diffusion.errors import InputError
from ssl_diffusion.prior.asked import Asked
from ssl_diffusion.prior.model import Prior
from ssl_diffusion.prior.sampling import sample_grids
from ssl_diffusion.stitching.grid import slerp

HOW = ("same", "interpolate", "prior")
FURTHEST = 0.5  # part of the way to another patch: the nearer end is the one whose label is taken
NONE = -1
FILE = "variations.npz"  # beside the records


@dataclass(frozen=True)
class Variations:
    """One entry per variation, in the order of the records.

    Attributes:
      original: index of the real patch, whose label, source and place it has.
      number: of its noise; differs for all.
      partner: index of the patch that was interpolated towards, NONE elsewhere.
      weight: how far, 0 to FURTHEST; 0 elsewhere.
      rank: which sample of its class it has from the prior, NONE elsewhere.
    """

    original: Int[np.ndarray, " n"]
    number: Int[np.ndarray, " n"]
    partner: Int[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]
    rank: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.original)

    def at(self, rows: Int[np.ndarray, " m"]) -> "Variations":
        """Some of them."""
        return Variations(**{name: array[rows] for name, array in asdict(self).items()})

    def save(self, path: Path) -> None:
        """Writes the arrays, uncompressed."""
        np.savez(path, **asdict(self))


def read_variations(folder: Path) -> Variations:
    """What `augment` wrote beside the records; InputError if it is missing or damaged."""
    file = folder / FILE
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return Variations(**{name: arrays[name] for name in Variations.__annotations__})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file} cannot be read ({type(error).__name__}): it says which patch each variation "
            "is of; make them with python -m ssl_diffusion.augment"
        ) from None


def plan_variations(
    cut: Int[np.ndarray, " n"],
    labels: Labels | None,
    *,
    per_image: int,
    how: str,
    most: int,
    seed: int,
) -> Variations:
    """Which variations are made.

    Args:
      cut: the patches as they were cut: those recorded in several variants (flips, turns) once.
      labels: of all patches; those that have none are left out. None takes all of `cut`.
      per_image: variations of each.
      how: "same", "interpolate" or "prior".
      most: patches that are varied, drawn by the seed; 0 is all. Those of a smaller number are
        among those of a larger one. Partners to interpolate towards are of these patches, too.
      seed: of every draw.

    Raises:
      InputError: no labels for "interpolate" or "prior"; none that is labelled; more than there
        are; a class of one patch, which has none to be interpolated towards.
    """
    if labels is None and how != "same":
        raise InputError(
            f"--how={how} needs labels, which these records have not; prepare them with "
            "--manifest=FILE.csv (columns file, label), or take labels of pixels (--labels), or "
            "--how=same"
        )
    known = cut if labels is None else cut[labels.index[cut] >= 0]
    if not len(known):
        raise InputError("none of the patches is labelled; label some, or take other --labels")
    if most > len(known):
        raise InputError(f"--count={most}; {len(known)} labelled patches are there")
    if (highest := int(known.max() + 1) * per_image) >= 2**31:
        raise InputError(f"{highest:,} variations; at most {2**31 - 1:,} can be numbered")
    order = np.random.default_rng(seed).permutation(known)
    original = np.sort(order[: most or None]).repeat(per_image)
    number = original * per_image + np.tile(np.arange(per_image), len(original) // per_image)
    partner, rank = np.full(len(original), NONE), np.full(len(original), NONE)
    weight = np.zeros(len(original))
    if how == "interpolate":
        varied = np.unique(original)
        of_class = labels.index[varied]
        members = {c: varied[of_class == c] for c in np.unique(of_class)}
        if lonely := [labels.names[c] for c, own in members.items() if len(own) < 2]:
            raise InputError(
                f"one patch only of {', '.join(lonely)}: there is none to interpolate towards; "
                "label more, vary more (--count), or take --how=same"
            )
        for row, (index, key) in enumerate(zip(original, number, strict=True)):
            rng = np.random.default_rng([seed, key])
            own = members[labels.index[index]]
            pick = rng.integers(len(own) - 1)  # all but the patch itself
            partner[row] = own[pick + (own[pick] >= index)]
            weight[row] = rng.uniform(0, FURTHEST)
    if how == "prior":
        for c in np.unique(labels.index[original]):
            rows = np.flatnonzero(labels.index[original] == c)
            rank[rows] = np.arange(len(rows))
    return Variations(original, number, partner, weight, rank)


def embeddings_of(
    source: Examples, wanted: Variations, drawn: Float[np.ndarray, "n tokens dim"] | None
) -> Float[np.ndarray, "m tokens dim"]:
    """The embedding that each of `wanted` is made from.

    `drawn` are the prior's, those of `wanted` in order; None leaves or interpolates the patches'
    own: directions along the arc between them, lengths along the line.
    """
    if drawn is not None:
        return drawn
    own = _stacked(source, wanted.original)
    if (wanted.partner == NONE).all():
        return own
    other = _stacked(source, wanted.partner)
    part = np.broadcast_to(wanted.weight[:, None], own.shape[:2]).astype(np.float32)
    return part_way(own, other, part)


def part_way(
    own: Float[np.ndarray, "n tokens dim"],
    other: Float[np.ndarray, "n tokens dim"],
    part: Float[np.ndarray, "n tokens"],
) -> Float[np.ndarray, "n tokens dim"]:
    """Each token `part` (0 to 1) of the way to the other: its direction on the arc between both.

    Its length is on the line: a longer embedding would draw the arc to its side.
    """
    first, last = (np.linalg.norm(end, axis=-1, keepdims=True) for end in (own, other))
    ends = own / np.maximum(first, 1e-12), other / np.maximum(last, 1e-12)
    length = (1 - part[..., None]) * first + part[..., None] * last
    return np.asarray(slerp(*map(jnp.asarray, (*ends, part)))) * length


def _stacked(source: Examples, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n tokens dim"]:
    return np.stack([source[int(row)]["embedding"] for row in rows])


def check_prior(prior: Prior, records: Records, classes: Sequence[str]) -> None:
    """Raises InputError unless the prior makes embeddings of the records' encoder for all classes.

    `classes` are those that variations are made of.
    """
    known = prior.spec["conditions"].get("label", {}).get("classes", ())
    if unknown := [name for name in classes if name not in known]:
        raise InputError(
            f"the prior knows no label {', '.join(unknown)} (it knows {', '.join(known) or 'none'})"
            "; train one on these records, or take --how=same or --how=interpolate"
        )
    encoder = records.metadata["recipe"].get("encoder_sha256")
    found, expected = records.shape("embedding"), (prior.tokens, prior.dim)
    if prior.spec["encoder_sha256"] not in (None, encoder) or found != expected:
        raise InputError(
            "the prior makes embeddings of another encoder than the records'; take the one that "
            "was trained on these records"
        )


def draw_embeddings(
    prior: Prior, wanted: Variations, labels: Labels, seed: int
) -> Float[np.ndarray, "n tokens dim"]:
    """An embedding from the prior for each variation, of the class of its original.

    Raises InputError for a class that the prior does not know.
    """
    classes = labels.index[wanted.original]
    drawn = np.zeros((len(wanted), prior.tokens, prior.dim), np.float32)
    for c in tqdm(np.unique(classes), desc="embeddings from the prior", unit="class"):
        rows = np.flatnonzero(classes == c)
        own = np.random.SeedSequence([seed, int(c)]).generate_state(1)[0]
        asked = Asked(label={labels.names[c]: 1.0})
        grids = sample_grids(prior, asked, 1, 1, samples=len(rows), seed=int(own))
        drawn[rows] = grids[wanted.rank[rows], 0, 0]
    return drawn
