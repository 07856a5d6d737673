"""Features of slides as CLAM and TRIDENT leave them."""

import h5py
import numpy as np
import pytest
from cut_before import SIDE, image_of, read, section
from PIL import Image

from ssl_diffusion.data.imports.layouts import find
from ssl_diffusion.errors import InputError

SLIDES = ("TCGA-A1-0001-01Z.aaa", "TCGA-B2-0002-01Z.bbb", "TCGA-C3-0003-01Z.ccc")  # names hold dots
LARGE = 2 * SIDE  # side of a patch at level 0
COORDS = np.array([[0, 0], [64, 0], [7, 33], [0, 64], [100, 64]])
TRIDENT = {"patch_size": SIDE, "patch_size_level0": LARGE, "level0_magnification": 40}
CLAM = {"patch_size": SIDE, "patch_level": 1, "downsample": (2.0, 2.0)}
RNG = np.random.default_rng(0)
PIXELS = {slide: RNG.integers(0, 256, (130, 160, 3), np.uint8) for slide in SLIDES}
FEATURES = {slide: RNG.normal(size=(len(COORDS), 6)).astype(np.float32) for slide in SLIDES}


def save_h5(path, attributes=None, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file["coords"].attrs.update(attributes or {})


@pytest.fixture
def slides(tmp_path):
    folder = tmp_path / "slides" / "deeper"
    folder.mkdir(parents=True)
    for slide, pixels in PIXELS.items():
        Image.fromarray(pixels).save(folder / f"{slide}.png")
        (folder / f"{slide}.xml").write_text("annotations")
    return folder.parent


@pytest.fixture
def trident(tmp_path):
    """A job of TRIDENT: coordinates, features of patches, one vector for each slide."""
    job = tmp_path / "job" / "20x_32px_0px_overlap"
    for slide in SLIDES:
        save_h5(job / "patches" / f"{slide}_patches.h5", TRIDENT, coords=COORDS)
        arrays = {"features": FEATURES[slide], "coords": COORDS}
        save_h5(job / "features_uni" / f"{slide}.h5", TRIDENT, **arrays)
        arrays["features"] = FEATURES[slide][0]
        save_h5(job / "slide_features_titan" / f"{slide}.h5", TRIDENT, **arrays)
    return tmp_path / "job"


def test_patches_are_cut_from_the_slides(trident, slides):
    collection, examples = read(trident, slides=str(slides))
    assert (collection.layout, collection.embedding) == ("features of slides", (1, 6))
    assert {o.group for o in collection.origins} == {slide[:12] for slide in SLIDES}
    assert len(examples) == 3 * (len(COORDS) - 1)  # the last reaches over the edge
    for slide, pixels in PIXELS.items():
        of_slide = [e for e in examples if e["origin"].name.startswith(slide)]
        for (x, y), embedding, example in zip(COORDS, FEATURES[slide], of_slide, strict=False):
            np.testing.assert_array_equal(example["embedding"], [embedding])
            assert (example["x"], example["y"]) == (round(x / 2), round(y / 2))
            region = Image.fromarray(pixels[y : y + LARGE, x : x + LARGE])
            expected = region.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            np.testing.assert_array_equal(image_of(example), np.asarray(expected))
    about = collection.origins[0].open().about
    assert (about["width"], about["height"], about["over_the_edge"]) == (160, 130, 1)


@pytest.mark.parametrize(
    "attributes",
    [
        CLAM,
        {"patch_size": LARGE, "patch_level": 0},
        {"patch_size": SIDE, "level0_magnification": 40, "target_magnification": 20},
        {"patch_size": SIDE, "patch_level": 0, "custom_downsample": 2},
    ],
)
def test_the_size_is_said_in_several_ways(tmp_path, slides, attributes):
    """CLAM: it is said beside the coordinates alone, in another folder."""
    for slide in SLIDES:
        save_h5(tmp_path / "clam" / "patches" / f"{slide}.h5", attributes, coords=COORDS)
        path = tmp_path / "clam" / "features" / "h5_files" / f"{slide}.h5"
        save_h5(path, features=FEATURES[slide], coords=COORDS)
    collection, _ = read(tmp_path / "clam" / "features", slides=str(slides))
    assert {o.open().about["patch_size_level0"] for o in collection.origins} == {LARGE}


def save_bare(folder, coords=COORDS):
    for slide in SLIDES:
        save_h5(folder / f"{slide}.h5", features=FEATURES[slide], coords=coords)
    return folder


def test_without_a_size_it_has_to_be_given(tmp_path, slides):
    folder = save_bare(tmp_path / "bare")
    with pytest.raises(InputError, match="config.data.patch_size_level0"):
        read(folder, slides=str(slides))
    collection, _ = read(folder, slides=str(slides), patch_size_level0=LARGE)
    assert collection.origins[0].open().about["patch_size_level0"] == LARGE
    for slide in SLIDES:  # those of other coordinates do not count
        save_h5(tmp_path / "patches" / f"{slide}.h5", CLAM, coords=COORDS + 1)
    with pytest.raises(InputError, match="config.data.patch_size_level0"):
        read(folder, slides=str(slides))


def test_a_batch_of_one_is_read(tmp_path, slides):
    for slide in SLIDES:
        arrays = {"features": FEATURES[slide][None], "coords": COORDS[None]}
        save_h5(tmp_path / "set" / f"{slide}.h5", TRIDENT, **arrays)
    collection, examples = read(tmp_path / "set", slides=str(slides))
    assert collection.embedding == (1, 6)
    np.testing.assert_array_equal(examples[1]["embedding"], [FEATURES[SLIDES[0]][1]])


def test_a_missing_slide_fails_alone(trident, slides):
    next(slides.rglob(f"{SLIDES[1]}.png")).unlink()
    collection = find(section(trident, slides=str(slides)))
    by_name = {origin.name.rsplit("/", 1)[0]: origin for origin in collection.origins}
    assert by_name[SLIDES[0]].open().rows == 1
    with pytest.raises(InputError, match=f"{SLIDES[1]}.h5 needs the slide of its name.*none"):
        by_name[SLIDES[1]].open()
    with pytest.raises(InputError, match="name their folder: config.data.slides"):
        read(trident)


def test_a_cut_file_fails_alone(trident, slides):
    path = trident / "20x_32px_0px_overlap" / "features_uni" / f"{SLIDES[0]}.h5"
    path.write_bytes(path.read_bytes()[:1000])
    collection = find(section(trident, slides=str(slides)))
    assert collection.embedding == (1, 6)
    with pytest.raises(InputError, match=f"{SLIDES[0]}.h5 cannot be read as HDF5"):
        collection.origins[0].open()
    assert collection.origins[1].open().rows == 1


def test_files_of_no_patches_and_of_too_many_fail_alone(trident, slides):
    folder = trident / "20x_32px_0px_overlap" / "features_uni"
    arrays = {"features": FEATURES[SLIDES[0]][:0], "coords": COORDS[:0]}
    save_h5(folder / f"{SLIDES[0]}.h5", TRIDENT, **arrays)
    with h5py.File(folder / f"{SLIDES[1]}.h5", "w") as file:  # nothing of it is on the disk
        for name, width, kind in (("features", 6, "f4"), ("coords", 2, "i8")):
            file.create_dataset(name, (10**12, width), kind, chunks=(1024, width))
    collection = find(section(trident, slides=str(slides)))
    assert len(collection.origins) == 3 and collection.embedding == (1, 6)
    none, many, good = collection.origins
    assert good.open().rows == 1
    with pytest.raises(InputError, match=f"{SLIDES[0]}.h5 holds no patches"):
        none.open()
    with pytest.raises(InputError, match=f"{SLIDES[1]}.h5 holds 1000000000000 patches, expected"):
        many.open()


def test_files_that_do_not_go_together_are_refused(trident, slides):
    folder = trident / "20x_32px_0px_overlap" / "features_uni"
    arrays = {"features": FEATURES[SLIDES[1]][:, :3], "coords": COORDS}
    save_h5(folder / f"{SLIDES[1]}.h5", TRIDENT, **arrays)
    with pytest.raises(InputError, match=r"different shapes: \[1, 6\] in .*, \[1, 3\] in"):
        read(trident, slides=str(slides))
    arrays["features"] = FEATURES[SLIDES[1]][:-1]
    save_h5(folder / f"{SLIDES[1]}.h5", TRIDENT, **arrays)
    with pytest.raises(InputError, match="4 features for 5 coords"):
        read(trident, slides=str(slides))


def test_features_of_two_encoders_have_to_be_chosen(trident, slides):
    job = trident / "20x_32px_0px_overlap"
    save_bare(job / "features_ibot")
    with pytest.raises(InputError, match="features in 2 folders .*features_ibot.*features_uni"):
        read(trident, slides=str(slides))
    assert len(read(job / "features_uni", slides=str(slides))[0].origins) == 3


def test_another_slide_and_another_magnification_are_refused(trident, slides, monkeypatch):
    folder = trident / "20x_32px_0px_overlap" / "features_uni"
    arrays = {"features": FEATURES[SLIDES[0]], "coords": COORDS + [0, 100]}
    save_h5(folder / f"{SLIDES[0]}.h5", TRIDENT, **arrays)
    with pytest.raises(InputError, match="is it of another slide"):
        read(trident, slides=str(slides))
    monkeypatch.setattr("ssl_diffusion.data.imports.feature_files.open_image", _at_a_quarter)
    with pytest.raises(InputError, match="0.5 µm per pixel at 32 px, but config.data.mpp is 1"):
        find(section(trident, slides=str(slides), mpp=1.0)).origins[1].open()
    assert find(section(trident, slides=str(slides))).origins[1].open().about["patch_mpp"] == 0.5


def _at_a_quarter(path):
    from dataclasses import replace

    from ssl_diffusion.data.slides import open_image

    return replace(open_image(path), mpp=0.25)
