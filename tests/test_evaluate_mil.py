"""The three commands of slide-level augmentation, one after the other, on a tiny model."""

import json

import numpy as np
import pytest

from ssl_diffusion import augment_slides, evaluate_mil, plant_slides
from ssl_diffusion.data.records import open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.mil.bags import PLANTED, SYNTHETIC, read_bags
from ssl_diffusion.mil.figures import rank_map, slide_picture
from ssl_diffusion.mil.ordinary import varied


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


def test_the_report_compares_all_arms(planted, synthetic, tmp_path):
    flags = {"records": planted, "synthetic": synthetic, "output": tmp_path, "steps": 2}
    command(evaluate_mil, **flags, fractions="0.01,1", models="abmil", seeds=2)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["slides"] == {"real": 4, "synthetic": 4, "ordinary": 4, "test": 4}
    assert [trial["real_slides"] for trial in report["trials"]] == [2, 4]
    full = report["trials"][1]["arms"]
    assert {arm: one["slides"] for arm, one in full.items()} == {
        "real": [4, 4],
        "real_synthetic": [8, 8],
        "synthetic": [4, 4],
        "real_ordinary": [8, 8],
    }
    assert full["real"]["auc"]["difference"]["value"] == 0
    assert 0 <= full["synthetic"]["auc"]["value"] <= 1
    assert full["real"]["attention"]["area"]["value"] >= 0
    assert report["told_instances"]["area"]["value"] > 0.5
    assert any("0.01 of 4 slides became 2" in remark for remark in report["remarks"])
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "") and "real + synthetic" in page
    for refused in ({"fractions": "0,1"}, {"models": "transmil"}, {"synthetic": planted}):
        with pytest.raises(InputError):
            command(evaluate_mil, **flags | refused)


def test_pictures_lie_as_the_patches_do(planted):
    records = open_records(planted)
    bag = read_bags(records, "test")[1]
    picture = slide_picture(records, "test", bag)
    assert picture.shape == (256, 256, 3)
    last = int(np.argmax(bag.x + bag.y))
    image = records.source("test", ("image",))[int(bag.rows[last])]["image"]
    np.testing.assert_array_equal(picture[-64:, -64:], image)
    ranks = rank_map(bag, np.arange(16.0), 64)
    assert ranks.shape == (4, 4) and ranks[-1, -1] == last / 15


def test_ordinary_variations_are_each_patch_its_own():
    import jax

    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    images[1] = images[0]
    found = varied(images, jax.random.key(0))
    assert found.shape == images.shape and (found[0] != found[1]).any()
    np.testing.assert_array_equal(found, varied(images, jax.random.key(0)))
    change = np.abs(found.mean(axis=(1, 2, 3)) - images.mean(axis=(1, 2, 3)))
    assert 0 < change.max() < 40
