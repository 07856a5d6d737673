"""Canvases beyond memory: the same image as in memory, taken up again wherever it was stopped."""

import json
from functools import partial

import numpy as np
import pytest
from toy import large_image, make_toy

from ssl_diffusion.errors import InputError
from ssl_diffusion.stitching.decode import Tiling, decode_canvas
from ssl_diffusion.stitching.sweep import Sweep, check_disk

TILING = Tiling(12, 4)
SMALL, LARGE = 1, 10**9  # bytes: bands of one row of windows, and of all


@pytest.fixture(scope="module")
def toy():
    return make_toy()


make = partial(large_image, height_px=63, width_px=47)


class Stop(Exception):
    pass


class Bar:
    """Stands for tqdm; raises Stop at the n-th update of all bars of a run."""

    left = None

    def __init__(self, **kw):
        pass

    def update(self, n=1):
        if Bar.left is not None:
            Bar.left -= 1
            if Bar.left < 0:
                raise Stop

    def close(self):
        pass


def run(image, folder, max_bytes, stop_after=None):
    Bar.left = stop_after
    return np.array(Sweep(image, folder, {"seed": image.settings.seed}, max_bytes).run(TILING, Bar))


SOLVERS = [
    {"solver": "ddim"},
    {"solver": "unipc", "scheme": "shifted"},
    {"solver": "ancestral", "stride": 8},
]


@pytest.mark.parametrize("change", SOLVERS)
def test_a_sweep_gives_the_image_made_in_memory(toy, tmp_path, change):
    image = make(toy, **change)
    latent = image.latent()
    whole = decode_canvas(toy.decode, latent, 2, TILING)[:63, :47]
    assert whole.std() > 10
    bands = run(image, tmp_path / "a", SMALL)
    assert bands.shape == (63, 47, 3)
    # Windows add up in another order: rounding, which may tip a pixel to the next level.
    difference = np.abs(bands.astype(int) - whole)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    state = np.load(tmp_path / "a" / f"state_{'ab'[len(image.plan.timesteps) % 2]}.npy")
    np.testing.assert_allclose(state[:, 0], latent, atol=2e-5)


def test_work_that_was_stopped_anywhere_goes_on_to_the_same_bits(toy, tmp_path):
    image = make(toy, solver="unipc", scheme="shifted")
    whole = run(image, tmp_path / "whole", SMALL)
    stops = 0
    while True:
        try:
            found = run(image, tmp_path / "parts", SMALL, stop_after=2)
            break
        except Stop:
            stops += 1
    assert stops > 5
    np.testing.assert_array_equal(found, whole)


def test_a_stop_between_writing_and_noting_does_no_harm(toy, tmp_path, monkeypatch):
    image = make(toy, solver="dpmpp")
    whole = run(image, tmp_path / "whole", SMALL)
    left = [4]

    def save(self, done):
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        original(self, done)

    original = Sweep._save
    monkeypatch.setattr(Sweep, "_save", save)
    with pytest.raises(Stop):
        run(image, tmp_path / "parts", SMALL)
    monkeypatch.undo()
    np.testing.assert_array_equal(run(image, tmp_path / "parts", SMALL), whole)


def test_work_on_another_image_is_not_taken_up(toy, tmp_path):
    with pytest.raises(Stop):
        run(make(toy), tmp_path / "work", SMALL, stop_after=2)
    progress = json.loads((tmp_path / "work" / "progress.json").read_text())
    assert progress["done"]["band"] == 3
    with pytest.raises(InputError, match="unfinished work on an image with other settings"):
        run(make(toy, seed=1), tmp_path / "work", SMALL)


def test_the_need_of_disk_is_what_the_work_takes(toy, tmp_path):
    sweep = Sweep(make(toy, solver="dpmpp"), tmp_path / "work", {}, SMALL)
    states = 2 * 32 * 2 * 24 * 2 * 4  # of x and one x0, float32
    assert sweep.disk_bytes == states + 63 * 47 * 3 * 4 // 3
    with pytest.raises(InputError, match="MB needed in .*, .* MB free"):
        check_disk(tmp_path / "not" / "there", 10**18)
    check_disk(tmp_path, 1)


def test_work_goes_on_in_its_own_bands_whatever_memory_there_is_now(toy, tmp_path):
    image = large_image(toy, 63, 47)
    whole = run(image, tmp_path / "whole", SMALL)
    with pytest.raises(Stop):
        run(image, tmp_path / "parts", SMALL, stop_after=3)
    np.testing.assert_array_equal(run(image, tmp_path / "parts", LARGE), whole)


def test_a_folder_that_is_no_work_or_damaged_is_refused(toy, tmp_path):
    image = large_image(toy, 63, 47)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else than unfinished work"):
        run(image, tmp_path / "mine", SMALL)
    with pytest.raises(Stop):
        run(image, tmp_path / "parts", SMALL, stop_after=2)
    (tmp_path / "parts" / "state_b.npy").unlink()
    with pytest.raises(InputError, match="is damaged; delete the folder"):
        run(image, tmp_path / "parts", SMALL)
    (tmp_path / "parts" / "progress.json").write_text("[]")
    with pytest.raises(InputError, match="with other settings"):
        run(image, tmp_path / "parts", SMALL)
