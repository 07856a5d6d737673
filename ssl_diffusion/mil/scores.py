"""How well slides are told apart, and whether attention lies where the label comes from."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from ssl_diffusion.evaluation.intervals import Estimate, resamples
from ssl_diffusion.mil.bags import Bag


def auc(
    probabilities: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    weights: Int[np.ndarray, "draws n"],
) -> Float[np.ndarray, " draws"]:
    """Area under the ROC curve, of each class against the rest, averaged over classes.

    It is the share of pairs in which the slide of the class has the higher score, ties counting
    half, so that slides can have weights: how often each is in a bootstrap draw. NaN for a draw
    that lacks a class.
    """
    areas = []
    # Of two classes one is the other's mirror image.
    for label in range(1 if probabilities.shape[1] == 2 else 0, probabilities.shape[1]):
        of, rest = labels == label, labels != label
        high, low = probabilities[of, label][:, None], probabilities[rest, label][None]
        above = (high > low) + 0.5 * (high == low)
        pairs = weights[:, of].sum(axis=1) * weights[:, rest].sum(axis=1)
        with np.errstate(invalid="ignore"):
            areas.append(((weights[:, of] @ above) * weights[:, rest]).sum(axis=1) / pairs)
    return np.mean(areas, axis=0)


def balanced_accuracy(
    probabilities: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    weights: Int[np.ndarray, "draws n"],
) -> Float[np.ndarray, " draws"]:
    """Mean over classes of the share of its slides that are told; NaN where a draw lacks one."""
    right = probabilities.argmax(axis=1) == labels
    with np.errstate(invalid="ignore"):
        shares = [
            (weights * (right & (labels == label))).sum(axis=1)
            / (weights * (labels == label)).sum(axis=1)
            for label in np.unique(labels)
        ]
    return np.mean(shares, axis=0)


MEASURES = {"auc": auc, "balanced_accuracy": balanced_accuracy}


def compare(
    arms: Mapping[str, Float[np.ndarray, "seeds n classes"]],
    labels: Int[np.ndarray, " n"],
    baselines: Sequence[str],
    seed: int = 0,
) -> dict[str, dict[str, dict]]:
    """Each measure of each arm, and its differences from the baselines'.

    Args:
      arms: probabilities of the same test slides, by arm and seed; the seeds of all arms drew the
        same training slides.
      labels: of the test slides.
      baselines: the arms that differences are from.
      seed: of the bootstrap.

    Returns:
      By arm and measure `value`, `low`, `high` (mean over seeds, which are other training slides;
      `Estimate.over_seeds`), `seeds` (the value of each) and `minus` (by baseline an Estimate's
      entries; of the same seeds and bootstrap draws in both arms, so paired). Intervals are None
      where no draw differs: too few slides.
    """
    units = int(np.bincount(labels)[np.unique(labels)].min())  # the rarer class decides the spread
    slides = np.concatenate([np.ones((1, len(labels)), int), resamples(len(labels), seed=seed)])
    table: dict[str, dict[str, dict]] = {arm: {} for arm in arms}
    for name, measure in MEASURES.items():
        each = {  # [1 + draws, seeds], all slides first
            arm: np.stack([measure(one, labels, slides) for one in probabilities], axis=1)
            for arm, probabilities in arms.items()
        }
        for arm, values in each.items():
            table[arm][name] = {
                **vars(_over_seeds(values, units, 0.0)),
                "seeds": values[0].tolist(),
                "minus": {
                    other: vars(_over_seeds(values - each[other], units, -1.0))
                    for other in baselines
                    if other != arm
                },
            }
    return table


def recovery_of(
    bags: Sequence[Bag], attention: Sequence[Float[np.ndarray, "_ classes"]]
) -> Float[np.ndarray, "known 2"] | None:
    """Whether attention, that for the bag's own class, lies on the instances that make its label.

    Of each bag that has both kinds of instances: the area under the ROC curve by which attention
    tells one kind from the other, and whether the instance of highest attention makes the label, 1
    or 0. None where no bag has both.
    """
    from sklearn.metrics import roc_auc_score  # a second to import

    rows = []
    for bag, weights in zip(bags, attention, strict=True):
        if _both_kinds(bag):
            own = weights[:, bag.label]
            rows.append([roc_auc_score(bag.planted, own), bag.planted[own.argmax()]])
    return np.array(rows, float) if rows else None


def attention_recovery(
    bags: Sequence[Bag], recovery: Float[np.ndarray, "seeds known 2"], seed: int = 0
) -> dict[str, Estimate]:
    """`recovery_of` these bags by networks of several seeds, averaged over bags and seeds.

    "area" (chance 0.5), "first" (chance is "share", of the instances that make the label). Where
    all seeds and bags agree on "first", its interval is that of Clopper & Pearson (1934).
    """
    known = np.array([bag.planted.mean() for bag in bags if _both_kinds(bag)])
    count = len(known)
    draws = np.concatenate([np.ones((1, count), int), resamples(count, seed=seed)]) / count
    area, first = (_over_seeds(draws @ recovery[:, :, column].T, count, 0.0) for column in range(2))
    if first.low is None:
        first = Estimate.share(round(first.value * count), count)
    return {"area": area, "first": first, "share": Estimate(float(known.mean()), None, None)}


def supervised_recovery(train: Sequence[Bag], test: Sequence[Bag]) -> dict[str, Estimate] | None:
    """`attention_recovery` of a linear probe that was told every instance, for comparison.

    A logistic regression is fitted to the instances of the training bags; None where not both
    kinds of instances are known. Attention is not linear and may find more; it was told less.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = [bag for bag in train if bag.planted is not None]
    kinds = np.concatenate([bag.planted for bag in known]) if known else np.zeros(0, bool)
    if len(np.unique(kinds)) < 2:
        return None
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000)
    ).fit(np.concatenate([bag.features for bag in known]), kinds)
    classes = 1 + max(bag.label for bag in test)
    found = [model.decision_function(bag.features)[:, None].repeat(classes, 1) for bag in test]
    recovery = recovery_of(test, found)
    return None if recovery is None else attention_recovery(test, recovery[None])


def _both_kinds(bag: Bag) -> bool:
    return bag.planted is not None and len(np.unique(bag.planted)) == 2


def _over_seeds(values: Float[np.ndarray, "draws seeds"], units: int, lowest: float) -> Estimate:
    """Of the first row, the value of each seed, by the spread of the other rows over slides."""
    return Estimate.over_seeds(values[0], values[1:].mean(axis=1), units, lowest, 1.0)
