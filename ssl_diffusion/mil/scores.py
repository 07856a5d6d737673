"""How well slides are told apart, and whether attention lies where the label comes from."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from ssl_diffusion.evaluation.intervals import DRAWS, Estimate, resamples
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
    baseline: str,
    seed: int = 0,
) -> dict[str, dict[str, dict]]:
    """Each measure of each arm, and its difference from the baseline's.

    Args:
      arms: probabilities of the same test slides, by arm and seed; the seeds of all arms drew the
        same training slides.
      labels: of the test slides.
      baseline: the arm that differences are from.
      seed: of the bootstrap.

    Returns:
      By arm and measure `value`, `low`, `high` (mean over seeds; the bootstrap draws test slides,
      and seeds, for these are other training slides), `seeds` (the value of each) and `difference`
      (an Estimate's entries; the same draws in both arms, so paired). Intervals are None where a
      draw cannot tell of one.
    """
    count, seeds = len(labels), len(next(iter(arms.values())))
    slides = np.concatenate([np.ones((1, count), int), resamples(count, seed=seed)])
    of_seeds = np.concatenate([np.ones((1, seeds), int), resamples(seeds, seed=seed + 1)])
    table: dict[str, dict[str, dict]] = {arm: {} for arm in arms}
    for name, measure in MEASURES.items():
        each = {
            arm: np.stack([measure(one, labels, slides) for one in probabilities], axis=1)
            for arm, probabilities in arms.items()
        }
        means = {arm: (values * of_seeds).sum(axis=1) / seeds for arm, values in each.items()}
        for arm, drawn in means.items():
            differences = drawn - means[baseline]
            table[arm][name] = {
                **vars(Estimate.of(float(drawn[0]), drawn[1:])),
                "seeds": each[arm][0].tolist(),
                "difference": vars(Estimate.of(float(differences[0]), differences[1:])),
            }
    return table


def attention_recovery(
    bags: Sequence[Bag], attention: Sequence[Float[np.ndarray, "_ classes"]], seed: int = 0
) -> dict[str, Estimate] | None:
    """Whether attention, that for the bag's own class, lies on the instances that make its label.

    Of each bag that has both kinds of instances, averaged over these with a bootstrap over bags:
    "area", the area under the ROC curve by which attention tells one kind from the other (chance
    0.5); "first", whether the instance of highest attention makes the label (chance is "share", of
    the instances that do). None where no bag says which instances make its label.
    """
    from sklearn.metrics import roc_auc_score  # a second to import

    columns: dict[str, list[float]] = {"area": [], "first": [], "share": []}
    for bag, weights in zip(bags, attention, strict=True):
        if bag.planted is not None and bag.planted.any() and not bag.planted.all():
            own = weights[:, bag.label]
            columns["area"].append(float(roc_auc_score(bag.planted, own)))
            columns["first"].append(float(bag.planted[own.argmax()]))
            columns["share"].append(float(bag.planted.mean()))
    count = len(columns["area"])
    if not count:
        return None
    draws = resamples(count, DRAWS, seed)
    return {
        name: Estimate.of(float(np.mean(values)), draws @ np.array(values) / count)
        for name, values in columns.items()
    }


def supervised_recovery(train: Sequence[Bag], test: Sequence[Bag]) -> dict[str, Estimate] | None:
    """What attention could reach: `attention_recovery` of a probe that was told every instance.

    A logistic regression is fitted to the instances of the training bags; None where not both
    kinds of instances are known.
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
    return attention_recovery(test, found)
