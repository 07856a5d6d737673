"""The three commands of slide-level augmentation, one after the other, on a tiny model."""

import dataclasses
import json

import numpy as np
import pytest

from ssl_diffusion import augment_slides, evaluate_mil, plant_slides
from ssl_diffusion.data.records import open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.mil import experiment
from ssl_diffusion.mil.bags import PLANTED, SYNTHETIC, read_bags
from ssl_diffusion.mil.figures import rank_map, slide_picture
from ssl_diffusion.mil.ordinary import VIEW, ordinary_copies, varied
from ssl_diffusion.weights.encoder import load_encoder


def command(module, **flags):
    """Runs a command of this project in this process."""
    module.FLAGS.unparse_flags()
    for name in module.FLAGS:
        module.FLAGS[name].unparse()
    module.FLAGS(["command", *(f"--{name}={value}" for name, value in flags.items())])
    module.main()


@pytest.fixture(scope="module")
def planted(records_dir, tmp_path_factory):
    """Pseudo-slides of 4 x 4 patches of the shipped slide, four to train on, four to test."""
    folder = tmp_path_factory.mktemp("mil") / "planted"
    command(plant_slides, records=records_dir, output=folder, side=4, train=4, test=4)
    return folder


@pytest.fixture(scope="module")
def given(planted, run_dir):
    """The flags of a small run of augment_slides."""
    return {
        "model": run_dir / "model",
        "records": planted,
        "region_px": 128,
        "steps": 1,
        "scheme": "shifted",
        "interpolate": 0.25,
        "images": True,
    }


@pytest.fixture(scope="module")
def synthetic(given, tmp_path_factory):
    """Synthetic slides, made in two goes: the first is cut short before its third region."""
    folder = tmp_path_factory.mktemp("mil") / "synthetic"
    made = []

    class Cut(Exception):
        pass

    def counted(*args, **kwargs):
        made.append(None)
        if len(made) == 3:
            raise Cut
        return original(*args, **kwargs)

    original, augment_slides.replacing = augment_slides.replacing, counted
    try:
        with pytest.raises(Cut):
            command(augment_slides, output=folder, **given)
        work = folder.with_name("synthetic.unfinished")
        kept = {file.name: file.stat().st_mtime_ns for file in work.glob("*.png")}
        assert len(kept) == 2 and not folder.exists()
        with pytest.raises(InputError, match="other settings"):
            command(augment_slides, output=folder, **given | {"seed": 5})
        assert {f.name: f.stat().st_mtime_ns for f in work.glob("*.png")} == kept
        damaged = work / "000001.png"  # is made again
        damaged.write_bytes(damaged.read_bytes()[:99])
    finally:
        augment_slides.replacing = original
    command(augment_slides, output=folder, **given)
    assert not work.exists()
    return folder


def test_half_of_the_pseudo_slides_hold_a_planted_region(planted, records_dir):
    records, patches = open_records(planted), open_records(records_dir)
    for split in ("train", "test"):
        bags = read_bags(records, split)
        assert [bag.label for bag in bags] == [0, 1, 0, 1]
        assert [bool(bag.planted.any()) for bag in bags] == [False, True, False, True]
        assert all(len(bag) == 16 for bag in bags)
        # Every patch is one of the same split of the records it is made of.
        known = np.concatenate(list(patches.source(split, ("embedding",)).chunks("embedding")))
        known = {row.tobytes() for row in known}
        assert all(row.tobytes() in known for bag in bags for row in bag.features)
    assert set(records.metadata[PLANTED]["regions"]) == {
        bag.name for split in ("train", "test") for bag in read_bags(records, split) if bag.label
    }


def test_a_synthetic_slide_has_the_label_and_the_places_of_its_parent(synthetic, planted):
    records = open_records(synthetic)
    bags = {bag.name: bag for bag in read_bags(records, "train")}
    real = read_bags(open_records(planted), "train")
    assert list(bags) == [f"{bag.name}#synthetic0" for bag in real]
    source = records.source("train", ("image",))
    for bag in real:
        made = bags[f"{bag.name}#synthetic0"]
        assert made.label == bag.label and bag.name in made.parents
        places = [sorted(zip(one.x.tolist(), one.y.tolist(), strict=True)) for one in (bag, made)]
        assert places[0] == places[1]
        assert (synthetic / "slides" / f"{made.name}.tif").is_file()
        assert source[int(made.rows[0])]["image"].shape == (64, 64, 3)
    told = records.metadata[SYNTHETIC]
    assert (told["split"], told["regions"], told["interpolate"]) == ("train", 16, 0.25)
    assert records.count("test") == 0
    for folder in (synthetic, planted):
        assert "<h1>" in (folder / "index.html").read_text()


def test_what_cannot_be_varied_is_refused(given, tmp_path, records_dir):
    refused = {
        "no synthetic slides are made of test slides": {"split": "test"},
        "multiple of the patch, 64 px": {"region_px": 100},
        "have no labels": {"records": records_dir},
        "exists already": {"output": tmp_path},
    }
    for message, changes in refused.items():
        with pytest.raises(InputError, match=message):
            command(augment_slides, **{"output": tmp_path / "out"} | given | changes)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def evaluated(planted, synthetic, tmp_path_factory):
    """The flags of a small run of evaluate_mil, which was run."""
    folder = tmp_path_factory.mktemp("mil") / "report"
    flags = {"records": planted, "synthetic": synthetic, "output": folder, "steps": 2, "seeds": 2}
    flags |= {"fractions": "0.01,1,1", "models": "abmil,abmil"}
    command(evaluate_mil, **flags)
    return flags


def test_the_report_compares_all_arms(evaluated):
    folder = evaluated["output"]
    report = json.loads((folder / "report.json").read_text())
    assert report["slides"] == {"real": 4, "synthetic": 4, "ordinary": 4, "test": 4}
    assert [trial["real_slides"] for trial in report["trials"]] == [2, 4]
    full = report["trials"][1]["arms"]
    assert {arm: (one["slides"], one["added"]) for arm, one in full.items()} == {
        "real": ([4, 4], [0, 0]),
        "real_synthetic": ([8, 8], [4, 4]),
        "synthetic": ([4, 4], [4, 4]),
        "real_ordinary": ([8, 8], [4, 4]),
    }
    few = report["trials"][0]["arms"]
    synthetic, ordinary = ("real_synthetic" in few, "real_ordinary" in few)
    assert synthetic == ordinary and (
        not synthetic or few["real_synthetic"]["added"] == few["real_ordinary"]["added"]
    )
    assert {arm: [*one["auc"]["minus"]] for arm, one in full.items()} == {
        "real": ["real_ordinary"],
        "real_synthetic": ["real", "real_ordinary"],
        "synthetic": ["real", "real_ordinary"],
        "real_ordinary": ["real"],
    }
    # The stain makes the label: it is not varied.
    assert set(report["settings"]["ordinary augmentation"].values()) == {0.0, 0.9}
    assert any("At 100 % all seeds train on the same slides" in one for one in report["remarks"])
    assert not any("it may know test slides" in one for one in report["remarks"])
    assert 0 <= full["synthetic"]["auc"]["value"] <= 1
    assert full["real"]["attention"]["area"]["value"] >= 0
    assert report["told_instances"]["area"]["value"] > 0.5
    assert any("1 % of 4 slides became 2" in remark for remark in report["remarks"])
    page = (folder / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "") and "4 + 4" in page
    assert "(too few slides for an interval)" in page and "one in twenty" in page
    assert (folder / "attention.png").stat().st_size > 1000


def test_a_stopped_evaluation_goes_on(evaluated, monkeypatch):
    """Nothing is trained that is kept; a picture that fails leaves the numbers."""

    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(experiment, "fit", refuse)
    folder = evaluated["output"]
    before = json.loads((folder / "report.json").read_text())
    (folder / "report.json").unlink()
    monkeypatch.setattr(evaluate_mil, "scores_figure", refuse)
    with pytest.raises(AssertionError):
        command(evaluate_mil, **evaluated)
    assert json.loads((folder / "report.json").read_text())["trials"] == before["trials"]


def test_what_would_mislead_is_refused(evaluated, planted, synthetic):
    refused = {
        "--fractions=0,1; expected": {"fractions": "0,1"},
        "--models=transmil; expected": {"models": "transmil"},
        "--models=; expected": {"models": ""},
        "holds no synthetic slides": {"synthetic": planted},
    }
    for message, changes in refused.items():
        with pytest.raises(InputError, match=message):
            command(evaluate_mil, **evaluated | changes)
    real, test = (read_bags(open_records(planted), split) for split in ("train", "test"))
    # Slides of which blocks are held out, and slides of a patient whose others are trained on.
    with pytest.raises(InputError, match="is in the split test, and .* --split=sources"):
        evaluate_mil.check_apart(open_records(planted), real, [*test, real[0]])
    patient = [
        dataclasses.replace(bags[0], name=f"TCGA-A1-0001-{i}.svs")
        for i, bags in enumerate((real, test))
    ]
    with pytest.raises(InputError, match="of the same TCGA-A1-0001; 1 of 1 test slides"):
        evaluate_mil.check_apart(open_records(planted), patient[:1], patient[1:])
    evaluate_mil.check_apart(open_records(planted), real, test)
    other = open_records(synthetic)
    other.metadata[SYNTHETIC]["records_sha256"] = "0" * 64
    with pytest.raises(InputError, match="synthetic slides of other records"):
        evaluate_mil.check_records(open_records(planted), other)
    other.metadata[SYNTHETIC]["model_split_sha256"] = "0" * 64
    told = evaluate_mil.limits(open_records(planted), other)
    assert any("it may know test slides" in remark for remark in told)


def test_ordinary_variations_are_of_the_cells_of_synthetic_slides(planted):
    records = open_records(planted)
    bag = read_bags(records, "train")[1]
    fields = ("features", "x", "y", "rows", "planted")
    twice = {name: getattr(bag, name)[[*range(16), 0]] for name in fields}
    twice["x"] = np.append(bag.x, 32)  # the last patch overlaps two others
    stray = dataclasses.replace(bag, **twice)
    made = [dataclasses.replace(bag, name=f"{bag.name}#synthetic{i}") for i in range(2)]
    encoder = load_encoder(planted / "encoder")
    first, second = ordinary_copies(records, "train", [stray], made, encoder, VIEW, 0)
    assert (first.name, first.parents) == (f"{bag.name}#ordinary0", (bag.name,))
    np.testing.assert_array_equal(first.x, bag.x)  # without the stray patch
    assert len(first.features) == 16 and (first.features != second.features).any()


def test_pictures_lie_as_the_patches_do(planted):
    records = open_records(planted)
    bag = read_bags(records, "test")[1]
    picture = slide_picture(records, "test", bag)
    assert picture.shape == (256, 256, 3)
    last = int(np.argmax(bag.x + bag.y))
    image = records.source("test", ("image",))[int(bag.rows[last])]["image"]
    np.testing.assert_array_equal(picture[-64:, -64:], image)
    ranks = rank_map(bag, np.arange(16.0), 64)
    assert ranks.shape == (256, 256) and (ranks[-64:, -64:] == np.float32(last / 15)).all()
    # As coordinates of real slides are: no picture of every pixel.
    far = dataclasses.replace(bag, x=bag.x * 1237 + 1, y=bag.y * 1237)
    ranks = rank_map(far, np.arange(16.0), 64)
    assert max(ranks.shape) <= 514 and np.nanmax(ranks) == 1 and np.isnan(ranks).any()
    assert slide_picture(records, "test", far).shape[:2] == ranks.shape


def test_ordinary_variations_are_each_patch_its_own():
    import jax

    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    images[1] = images[0]
    found = varied(images, VIEW, jax.random.key(0))
    assert found.shape == images.shape and (found[0] != found[1]).any()
    np.testing.assert_array_equal(found, varied(images, VIEW, jax.random.key(0)))
    change = np.abs(found.mean(axis=(1, 2, 3)) - images.mean(axis=(1, 2, 3)))
    assert 0 < change.max() < 40
