"""Lists of patches as the published large-image model is trained on."""

import h5py
import numpy as np
import pytest
from cut_before import SIDE, image_of, read, save_image, save_npy

from ssl_diffusion.errors import InputError

SLIDES = ("TCGA-A1-0001-01Z-00-DX1", "TCGA-A1-0001-01Z-00-DX2", "TCGA-B2-0002-01Z-00-DX1")
OTHER = ["TCGA-C3-0003-01Z-00-DX1/5_5.jpeg"]
NAMES = [f"{slide}/{column}_7.jpeg" for column in range(4) for slide in SLIDES]
FEATURES = np.random.default_rng(0).normal(size=(len(NAMES), 6)).astype(np.float32)
INDICES = {"train": [0, 3, 6, 9, 1], "test": [2, 5, 8]}


def save_features(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


@pytest.fixture
def brca(tmp_path):
    """The layout of BRCA: list, features, split files, and images below pyramid/."""
    for index, name in enumerate(NAMES):
        save_image(tmp_path / "pyramid" / name, index)
    save_npy(tmp_path / "patch_list_20x.npy", np.array(NAMES))
    save_npy(tmp_path / "patch_list_5x.npy", np.array(["missing/1_1.jpeg"]))
    save_features(
        tmp_path / "ssl_features" / "features.h5", feat_20x=FEATURES, feat_5x=FEATURES[:1]
    )
    for split, indices in INDICES.items():
        (tmp_path / "train_test_split").mkdir(exist_ok=True)
        np.savez(
            tmp_path / "train_test_split" / f"{split}_all.npz",
            **{f"indices_{split}_20x": np.array(indices), f"indices_{split}_5x": np.array([0])},
        )
    return tmp_path


def test_patches_embeddings_and_splits_go_by_the_index(brca):
    collection, examples = read(brca)
    assert (collection.layout, collection.embedding) == ("published", (1, 6))
    assert {o.group for o in collection.origins} == {*SLIDES}
    for split, indices in INDICES.items():
        found = {}
        for example in (e for e in examples if e["split"] == split):
            (index,) = np.flatnonzero((FEATURES == example["embedding"]).all(axis=1))
            found[index] = example
        assert sorted(found) == sorted(indices)
        for index, example in found.items():
            assert example["encoded"] == (brca / "pyramid" / NAMES[index]).read_bytes()
            assert (example["x"], example["y"]) == (index // 3 * SIDE, 7 * SIDE)
            assert example["origin"].group == NAMES[index].split("/")[0]


def test_the_list_is_that_of_the_resolution(brca):
    with pytest.raises(InputError, match="2 of them|0 of them of 10x"):
        read(brca, mpp=1.0)
    with pytest.raises(InputError, match="missing/1_1.jpeg cannot be read"):
        save_npy(brca / "train_test_split" / "unrelated.npy", np.zeros(1))
        np.savez(brca / "train_test_split" / "train.npz", indices_train_5x=np.array([0]))
        read(brca, mpp=2.0)


def test_without_split_files_patients_are_drawn_and_pieces_left_out(tmp_path):
    """The layout of CRC: images below the folder itself, one of them cut by the slide's edge."""
    names = NAMES + OTHER
    for index, name in enumerate(names):
        save_image(tmp_path / name, index, SIDE - (index == 4))
    save_npy(tmp_path / "patches_20x_all.npy", np.array(names).astype("S"))
    save_features(tmp_path / "features.h5", feat_20x=np.append(FEATURES, FEATURES[:1], 0))
    collection, examples = read(tmp_path)
    assert len(examples) == len(names) - 1
    assert not any((e["embedding"] == FEATURES[4]).all() for e in examples)
    splits = {}
    for origin in collection.origins:
        splits.setdefault(origin.group, set()).add(origin.split)
    assert {*splits} == {
        "TCGA-A1-0001",
        "TCGA-B2-0002",
        "TCGA-C3-0003",
    }  # both slides of a patient in one
    assert sorted(splits.values(), key=min) == [{"test"}, {"train"}, {"val"}]
    again, _ = read(tmp_path)
    assert [o.split for o in again.origins] == [o.split for o in collection.origins]


def test_satellite_lists_are_by_split(tmp_path):
    lists = {"train": ["a_1.png", "b_2.png"], "test": ["c_3.png"]}
    (tmp_path / "naip_ldm_metadata").mkdir()
    np.savez(tmp_path / "naip_ldm_metadata" / "patch_list.npz", **lists)
    features = {f"feat_{s}": np.full((len(names), 4), len(s)) / 1 for s, names in lists.items()}
    save_features(tmp_path / "naip_ldm_metadata" / "features.h5", **features)
    images = {
        n: save_image(tmp_path / "naip_patches" / n, ord(n[0])) for n in sum(lists.values(), [])
    }
    _, examples = read(tmp_path)
    found = {e["origin"].group: e for e in examples}
    assert {f"{name}.png": e["split"] for name, e in found.items()} == {
        name: split for split, names in lists.items() for name in names
    }
    for name, example in found.items():
        np.testing.assert_array_equal(image_of(example), images[f"{name}.png"])
        assert example["embedding"].tolist() == [[len(example["split"])] * 4]


def test_without_features_there_are_no_embeddings(brca):
    (brca / "ssl_features" / "features.h5").unlink()
    collection, examples = read(brca)
    assert collection.embedding is None and "embedding" not in examples[0]


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("executed",))


def test_pickles_are_refused_and_not_executed(brca):
    save_npy(brca / "patch_list_20x.npy", np.array([Bomb()], object))
    with pytest.raises(InputError, match=r"pickled.*astype\(str\)"):
        read(brca)
    save_npy(brca / "patch_list_20x.npy", np.array(NAMES))
    np.savez(brca / "train_test_split/train_all.npz", indices_train_20x=np.array([Bomb()], object))
    with pytest.raises(InputError, match=r"pickled.*astype\(int\)"):
        read(brca)


@pytest.mark.parametrize("name", ["../secret.jpeg", "/etc/secret.jpeg", "a/../../b.jpeg", ""])
def test_paths_stay_in_the_folder(brca, name):
    save_npy(brca / "patch_list_20x.npy", np.array([name, *NAMES[1:]]))
    with pytest.raises(InputError, match="expected a path below"):
        read(brca)


def test_counts_have_to_match(brca):
    path = brca / "ssl_features" / "features.h5"
    save_features(path, feat_20x=FEATURES[:-1])
    with pytest.raises(InputError, match=r"feat_20x of .*features.h5 has 11 rows.* 12 patches"):
        read(brca)
    save_features(path, feat_20x=FEATURES)
    np.savez(brca / "train_test_split" / "test_all.npz", indices_test_20x=np.array([12]))
    with pytest.raises(InputError, match="indices 12 to 12.* 12 patches"):
        read(brca)


def test_features_in_several_files_have_to_be_named(brca):
    save_features(brca / "ssl_features" / "features_ibot.h5", feat_20x=FEATURES[:, :3])
    with pytest.raises(InputError, match="2 have feat_20x; name one in config.data.features"):
        read(brca)
    named = str(brca / "ssl_features" / "features_ibot.h5")
    assert read(brca, features=named)[0].embedding == (1, 3)
    with pytest.raises(InputError, match="none.h5 cannot be read"):
        read(brca, features=str(brca / "none.h5"))


def test_damaged_files_are_named(brca):
    path = brca / "ssl_features" / "features.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="features.h5 cannot be read as HDF5"):
        read(brca)
    with h5py.File(path, "w") as file:
        file["feat_20x"] = h5py.ExternalLink("other.h5", "feat_20x")
    with pytest.raises(InputError, match="an array of its own"):
        read(brca)
    save_features(path, feat_20x=np.where(FEATURES == FEATURES[3, 1], np.nan, FEATURES))
    with pytest.raises(InputError, match="no finite numbers"):
        read(brca)
    path.write_bytes(whole)
    image = brca / "pyramid" / NAMES[6]
    image.write_bytes(image.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"{NAMES[6]} is cut off"):
        read(brca)


def test_patches_of_another_size_are_refused(brca):
    with pytest.raises(InputError, match="32x32 px, expected 16x16"):
        read(brca, patch_px=16)
    with pytest.raises(InputError, match="smaller than 64x64"):
        read(brca, patch_px=64)
