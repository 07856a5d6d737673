"""Parts of augmentation: labels of pixels, plans of variations, arms, scores."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from ssl_diffusion.augmentation import variations
from ssl_diffusion.augmentation.arms import ARMS, ORDINARY, REAL, SYNTHETIC, Pool
from ssl_diffusion.augmentation.classifiers import linear_probe
from ssl_diffusion.augmentation.pixel_labels import (
    EOSIN,
    HAEMATOXYLIN,
    Labels,
    haematoxylin_fraction,
    tissue_share,
)
from ssl_diffusion.augmentation.places import Places
from ssl_diffusion.augmentation.scores import Judge
from ssl_diffusion.augmentation.variations import FURTHEST, NONE, embeddings_of, plan_variations
from ssl_diffusion.errors import InputError
from ssl_diffusion.prior.model import load_prior

LABELS = Labels(("a", "b"), np.array([0, 1, 0, -1, 1, 0]))


def plan(how="same", labels=LABELS, per_image=2, most=0, seed=0, count=6):
    return plan_variations(count, labels, per_image=per_image, how=how, most=most, seed=seed)


def stained(haematoxylin: float, eosin: float) -> np.ndarray:
    """A patch of two stains in these amounts, by the law of Beer and Lambert."""
    stains = np.array([HAEMATOXYLIN, EOSIN])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    density = haematoxylin * stains[0] + eosin * stains[1]
    pixel = np.round(256 * 10**-density - 1)
    return np.broadcast_to(pixel, (8, 8, 3)).astype(np.uint8)


def test_haematoxylin_is_the_part_that_was_mixed_in():
    parts = [(0.6, 0.2), (0.2, 0.6), (0.4, 0.4)]
    found = haematoxylin_fraction(np.stack([stained(*part) for part in parts]))
    np.testing.assert_allclose(found, [0.75, 0.25, 0.5], atol=0.02)


def test_a_white_patch_has_no_stain_and_no_tissue():
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    assert haematoxylin_fraction(white)[0] == 0.5
    half = np.concatenate([white, white])
    half[1, :, :4] = stained(0.5, 0.5)[:, :4]
    assert tissue_share(half).tolist() == [0.0, 0.5]


def test_the_plan_has_each_labelled_patch_and_none_without_a_label():
    wanted = plan()
    assert wanted.original.tolist() == [0, 0, 1, 1, 2, 2, 4, 4, 5, 5]
    assert len(set(wanted.number.tolist())) == 10
    assert (wanted.partner == NONE).all()


def test_a_smaller_plan_is_a_part_of_a_larger_one():
    small, large = plan("interpolate", most=3), plan("interpolate")
    rows = np.isin(large.original, small.original)
    assert len(small) == 6
    for name in ("original", "number", "partner", "weight"):
        np.testing.assert_array_equal(getattr(small, name), getattr(large, name)[rows])
    assert not np.array_equal(small.weight, plan("interpolate", most=3, seed=1).weight)


def test_partners_are_others_of_the_class_and_not_the_nearer_end():
    labels = Labels(("a", "b"), np.arange(60) % 2)
    wanted = plan("interpolate", labels, per_image=5, count=60)
    assert (wanted.partner != wanted.original).all()
    assert (labels.index[wanted.partner] == labels.index[wanted.original]).all()
    assert set(wanted.partner[wanted.original == 0]) <= set(range(0, 60, 2))
    assert 0 < wanted.weight.min() and wanted.weight.max() < FURTHEST
    assert wanted.weight.mean() == pytest.approx(FURTHEST / 2, abs=0.04)


def test_an_interpolated_embedding_lies_on_the_arc_at_its_weight():
    lengths = np.array([1, 2, 3, 10], np.float32)
    source = [{"embedding": row} for row in np.diag(lengths)[:, None]]
    wanted = plan("interpolate", Labels(("a",), np.zeros(4, int)), count=4)
    made = embeddings_of(source, wanted, None)
    assert made.shape == (8, 1, 4)
    for row, (first, second) in enumerate(zip(wanted.original, wanted.partner, strict=True)):
        weight, length = wanted.weight[row], np.linalg.norm(made[row])
        angle = np.arccos(made[row, 0, first] / length)
        assert angle == pytest.approx(weight * np.pi / 2, abs=1e-3)
        assert length == pytest.approx((1 - weight) * lengths[first] + weight * lengths[second])
        assert made[row, 0, second] > 0


def test_the_prior_is_asked_for_each_class_and_each_draw_is_used_once(monkeypatch):
    prior = load_prior("demo:prior")
    seeds = []

    def grids(prior, asked, rows, cols, *, samples, seed):
        seeds.append(seed)
        (name,) = asked.label
        value = 100.0 * (name == "b") + np.arange(samples)
        return np.broadcast_to(value[:, None, None, None, None], (samples, 1, 1, 1, prior.dim))

    monkeypatch.setattr(variations, "sample_grids", grids)
    drawn = variations.draw_embeddings(prior, plan("prior"), LABELS, seed=0)
    assert drawn[:, 0, 0].tolist() == [0, 1, 100, 101, 2, 3, 102, 103, 4, 5]
    assert len(set(seeds)) == 2 and all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None, "how": "interpolate"}, "needs labels"),
        ({"labels": None, "how": "prior"}, "--manifest"),
        ({"labels": Labels(("a",), np.full(6, -1))}, "none of the patches is labelled"),
        ({"most": 6}, "5 labelled patches"),
        (
            {"labels": Labels(("a", "b"), np.array([0, 1, 0, 0, 0, 0])), "how": "interpolate"},
            "one patch only of b",
        ),
    ],
)
def test_plans_that_cannot_be_made_say_why(change, message):
    with pytest.raises(InputError, match=message):
        plan(**change)


def pool() -> Pool:
    """Ten patches of two classes, two variations each; pixels tell which patch it is."""
    real = [{"image": np.full((4, 4, 3), 10 * i, np.uint8)} for i in range(12)]
    original = np.arange(2, 12).repeat(2)
    synthetic = [{"image": real[i]["image"] + np.uint8(1)} for i in original]
    label = np.array([0] * 6 + [1] * 4)
    return Pool(real, synthetic, np.arange(2, 12), original - 2, label, np.arange(10) // 2, seed=3)


def test_arms_hold_what_was_made_of_the_chosen_patches_alone():
    one = pool()
    chosen = np.array([1, 7])
    for name, kinds in ARMS.items():
        patches = one.arm(name, chosen)
        assert set(patches.kind.tolist()) == set(kinds)
        sizes = {REAL: 2, SYNTHETIC: 4, ORDINARY: 4}
        assert len(patches) == sum(sizes[kind] for kind in kinds)
        for kind, row, label, group in zip(
            patches.kind, patches.row, patches.label, patches.group, strict=True
        ):
            origin = row if kind == REAL else one.varied[row]
            assert origin in chosen
            assert (label, group) == (one.label[origin], one.group[origin])
    images = one.mixed(np.array([SYNTHETIC, REAL, SYNTHETIC]), np.array([2, 7, 14]))
    assert images[:, 0, 0, 0].tolist() == [31, 90, 91]


def test_ordinary_views_depend_on_their_number_alone():
    one = pool()
    together = one.images(ORDINARY, np.arange(20))
    np.testing.assert_array_equal(together[7:9], one.images(ORDINARY, np.array([7, 8])))
    assert not np.array_equal(together[18], together[19])  # two views of one patch


def test_subsets_are_nested_and_have_two_of_each_class():
    one = pool()
    few, more = one.subset(0.01, 0), one.subset(0.6, 0)
    assert [(one.label[few] == c).sum() for c in (0, 1)] == [2, 2]
    assert set(few) <= set(more) < set(one.subset(1.0, 0)) == set(range(10))
    assert any(set(one.subset(0.01, seed)) != set(few) for seed in (1, 2, 3))


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels, units = rng.integers(3, size=90), np.arange(90) // 9
    run = rng.dirichlet(np.ones(3), 90)
    run = np.round(0.5 * run + 0.5 * np.eye(3)[labels] * rng.random((90, 1)), 1)  # with ties
    scored = Judge(labels, units).score([run])
    one_against_rest = [roc_auc_score(labels == c, run[:, c]) for c in range(3)]
    assert scored["auc"].of_seeds[0] == pytest.approx(np.mean(one_against_rest))
    expected = balanced_accuracy_score(labels, run.argmax(axis=1))
    assert scored["balanced_accuracy"].of_seeds[0] == pytest.approx(expected)
    # A resample that has each unit twice or not at all is the score of those units.
    judge = Judge(labels, units)
    judge._weights = np.tile([2.0, 0.0], 5)[None]
    kept = np.isin(units, range(0, 10, 2))
    expected = np.mean([roc_auc_score(labels[kept] == c, run[kept, c]) for c in range(3)])
    assert judge.score([run])["auc"].draws[0] == pytest.approx(expected)


def test_a_paired_difference_is_narrower_than_its_parts():
    rng = np.random.default_rng(1)
    labels = rng.integers(2, size=400)
    signal = labels + 1.5 * rng.standard_normal(400)

    def run(noise: float) -> np.ndarray:
        p = 1 / (1 + np.exp(-signal - noise * rng.standard_normal(400)))
        return np.stack([1 - p, p], axis=1)

    judge = Judge(labels, np.arange(400) // 4)
    one, other = (judge.score([run(0.1), run(0.1)])["auc"] for _ in range(2))
    width = lambda told: told["high"] - told["low"]  # noqa: E731
    assert width(one.minus(other)) < 0.4 * width(one.told())
    assert one.told()["seed_sd"] > 0
    same = one.minus(one)
    assert (same["value"], same["low"]) == (0.0, None)


def test_intervals_of_a_difference_cover_it():
    """Two classifiers of known accuracies, 0.8 and 0.7, on the same patches: 95 % of intervals."""
    rng = np.random.default_rng(2)
    labels = np.tile([0, 1], 100)
    covered = 0
    for _ in range(40):
        runs = []
        for accuracy in (0.8, 0.7):
            right = rng.random(200) < accuracy
            runs.append(np.eye(2)[np.where(right, labels, 1 - labels)])
        judge = Judge(labels, np.arange(200) // 5)
        one, other = (judge.score([run])["balanced_accuracy"] for run in runs)
        told = one.minus(other)
        covered += told["low"] <= 0.1 <= told["high"]
    assert 34 <= covered <= 40


def test_intervals_hold_the_spread_of_seeds():
    labels = np.tile([0, 1], 50)

    def run(wrong: int) -> np.ndarray:
        """`wrong` of each five pairs are mistaken, in every unit: no unit differs."""
        mistaken = np.arange(100) // 2 % 5 < wrong
        return np.eye(2)[np.where(mistaken, 1 - labels, labels)]

    judge = Judge(labels, np.arange(100) // 10)
    alike = judge.score([run(1), run(1)])["balanced_accuracy"].told()
    assert (alike["value"], alike["low"]) == (0.8, None)
    apart = judge.score([run(0), run(2)])["balanced_accuracy"].told()
    assert (apart["value"], apart["low"], apart["high"]) == pytest.approx((0.8, 0.6, 1.0))


def test_the_probe_learns_what_is_linear_and_takes_few_patches():
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    features = rng.standard_normal((80, 5)).astype(np.float32) + 3 * labels[:, None]
    found, penalty = linear_probe(features, labels, np.arange(80) // 4, features, 3, 0)
    assert (found.argmax(axis=1) == labels).mean() > 0.95
    assert (found[:, 2] == 0).all()  # a class of which there was no patch
    few, penalty = linear_probe(features[:4], labels[:4], np.zeros(4, int), features, 2, 0)
    assert penalty == 1.0 and few.shape == (80, 2)


def test_units_are_slides_blocks_or_patches_as_there_are_enough():
    def places(slides: int, columns: int) -> Places:
        slide = np.array([f"s{i % slides}" for i in range(24)])
        x = 64 * (np.arange(24) // slides % columns)
        return Places(slide, x, np.zeros(24, int), slide, block_px=128)

    assert places(6, 2).units()[0] == "slides"
    name, numbers = places(2, 6).units()
    assert name == "blocks" and len(set(numbers)) == 6
    assert places(1, 4).units()[0] == "patches"
