"""What is found in a folder: names, labels, splits, and what is refused."""

import errno
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from slide_files import texture, write_raster, write_slide

from ssl_diffusion.data import ground, groups, recipe
from ssl_diffusion.data.collect import collect
from ssl_diffusion.data.find import find_pictures
from ssl_diffusion.data.labels import BRACS
from ssl_diffusion.data.origins import Collection
from ssl_diffusion.errors import InputError

BRACS_FOLDERS = [f"{index}_{name}" for index, name in enumerate(BRACS)]


def images(root: Path, *names: str, first: int = 0) -> Path:
    """Small PNGs, each its own picture."""
    for number, name in enumerate(names, first):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(texture(number, 64, 64)).save(root / name)
    return root


def collected(root: Path, **entries) -> Collection:
    data = recipe.section(source=str(root), patch_px=32, stride_px=32, source_mpp=0.5) | entries
    return collect(ConfigDict(data), root.parent / "split.json")


def manifest(path: Path, header: str, *lines: str) -> str:
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return str(path)


def test_bracs_regions_have_seven_labels_and_their_official_splits(tmp_path):
    """BRACS_RoI/latest_version/{train,val,test}/{0_N,...,6_IC}/BRACS_<slide>_<class>_<n>.png"""
    names = [
        f"{split}/{folder}/BRACS_{100 * part + index}_{BRACS[index]}_{n}.png"
        for part, split in enumerate(("train", "val", "test"))
        for index, folder in enumerate(BRACS_FOLDERS)
        for n in (1, 2)
    ]
    found = collected(images(tmp_path / "BRACS_RoI", *names))
    assert found.classes == ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC")
    assert found.settings["split_by"] == "folders" and len(found.origins) == 42
    for origin in found.origins:
        split, folder, file = origin.name.split("/")
        assert (origin.split, origin.label) == (split, folder[2:])
        assert origin.group == "_".join(file.split("_")[:2])


def test_a_slide_of_bracs_in_two_splits_is_refused(tmp_path):
    names = "train/0_N/BRACS_7_N_1.png", "test/0_N/BRACS_7_N_2.png", "train/0_N/BRACS_8_N_1.png"
    with pytest.raises(InputError, match="BRACS_7 is in two splits: .*in t.*; splits are by sour"):
        collected(images(tmp_path / "b", *names))


def test_bracs_slides_are_labelled_by_their_folders(tmp_path):
    names = "train/Group_BT/Type_PB/BRACS_1.png", "test/Group_MT/Type_IC/BRACS_2.png"
    found = collected(images(tmp_path / "b", *names))
    assert {origin.split: origin.label for origin in found.origins} == {"train": "PB", "test": "IC"}
    assert found.classes == BRACS


def test_class_folders_are_labels_where_they_lie_in_several_splits(tmp_path):
    names = "train/forest/a.png", "train/lake/b.png", "test/lake/c.png", "test/forest/d.png"
    found = collected(images(tmp_path / "a", *names))
    assert found.classes == ("forest", "lake")
    # Folders that are one slide's each (as the GDC client makes them) are no classes.
    names = "train/1f3a/a.png", "train/77b0/b.png", "test/90cc/c.png"
    assert collected(images(tmp_path / "b", *names)).classes == ()


def test_the_same_image_in_two_splits_is_refused(tmp_path):
    root = images(tmp_path / "a", "train/x/a.png", "test/x/b.png")
    shutil.copyfile(root / "train/x/a.png", root / "test/x/a.png")
    with pytest.raises(InputError, match="a.png .* are the same image"):
        collected(root)
    Image.fromarray(texture(9, 64, 64)).save(root / "test/x/a.png")  # the same name alone is fine
    assert len(collected(root).origins) == 3


def test_whole_sources_are_drawn_where_nothing_says_the_splits(tmp_path):
    root = images(tmp_path / "a", *(f"TCGA-AA-00{i:02d}-01.png" for i in range(20)))
    found = collected(root)
    assert found.settings["split_by"] == "sources"
    splits = {origin.name: origin.split for origin in found.origins}
    assert sorted(splits.values()) == ["test"] * 2 + ["train"] * 16 + ["val"] * 2
    images(
        tmp_path / "a", "TCGA-AA-0003-02.png", first=99
    )  # another slide of a patient goes with the first
    again = {origin.name: origin.split for origin in collected(root).origins}
    assert again["TCGA-AA-0003-02.png"] == again["TCGA-AA-0003-01.png"]
    assert again.items() >= splits.items()
    few = collected(root, held_out=(0.0, 0.5))
    assert sorted({origin.split for origin in few.origins}) == ["test", "train"]


def scenes(root: Path, **corners: tuple[float, float]) -> Path:
    """Rasters of 64 x 64 pixels of 10 m, 640 m wide; "__" in names is for "/"."""
    for seed, (name, corner) in enumerate(corners.items()):
        path = root / f"{name.replace('__', '/')}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_raster(path, texture(seed, 64, 64).transpose(2, 0, 1), 10, corner=corner)
    return root


def test_scenes_of_the_same_ground_are_drawn_together(tmp_path):
    """Chains of four scenes of which only neighbours overlap, in no order of names."""
    east, north = 700_000, 6_500_000  # where boxes in degrees of scenes that touch overlap
    root, order = tmp_path / "a", (0, 3, 1, 2)
    chains = {
        f"s{i:02d}": (east + 10_000 * (i // 4) + 620 * order[i % 4], north) for i in range(28)
    }
    scenes(root, **chains, beside=(east + 3 * 620 + 640, north), above=(east, north + 640))
    (root / "broken.tif").write_bytes(b"II*\0")
    images(root, "plain.png")
    found = collected(root, mpp=1e7)
    assert found.settings["split_by"] == "sources"
    group = {origin.name: origin.group for origin in found.origins}
    for i in range(28):
        assert group[f"s{i:02d}.tif"] == f"s{i - i % 4:02d}.tif"
    for name in ("beside.tif", "above.tif", "broken.tif", "plain.png"):
        assert group[name] == name
    split = {origin.group: origin.split for origin in found.origins}
    assert all(split[origin.group] == origin.split for origin in found.origins)
    with pytest.raises(InputError, match=r"1 sources are too few .*\(3 files, .* ground are one\)"):
        collected(scenes(tmp_path / "b", **dict.fromkeys("abc", (east, north))), mpp=1e7)


@pytest.mark.parametrize("how", ["folders", "manifest", "blocks"])
def test_the_same_ground_in_two_splits_is_warned_of(tmp_path, caplog, how):
    names = ("train__a", "val__b", "test__c") if how == "folders" else ("a", "b", "c")
    entries = {"patch_px": 8, "stride_px": 8, "mpp": 1e7, "min_saturation": 0.0}
    entries["split"] = how
    if how == "manifest":
        lines = "a.tif,train", "b.tif,val", "c.tif,test"
        entries["manifest"] = manifest(tmp_path / "m.csv", "file,split", *lines)
    at = (500_000, 7_000_000), (510_000, 7_000_000), (520_000, 7_000_000)
    with caplog.at_level(logging.WARNING):
        collected(scenes(tmp_path / "a", **dict(zip(names, at, strict=True))), **entries)
        assert "ground" not in caplog.text
        scenes(tmp_path / "a", **{names[2]: (510_300, 7_000_300)})
        (tmp_path / "split.json").unlink(missing_ok=True)
        collected(tmp_path / "a", **entries)
    one, other = ("test/c", "val/b") if how == "folders" else ("b", "c")
    assert f"{one}.tif (" in caplog.text and f"and {other}.tif (" in caplog.text
    assert "show the same ground" in caplog.text


def test_slides_are_not_opened_for_their_ground(tmp_path, monkeypatch):
    monkeypatch.setattr(ground, "outline", lambda file: pytest.fail(f"opened {file}"))
    collected(images(tmp_path / "a", *(f"{i}.png" for i in range(4))))


@pytest.mark.parametrize(
    "other, shared",
    [
        ([(181, 0), (183, 0), (183, 2), (181, 2)], True),
        ([(-179, 2), (-177, 2), (-177, 0), (-179, 0)], True),  # the same, the other way round
        ([(182, 0), (184, 0), (184, 2), (182, 2)], False),
        ([(181.99, 0), (183.99, 0), (183.99, 2), (181.99, 2)], False),  # half a hundredth
        ([(179, 1), (179.1, 1), (179.1, 1.1), (179, 1.1)], False),
        ([(181, 1), (181.1, 1), (181.1, 1.1), (181, 1.1)], True),  # within
        ([(183.7, 2.7), (182.7, 3.7), (181.7, 2.7), (182.7, 1.7)], False),  # only boxes overlap
    ],
)
def test_which_outlines_share_ground(other, shared):
    one = np.array([(180.0, 0.0), (182, 0), (182, 2), (180, 2)])
    other = np.array(other, float)
    near = [*ground.near({"a": one, "b": other})] == [("a", "b")]
    assert (near and ground.share(one, other), near and ground.share(other, one)) == (shared,) * 2


def test_two_sources_are_held_out_in_blocks(tmp_path):
    root = images(tmp_path / "a", "a.png", "b.png")
    found = collected(root, patch_px=8, stride_px=8, min_saturation=0.0)
    assert found.settings["split_by"] == "blocks"
    assert all(origin.blocks and origin.split is None for origin in found.origins)
    with pytest.raises(InputError, match="2 sources are too few.*--split=blocks"):
        collected(root, split="sources")


def test_a_split_that_is_none_is_refused(tmp_path):
    root = images(tmp_path / "a", "1.png", "2.png", "3.png")
    for misspelt in ("source", "patients", "records"):
        with pytest.raises(InputError, match=f"split is '{misspelt}', expected manifest, folders"):
            collected(root, split=misspelt)


def test_sources_that_cannot_be_opened_are_not_drawn(tmp_path):
    root = images(tmp_path / "a", *(f"{number}.png" for number in range(4)))
    for number in range(40):
        (root / f"broken{number}.png").write_text(f"no {number}")
    splits = {origin.name: origin.split for origin in collected(root).origins}
    assert sorted(splits[f"{number}.png"] for number in range(4)) == [
        "test",
        "train",
        "train",
        "val",
    ]
    assert {splits[f"broken{number}.png"] for number in range(40)} == {"train"}


def test_the_same_content_under_other_names_in_two_splits_is_refused(tmp_path):
    root = images(tmp_path / "a", "train/x/a.png", "test/x/b.png")
    shutil.copyfile(root / "train/x/a.png", root / "test/x/c.png")
    with pytest.raises(InputError, match="c.png .test. and train/x/a.png .train. are the same"):
        collected(root)


def test_nothing_to_train_on_is_told_before_anything_is_cut(tmp_path):
    root = images(tmp_path / "a", "1.png", "2.png")
    lines = "file,split", "1.png,test", "2.png,val"
    with pytest.raises(InputError, match="no source in .* is in train"):
        collected(root, manifest=manifest(tmp_path / "m.csv", *lines))


@pytest.mark.parametrize(
    "name, group",
    [
        ("x/TCGA-A1-A0SB-01Z-00-DX1.svs", "TCGA-A1-A0SB"),
        ("BRACS_1003648_DCIS_1.png", "BRACS_1003648"),
        ("BRACS_1486.svs", "BRACS_1486"),
        ("x/TCGA.svs", "x/TCGA.svs"),
        ("BRACS_x.png", "BRACS_x.png"),
    ],
)
def test_published_names_say_whose_an_image_is(name, group):
    assert groups.group_of(name) == group


def square(label: str, x: int, y: int, side: int, hole: int = 0) -> dict:
    """A classified square as QuPath exports it, with a square hole of this side in its middle."""

    def ring(x: float, y: float, side: float) -> list:
        return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]

    rings = [ring(x, y, side)]
    if hole:
        rings.append(ring(x + (side - hole) / 2, y + (side - hole) / 2, hole))
    properties = {"objectType": "annotation", "classification": {"name": label}}
    geometry = {"type": "Polygon", "coordinates": rings}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def test_regions_drawn_in_qupath_label_patches(tmp_path):
    """At 0.25 µm per pixel, read at 0.5: regions are in pixels of the file."""
    root = tmp_path / "slides"
    for split, name in (("train", "BRACS_1"), ("test", "BRACS_2"), ("val", "BRACS_3")):
        (root / split / "Group_AT" / "Type_ADH").mkdir(parents=True)
        path = root / split / "Group_AT" / "Type_ADH" / f"{name}.tif"
        write_slide(path, texture(int(name[-1]), 512, 512), 0.25, levels=2)
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    features = [square("ADH", 0, 0, 512, hole=128), square("DCIS", 0, 0, 128)]
    point = {"type": "Point", "coordinates": [1, 2]}
    features.append({"geometry": point, "properties": {"classification": {"name": "IC"}}})
    features.append(square("", 0, 0, 512))
    whole = {"type": "FeatureCollection", "features": features}
    for name in ("BRACS_1", "BRACS_2"):
        (drawn / f"{name}.geojson").write_text(json.dumps(whole))
    found = collected(root, annotations=str(drawn), source_mpp=None)
    assert found.classes == BRACS and len(found.origins) == 2  # BRACS_3 has nothing drawn
    opened = {origin.split: origin.open() for origin in found.origins}["train"]
    cut = [example for row in range(opened.rows) for example in opened.cut(row)]
    labels = {(example["x"], example["y"]): example["label"] for example in cut}
    assert len(labels) == 64 - 4  # the hole
    assert {at for at, label in labels.items() if label == "DCIS"} == {
        (x, y) for x in (0, 32) for y in (0, 32)
    }
    assert not labels.keys() & {(x, y) for x in (96, 128) for y in (96, 128)}
    with pytest.raises(InputError, match="no SLIDE.geojson for any of 3 slides"):
        collected(root, annotations=str(root))
    (drawn / "BRACS_1.geojson").write_text('{"features": [{"properties": 3}]}')
    found = collected(root, annotations=str(drawn), source_mpp=None)
    assert found.classes == BRACS  # the other's
    bad, good = sorted(found.origins, key=lambda origin: origin.path)[::-1]
    assert good.open().rows
    with pytest.raises(InputError, match="BRACS_1.geojson are no GeoJSON of polygons"):
        bad.open()


def draw_on(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        label = name.replace("/", " ")
        (folder / name).write_text(json.dumps(square(label, 0, 0, 64)))
    return str(folder)


def test_annotations_are_those_of_the_same_folder_or_of_the_only_name(tmp_path):
    root = images(tmp_path / "slides", "a/s0.png", "b/s0.png", "c/s1.png", "d/s2.png")
    drawn = draw_on(tmp_path / "drawn", "a/s0.geojson", "b/s0.geojson", "s1.geojson")
    found = collected(root, annotations=drawn)
    assert {o.name: Path(o.annotations).relative_to(drawn).as_posix() for o in found.origins} == {
        "a/s0.png": "a/s0.geojson",
        "b/s0.png": "b/s0.geojson",
        "c/s1.png": "s1.geojson",
    }
    (tmp_path / "drawn/b/s0.geojson").unlink()
    found = collected(root, annotations=drawn)
    assert [origin.name for origin in found.origins] == ["a/s0.png", "c/s1.png"]


@pytest.mark.parametrize(
    "slides, drawn",
    [
        (["a/s0.png", "b/s0.png"], ["s0.geojson"]),
        (["a/s0.png"], ["s0.geojson", "b/s0.geojson"]),
        (["a/s0.png", "a/s0.jpg"], ["a/s0.geojson"]),
        (["a/s0.png", "b/s0.png"], ["a/s0.geojson", "s0.geojson"]),
    ],
)
def test_annotations_that_may_be_of_several_slides_are_refused(tmp_path, slides, drawn):
    root = images(tmp_path / "slides", *slides)
    with pytest.raises(InputError, match="s0.geojson are for .*a/s0.png.* expected one for one"):
        collected(root, annotations=draw_on(tmp_path / "drawn", *drawn))


def names_of(found: Collection) -> list[str]:
    return [origin.name for origin in found.origins]


def test_links_to_folders_are_followed(tmp_path):
    images(tmp_path / "far", "deep/a.png", "b.png", "c.png")
    root = images(tmp_path / "near", "d.png")
    (root / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "deep" / "up").symlink_to(root)  # for ever
    assert names_of(collected(root)) == [
        "d.png",
        "linked/b.png",
        "linked/c.png",
        "linked/deep/a.png",
    ]


def test_folders_that_cannot_be_read_are_told(tmp_path, monkeypatch):
    root = images(tmp_path / "a", "x/1.png", "closed/2.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):  # chmod does not stop root
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="a/closed' cannot be read .Permission denied."):
        collected(root)


def test_names_that_are_not_utf8_are_refused(tmp_path):
    root = images(tmp_path / "a", "x/1.png")
    os.rename(root / "x", os.fsencode(root) + b"/\xfc")
    with pytest.raises(InputError, match=r"b'\\xfc/1.png' in .* is not UTF-8; rename"):
        collected(root)
    (root / "1.png").write_bytes(b"")
    file = os.fsdecode(os.fsencode(root) + b"/\xfc.png")
    os.rename(root / "1.png", file)
    with pytest.raises(InputError, match=r"b'\\xfc.png' in .* is not UTF-8; rename"):
        collected(Path(file))


def test_without_images_it_is_told_why(tmp_path):
    with pytest.raises(InputError, match=r"no images in \S+/none \(it does not exist\). Get them"):
        collected(tmp_path / "none", instructions="Get them")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no images in \S+/empty. Get them"):
        collected(tmp_path / "empty", instructions="Get them")


def dicom(uid: str, implicit: bool = False) -> bytes:
    """The beginning of a DICOM file of this series."""

    def element(tag: bytes, value: str) -> bytes:
        data = value.encode() + b"\0" * (len(value) % 2)
        kind = b"" if implicit else b"UI"
        return tag + kind + len(data).to_bytes(4 if implicit else 2, "little") + data

    study, series = b"\x20\0\x0d\0", b"\x20\0\x0e\0"
    other = element(series, "1.2.3")  # one that is referred to
    return (
        b"\0" * 128 + b"DICM" + other + element(study, "1.2.84") + element(series, uid) + b"\x20\0"
    )


def test_several_files_of_a_slide_are_one_source(tmp_path):
    files = {
        "d/level1.dcm": dicom("1.5.77"),
        "d/level0.dcm": dicom("1.5.77"),
        "d/other1.dcm": dicom("1.5.7", implicit=True),
        "d/other2.dcm": dicom("1.5.7", implicit=True),
        "d/broken1.dcm": b"",
        "d/broken2.dcm": b"",  # each tells that it is
        "e/level0.dcm": dicom("1.5.77"),
        "v/s.VMS": b"",
        "v/s(0,0).jpg": b"",
        "v/macro.JPG": b"",
        "v/t.png": b"",
        "w/u.jpg": b"",
        "w/u.qptiff": b"",
        "w/u.ntf": b"",
    }
    for name, content in files.items():
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).write_bytes(content)
    data = ConfigDict(recipe.section(source=str(tmp_path / "a")))
    assert list(find_pictures(data, tmp_path / "a", {})) == [
        *("d/broken1.dcm", "d/broken2.dcm", "d/level0.dcm", "d/other1.dcm", "e/level0.dcm"),
        *("v/s.VMS", "v/t.png", "w/u.jpg", "w/u.ntf", "w/u.qptiff"),
    ]
