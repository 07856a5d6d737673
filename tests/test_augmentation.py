"""Parts of augmentation: labels of pixels, plans of variations, arms, scores."""

import dataclasses
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from ssl_diffusion.augmentation import page, variations
from ssl_diffusion.augmentation.arms import (
    ARMS,
    KEEPING,
    ORDINARY,
    REAL,
    SYNTHETIC,
    VIEW,
    Patches,
    Pool,
)
from ssl_diffusion.augmentation.classifiers import linear_probe
from ssl_diffusion.augmentation.pixel_labels import (
    Labels,
    haematoxylin_fraction,
    measured_labels,
    tissue_share,
)
from ssl_diffusion.augmentation.places import Places
from ssl_diffusion.augmentation.runs import kept_run
from ssl_diffusion.augmentation.scores import Judge
from ssl_diffusion.augmentation.variations import FURTHEST, NONE, embeddings_of, plan_variations
from ssl_diffusion.augmentation.writing import difference
from ssl_diffusion.errors import InputError
from ssl_diffusion.prior.model import load_prior

LABELS = Labels(("a", "b"), np.array([0, 1, 0, -1, 1, 0]))


def plan(how="same", labels=LABELS, per_image=2, most=0, seed=0, count=6):
    return plan_variations(
        np.arange(count), labels, per_image=per_image, how=how, most=most, seed=seed
    )


# Each of length 1, worked out by hand; the last is orthogonal to both.
STAINS = np.array([[0.6511, 0.7012, 0.2905], [0.0701, 0.9914, 0.1102], [-0.3321, -0.0809, 0.9398]])


def stained(haematoxylin: float, eosin: float, rest: float = 0.0) -> np.ndarray:
    """A patch of stains in these amounts, by the law of Beer and Lambert: I = 255 x 10^-density."""
    pixel = np.round(255 * 10 ** -(np.array([haematoxylin, eosin, rest]) @ STAINS))
    return np.broadcast_to(pixel, (8, 8, 3)).astype(np.uint8)


def test_haematoxylin_is_the_density_that_was_mixed_in():
    amounts = [(0.6, 0.2), (0.2, 0.6), (1.2, 0.0), (0.0, 0.9), (0.3, 0.2, 0.2), (0.1, 0.6, 0.2)]
    found = haematoxylin_fraction(np.stack([stained(*each) for each in amounts]))
    np.testing.assert_allclose(found, [each[0] for each in amounts], atol=0.004)


def test_glass_has_no_stain_and_no_tissue():
    rng = np.random.default_rng(0)
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    glass = rng.integers(253, 256, (20, 8, 8, 3), np.uint8)  # noise of a sensor
    assert haematoxylin_fraction(white)[0] == 0
    assert haematoxylin_fraction(glass).max() < 0.004
    half = np.concatenate([white, white])
    half[1, :, :4] = stained(0.5, 0.5)[:, :4]
    assert tissue_share(half).tolist() == [0.0, 0.5]
    np.testing.assert_allclose(haematoxylin_fraction(half), [0, 0.25], atol=0.004)
    assert measured_labels(half, {"kind": "tissue", "threshold": 0.4}).tolist() == [0, 1]


def test_the_plan_has_each_labelled_patch_and_none_without_a_label():
    wanted = plan()
    assert wanted.original.tolist() == [0, 0, 1, 1, 2, 2, 4, 4, 5, 5]
    assert len(set(wanted.number.tolist())) == 10
    assert (wanted.partner == NONE).all()


def test_a_smaller_plan_is_a_part_of_a_larger_one():
    small, large = plan(most=3), plan()
    rows = np.isin(large.original, small.original)
    assert len(small) == 6
    for name in ("original", "number"):
        np.testing.assert_array_equal(getattr(small, name), getattr(large, name)[rows])
    weights = [plan("interpolate", seed=seed).weight for seed in (0, 0, 1)]
    np.testing.assert_array_equal(*weights[:2])
    assert not np.array_equal(*weights[1:])


def test_flips_and_turns_of_a_patch_are_neither_varied_nor_partners():
    """Patches 0 and 1, 2 and 3 ... are variants of one."""
    labels = Labels(("a", "b"), np.arange(60) // 2 % 2)
    wanted = plan_variations(
        np.arange(0, 60, 2), labels, per_image=3, how="interpolate", most=10, seed=0
    )
    assert len(set(wanted.original.tolist())) == 10
    assert (wanted.original % 2 == 0).all() and set(wanted.partner) <= set(wanted.original)


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
    group = np.arange(10) // 2
    partner = np.full(20, NONE)
    return Pool(
        real, synthetic, np.arange(2, 12), original - 2, partner, label, group, VIEW, seed=3
    )


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


def test_what_was_interpolated_needs_both_its_ends():
    one = pool()
    one.partner[2:4] = 4, 5  # of the variations of patch 1
    found = [
        one.arm("synthetic", np.array(chosen)).row.tolist() for chosen in ([1, 4], [1], [1, 5])
    ]
    assert found == [[2, 8, 9], [], [3, 10, 11]]
    assert one.arm("real + ordinary", np.array([1, 4])).kind.tolist() == [REAL] * 2 + [ORDINARY] * 3


WRONG = np.array([True, False, False, True])
SETTINGS = {"kind": "haematoxylin", "threshold": 0.2}


@pytest.fixture(scope="module")
def turned() -> Pool:
    """Four patches of noise, each twice as its variations; two have a label that is not theirs."""
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    real = [{"image": image} for image in images]
    rows, twice = np.arange(4), np.arange(4).repeat(2)
    label = measured_labels(images, SETTINGS) ^ WRONG
    view = KEEPING | {"crop": 1.0}
    synthetic = [real[i] for i in twice]
    return Pool(real, synthetic, rows, twice, np.full(8, NONE), label, rows, view, seed=3)


def test_ordinary_views_depend_on_their_number_alone(turned):
    together = turned.images(ORDINARY, np.arange(8))
    np.testing.assert_array_equal(together[3:5], turned.images(ORDINARY, np.array([3, 4])))
    assert not np.array_equal(together[6], together[7])  # two views of one patch


def test_views_for_labels_of_pixels_keep_them(turned):
    for varied, view in zip(turned.varied, turned.images(ORDINARY, np.arange(8)), strict=True):
        image = turned.real[int(varied)]["image"]
        assert sorted(image.ravel()) == sorted(view.ravel())  # a flip or turn
    for kind in (SYNTHETIC, ORDINARY):
        found = turned.changed(kind, partial(measured_labels, settings=SETTINGS))
        np.testing.assert_array_equal(found, WRONG.repeat(2))


def test_subsets_are_nested_and_have_two_of_each_class():
    one = pool()
    few, more = one.subset(0.01, 0), one.subset(0.6, 0)
    assert [(one.label[few] == c).sum() for c in (0, 1)] == [2, 2]
    assert set(few) <= set(more) < set(one.subset(1.0, 0)) == set(range(10))
    assert any(set(one.subset(0.01, seed)) != set(few) for seed in (1, 2, 3))
    assert one.is_raised(0.3) and not one.is_raised(0.5)


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
    """At three seeds, the default, of which each has luck: 95 % of the intervals hold 0.1."""
    rng = np.random.default_rng(2)
    labels = np.tile([0, 1], 60)
    judge = Judge(labels, np.arange(120) // 10)
    covered = 0
    for _ in range(200):
        scored = []
        for accuracy in (0.8, 0.7):
            luck = accuracy + 0.05 * rng.standard_normal((3, 1))
            right = rng.random((3, 120)) < luck
            runs = [np.eye(2)[np.where(one, labels, 1 - labels)] for one in right]
            scored.append(judge.score(runs)["balanced_accuracy"])
        told = scored[0].minus(scored[1])
        covered += told["low"] <= 0.1 <= told["high"]
    assert 183 <= covered < 200


def test_intervals_hold_the_spread_of_seeds():
    labels = np.tile([0, 1], 50)

    def run(wrong: int) -> np.ndarray:
        """`wrong` of each five pairs are mistaken, in every unit: no unit differs."""
        mistaken = np.arange(100) // 2 % 5 < wrong
        return np.eye(2)[np.where(mistaken, 1 - labels, labels)]

    judge = Judge(labels, np.arange(100) // 10)
    alike = judge.score([run(1), run(1)])["balanced_accuracy"].told()
    assert (alike["value"], alike["low"]) == (0.8, None)
    apart = judge.score([run(1), run(2), run(3)])["balanced_accuracy"].told()
    half = 4.303 * 0.2 / 3**0.5  # t of two degrees of freedom, standard error of three
    found = (apart["value"], apart["low"], apart["high"])
    assert found == pytest.approx((0.6, 0.6 - half, 1.0), abs=1e-3)


def test_a_run_is_made_once_for_all_that_it_depends_on(tmp_path):
    calls = []

    def classify(patches, seed):
        calls.append(seed)
        return np.full((3, 2), 0.5 * seed), {"C": 0.1}

    few = Patches(*np.zeros((4, 5), int))
    other = dataclasses.replace(few, label=np.ones(5, int))
    for settings, patches, seed in (({"a": 1}, few, 0), ({"a": 2}, few, 0), ({"a": 1}, few, 1)):
        first = kept_run(tmp_path, settings, patches, seed, classify)
        again = kept_run(tmp_path, settings, patches, seed, classify)
        np.testing.assert_array_equal(first[0], again[0])
        assert first[1] == again[1] == {"C": 0.1}
    kept_run(tmp_path, {"a": 1}, other, 0, classify)
    assert calls == [0, 0, 1, 0]
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:100])  # a damaged one is made again
    kept_run(tmp_path, {"a": 1}, other, 0, classify)
    assert len(calls) == 5


def test_a_difference_of_settings_names_the_entry():
    found = {"how": "same", "recipe": {"mpp": 0.5, "bands": [1]}}
    assert difference(found, {"recipe": {"mpp": 0.25, "bands": [1]}}) == "recipe.mpp: 0.5, now 0.25"
    assert difference(found, dict(found)) is None
    assert difference(found, {"how": "same"}).startswith("recipe: ")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (None, None, "too few"),
        (0.0, 0.1, "no difference"),
        (-0.2, -0.1, "worse"),
        (1e-3, 1, "better"),
    ],
)
def test_verdicts(low, high, verdict):
    assert page._verdict({"value": 0.0, "low": low, "high": high}).startswith(verdict)


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

    halves = np.arange(24) // 12
    assert places(6, 2).units(halves)[0] == "slides"
    name, numbers = places(2, 6).units(halves)
    assert name == "blocks" and len(set(numbers)) == 6
    assert places(1, 4).units(halves)[0] == "patches"
    own = np.arange(24) % 6  # each slide is a class: its only one
    assert places(6, 4).units(own)[0] == "blocks"
