"""What a manifest says of files, and what is refused."""

import csv

import pytest
from test_collect import collected, images, manifest

from ssl_diffusion.data.manifest import read_manifest
from ssl_diffusion.errors import InputError


def test_a_manifest_says_labels_splits_text_groups_and_resolution(tmp_path):
    root = images(tmp_path / "a", "s/1.png", "s/2.png", "3.png", "left_out.png")
    listed = manifest(
        tmp_path / "m.csv",
        "label,file,split,text,mpp,group",
        'tumour,s/1.png,train,"pleomorphic, large",0.25,p1',
        "normal,s/2.png,test,,,p2",
        ",3.png,val,,30m,",
    )
    found = collected(root, manifest=listed)
    assert [origin.name for origin in found.origins] == ["s/1.png", "s/2.png", "3.png"]
    assert [origin.split for origin in found.origins] == ["train", "test", "val"]
    assert [origin.label for origin in found.origins] == ["tumour", "normal", ""]
    assert [origin.mpp for origin in found.origins] == [0.25, 0.5, 3e7]
    assert [origin.group for origin in found.origins] == ["p1", "p2", "3.png"]
    assert found.origins[0].text == "pleomorphic, large"
    assert found.classes == ("normal", "tumour")


@pytest.mark.parametrize(
    "lines, message",
    [
        (["file,split", "1.png,train", "1.png,test"], "line 3: 1.png is listed twice"),
        (["file,split", "1.png,dev"], "line 2: split 'dev', expected one of train, val, test"),
        (["file,colour", "1.png,red"], "columns file, colour; expected file, and of split"),
        (["name", "1.png"], "columns name; expected file"),
        (["file", "../1.png"], "'../1.png', expected a path below"),
        (["file", "/etc/passwd"], "expected a path below"),
        (["file,text", "1.png,a,b"], "line 2: more or fewer fields"),
        (["file,mpp", "1.png,half"], "half; expected µm per pixel"),
        (["file"], "lists no files"),
        (["file", "9.png"], "1 of the manifest's 1 files are not in"),
        (["file,split", "1.png,train", "2.png,"], "no split to 1 of 2 files"),
        (["file,split,group", "1.png,train,p", "2.png,test,p"], "p is in two splits"),
    ],
)
def test_a_manifest_that_cannot_be_used(tmp_path, lines, message):
    root = images(tmp_path / "a", "1.png", "2.png")
    with pytest.raises(InputError, match=message):
        collected(root, manifest=manifest(tmp_path / "m.csv", *lines))


def test_a_manifest_that_is_no_text(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"\xff\xfe\x00file")
    with pytest.raises(InputError, match="m.csv cannot be read"):
        read_manifest(tmp_path / "m.csv")
    with pytest.raises(InputError, match="none.csv cannot be read"):
        read_manifest(tmp_path / "none.csv")
    with (tmp_path / "excel.csv").open("w", encoding="utf-8-sig", newline="") as stream:
        csv.writer(stream).writerows([["file", "text"], ["1.png", "two\nlines"]])
    assert read_manifest(tmp_path / "excel.csv")["1.png"].text == "two\nlines"
    odd = "one\u2028two\x0cthree\x85four"  # str.splitlines() would end lines there
    listed = manifest(tmp_path / "odd.csv", "file,text", f"1.png,{odd}", "2.png,")
    assert [row.text for row in read_manifest(listed).values()] == [odd, ""]
