"""The commands of augmentation: variations as records, and classifiers trained on them."""

import json
import shutil

import numpy as np
import pytest

from ssl_diffusion import augment, evaluate_augmentation
from ssl_diffusion.augmentation import classifiers, comparison, writing
from ssl_diffusion.augmentation.comparison import check_arms
from ssl_diffusion.augmentation.inputs import read_comparison
from ssl_diffusion.augmentation.variations import read_variations
from ssl_diffusion.data.records import open_records
from ssl_diffusion.data.writer import Layout, RecordsWriter
from ssl_diffusion.encoders import encoder
from ssl_diffusion.errors import InputError

COUNT, EACH = 20, 2


@pytest.fixture(scope="module")
def made(records_dir, run_dir, tmp_path_factory):
    """Runs augment: flags -> folder."""

    def run(name: str, **flags):
        output = tmp_path_factory.mktemp("augment") / name
        given = {"model": run_dir / "model", "records": records_dir, "output": output}
        given |= {"per_image": EACH, "count": COUNT, "batch": 8, **flags}
        command(augment, **given)
        return given["output"]

    return run


def command(module, **flags) -> None:
    module.FLAGS.unparse_flags()
    module.FLAGS(["command", *(f"--{name}={value}" for name, value in flags.items())])
    module.main()


@pytest.fixture(scope="module")
def synthetic(made):
    """Two variations of each of 20 patches, their embeddings as they are."""
    return made("same")


def examples(folder, split="train") -> list[dict]:
    source = open_records(folder).source(split)
    return [source[index] for index in range(len(source))]


def test_variations_are_records_with_the_place_of_their_originals(synthetic, records_dir):
    records, real = open_records(synthetic), examples(records_dir)
    found, wanted = examples(synthetic), read_variations(synthetic)
    assert (records.count("train"), records.count("test")) == (COUNT * EACH, 0)
    for one, original in zip(found, wanted.original, strict=True):
        assert one["image"].shape == real[original]["image"].shape
        for name in ("source", "x", "y", "mpp"):
            assert one[name] == real[original][name]
        np.testing.assert_array_equal(one["embedding"], real[original]["embedding"])
        assert one["latent"].shape == real[original]["latent"].shape
    assert not np.array_equal(found[0]["image"], found[1]["image"])  # other noise
    told = records.metadata["augmentation"]
    assert (told["how"], told["split"], told["labels"]) == ("same", "train", None)
    assert told["embedding"] == "asked for"  # not the image's
    assert told["recipe"] == open_records(records_dir).metadata["recipe"]
    assert "same variations of" in records.metadata["recipe"]["source"]
    assert (synthetic / "index.html").is_file() and (synthetic / "encoder").is_dir()


def test_work_that_was_stopped_goes_on_to_the_same_records(
    made, synthetic, run_dir, monkeypatch, tmp_path
):
    monkeypatch.setattr(writing, "UNIT", 16)
    output, calls, sample = tmp_path / "stopped", [], augment.sample

    def stopping(*args, **kwargs):
        calls.append(0)
        if len(calls) == 4:  # in the second unit
            raise KeyboardInterrupt
        return sample(*args, **kwargs)

    monkeypatch.setattr(augment, "sample", stopping)
    with pytest.raises(KeyboardInterrupt):
        made("", output=output)
    assert not output.exists()
    assert len([*output.with_name("stopped.unfinished").glob("*/shards.json")]) == 1
    with pytest.raises(InputError, match="made otherwise .seed: 0, now 1"):
        made("", output=output, seed=1)
    made("", output=output)
    assert len(calls) == 4 + 3  # the unit that was done is kept
    for one, other in zip(examples(output), examples(synthetic), strict=True):
        assert np.abs(one["image"].astype(int) - other["image"]).max() <= 1
    assert not output.with_name("stopped.unfinished").exists()
    copy = shutil.copytree(run_dir / "model", tmp_path / "moved")
    made("", output=output, model=copy)  # all is there, and made by the same model
    assert len(calls) == 7
    assert not [*output.parent.glob(".*.lock")]
    with pytest.raises(InputError, match="made otherwise"):
        made("", output=output, count=3)


def test_variations_of_labels_of_pixels_are_interpolated_within_them(made, records_dir):
    folder = made("between", how="interpolate", labels="haematoxylin", count=6, per_image=1)
    records, wanted = open_records(folder), read_variations(folder)
    assert records.metadata["classes"] == ["low", "high"]
    real = examples(records_dir)
    for one, original, partner in zip(
        examples(folder), wanted.original, wanted.partner, strict=True
    ):
        own, other = (unit(real[i]["embedding"]) for i in (original, partner))
        found = unit(one["embedding"])
        assert own @ other < found @ own < 1 + 1e-6 and found @ other <= found @ own  # the nearer
    assert set(wanted.partner) <= set(wanted.original)
    with pytest.raises(InputError, match="--labels=haematoxylin"):
        read_comparison(open_records(records_dir), records, "tissue")


def unit(embedding: np.ndarray) -> np.ndarray:
    return embedding.ravel() / np.linalg.norm(embedding)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"how": "interpolate"}, "prepare them with"),
        ({"how": "prior"}, "belong together"),
        ({"how": "prior", "prior": "demo:prior", "labels": "haematoxylin"}, "no label low, high"),
        ({"labels": "source"}, "1 source"),
        ({"split": "val"}, "none of 'val'"),
        ({"count": 10_000}, "labelled patches"),
    ],
)
def test_augment_refuses_in_one_line(made, flags, message):
    with pytest.raises(InputError, match=message):
        made("refused", **flags)


@pytest.fixture(scope="module")
def report(synthetic, records_dir, tmp_path_factory):
    """A whole comparison, small."""
    output = tmp_path_factory.mktemp("report")
    flags = {"fractions": "1", "seeds": 1, "steps": 1, "batch": 4, "labels": "haematoxylin"}
    flags |= {"records": records_dir, "synthetic": synthetic, "output": output}
    command(evaluate_augmentation, **flags)
    return output, flags


def test_the_report_has_every_arm_with_its_differences(report):
    told = json.loads((report[0] / "report.json").read_text())
    rows = told["rows"]
    assert len(rows) == 2 * 4
    whole = {row["arm"]: row for row in rows}
    sizes = {name: row["patches"] for name, row in whole.items()}
    both = COUNT * (1 + EACH)
    assert sizes == {
        "real": COUNT,
        "synthetic": COUNT * EACH,
        "real + synthetic": both,
        "real + ordinary": both,
    }
    for row in rows:
        assert 0 <= row["auc"]["low"] <= row["auc"]["value"] <= row["auc"]["high"] <= 1
        assert set(row["minus"]) == {"real", "real + ordinary"} - {row["arm"]}
        for other, difference in row["minus"].items():
            (reference,) = (
                one
                for one in rows
                if one["arm"] == other
                and (one["classifier"], one["fraction"]) == (row["classifier"], row["fraction"])
            )
            expected = row["auc"]["value"] - reference["auc"]["value"]
            assert difference["auc"]["value"] == pytest.approx(expected)
    assert told["bootstrap_over"] == "blocks" and not told["test_slides_unseen"]
    assert sum(told["train"]["counts"].values()) == COUNT
    assert told["ordinary"]["brightness"] == 0  # labels of pixels are kept
    assert told["labels_changed"]["ordinary"] < 0.2
    remarks = " ".join(told["remarks"])
    for words in ("seen all training patches", "Measured again", "one seed", "no stain"):
        assert words in remarks
    page = (report[0] / "report.html").read_text()
    assert "real + ordinary" in page and "held out of slides that are trained on" in page
    assert page.count("data:image/png") == 2 and "http" not in page


def test_what_was_trained_and_embedded_is_not_done_again(report, monkeypatch):
    output, flags = report
    expected = json.loads((output / "report.json").read_text())["rows"]
    lost = sorted((output / "runs").iterdir())[0]
    lost.unlink()
    again = []
    for module, name in ((comparison, "linear_probe"), (classifiers.FineTuning, "run")):
        function = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, function=function, **k: again.append(0) or function(*a, **k)
        )
    monkeypatch.setattr(encoder.SSLEncoder, "embed", None)
    command(evaluate_augmentation, **flags)
    assert again == [0] and lost.is_file()
    found = json.loads((output / "report.json").read_text())["rows"]
    for row, other in zip(found, expected, strict=True):
        assert row["auc"]["value"] == pytest.approx(other["auc"]["value"], abs=1e-6)


def labelled(folder, places, classes=("a", "b", "c"), size=8, **metadata):
    """Records of one-colour patches: by split, (source, x, label)."""
    layout = Layout(embedding=(1, 2), classes=classes)
    writer = RecordsWriter(folder, places, layout)
    for split, found in places.items():
        for source, x, label in found:
            image = np.full((size, size, 3), 40 * (label + 1) + x, np.uint8)
            example = {"image": image, "x": x, "y": 0, "source": source, "label": label}
            writer.add(split, example | {"embedding": np.ones((1, 2), np.float32)})
    writer.close({"recipe": {}, "patch_px": size, "mpp": 0.5, "classes": [*classes], **metadata})
    return open_records(folder)


TRAIN = [("s1", 0, 0), ("s1", 8, 1), ("s2", 0, 0), ("s2", 8, 1)]
TEST = [("s3", 0, 0), ("s3", 8, 1)]


def pair(
    folder, train=TRAIN, test=TEST, copies=TRAIN, originals=(0, 1, 2, 3), partner=None, **told
):
    """Real records, and synthetic ones that say they are of them."""
    real = labelled(folder / "real", {"train": train, "test": test})
    told = {"how": "same", "split": "train", "labels": "class", "recipe": {}} | told
    synthetic = labelled(folder / "made", {"train": copies}, augmentation=told)
    numbers = np.array(originals)
    arrays = {"number": numbers, "rank": numbers, "weight": 0.0 * numbers}
    arrays["partner"] = np.full(len(numbers), -1) if partner is None else np.array(partner)
    np.savez(folder / "made" / "variations.npz", original=numbers, **arrays)
    return real, synthetic


def test_whole_slides_that_are_tested_are_told_to_be_unseen(tmp_path):
    compared = read_comparison(*pair(tmp_path), "class")
    assert compared.facts["test_slides_unseen"] and compared.facts["bootstrap_over"] == "patches"
    assert compared.pool.varied.tolist() == [0, 1, 2, 3]
    assert compared.label.tolist() == [0, 1]
    assert any("no one trained on" in remark for remark in compared.remarks)


def test_what_is_left_out_is_told(tmp_path):
    """A test patch without a label, one of a class that no varied patch has; a foreign partner."""
    train = [*TRAIN, ("s2", 16, 2), ("s2", 24, 0)]
    test = [*TEST, ("s3", 16, -1), ("s3", 24, 2)]
    pairs = pair(tmp_path, train, test, partner=(2, 3, 0, -1), how="interpolate")
    compared = read_comparison(*pairs, "class")
    told = compared.facts["test"]
    assert (told["patches"], told["unlabelled"], told["of_other_classes"]) == (2, 1, 1)
    assert "1 test patches of classes that no varied patch has were left out." in compared.remarks
    assert compared.pool.partner.tolist() == [2, 3, 0, -1]
    foreign = pair(tmp_path / "b", train, test, partner=(5, 3, 5, 1), how="interpolate")
    compared = read_comparison(*foreign, "class")
    assert compared.pool.varied.tolist() == [-1, 1, -1, 3]
    with pytest.raises(InputError, match="both ends among them"):
        check_arms(compared, [0.1], 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "knows what is tested"),
        ({"recipe": {"source": "elsewhere"}}, "of other records .*source: elsewhere, now None"),
        ({"test": [*TEST, TRAIN[1]]}, "1 synthetic patches are of test patches"),
        ({"originals": (0, 1, 2, 2)}, "synthetic patch 3 is of s2"),
        ({"originals": (0, 1, 2)}, "3 in its list"),
        ({"test": TEST[:1]}, "test patches of 1 class"),
        ({"copies": TRAIN[:1], "originals": (0,)}, "varied training patches of 1 class"),
        ({"how": "interpolate", "labels": "tissue"}, "--labels=tissue"),
    ],
)
def test_comparisons_that_would_mislead_are_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read_comparison(*pair(tmp_path, **change), "class")


def test_records_that_are_no_variations_are_refused(tmp_path):
    real, synthetic = pair(tmp_path)
    with pytest.raises(InputError, match="holds no variations"):
        read_comparison(real, real, "class")
    (synthetic.folder / "variations.npz").write_bytes(b"cut off")
    with pytest.raises(InputError, match="cannot be read"):
        read_comparison(real, synthetic, "class")


def test_fractions_are_parts():
    assert evaluate_augmentation.parse_fractions(["1", "0.1"]) == [0.1, 1]
    for words in (["0"], ["2"], ["some"], ["nan"]):
        with pytest.raises(InputError, match="--fractions"):
            evaluate_augmentation.parse_fractions(words)
