"""A masked part made anew: what stays, what changes, and how one goes over into the other."""

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import distance_transform_cdt
from toy import large_image, make_toy

from ssl_diffusion.errors import InputError
from ssl_diffusion.stitching.decode import Tiling
from ssl_diffusion.stitching.edit import edit_image, reach
from ssl_diffusion.stitching.large_image import Kept, LargeImage
from ssl_diffusion.stitching.sweep import Sweep
from ssl_diffusion.stitching.windows import window_origins


@pytest.fixture(scope="module")
def toy():
    return make_toy()


def encode(images):
    """Latents that the toy's decoder makes the images' averages of, [n, h, w, 2]."""
    n, height, width, _ = images.shape
    blocks = images.reshape(n, height // 2, 2, width // 2, 2, 3).mean(axis=(2, 4, 5))
    latent = np.arctanh(np.clip(blocks / 127.5 - 1, -0.99, 0.99)).astype(np.float32)
    return np.stack([latent, np.zeros_like(latent)], axis=-1)


def picture(height, width):
    """Grey, smooth, and of another value at every pixel nearby."""
    y, x = np.mgrid[:height, :width]
    grey = 128 + 50 * np.sin(y / 9) + 50 * np.cos(x / 7)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


def cells_of(image):
    """(top, left) of all cells, px; the last ones flush with the canvas."""
    spacing = image.settings.grid_stride_px // 2
    return [2 * window_origins(size, 8, spacing) for size in (image.height, image.width)]


SIZES = [
    ((80, 96), [(2, 3)], {}),
    ((80, 96), [(0, 0), (4, 1)], {}),
    ((75, 91), [(4, 5)], {}),  # the last cells lie flush, within the ones before
    ((75, 91), [(1, 4), (3, 5)], {}),
    ((75, 50), [(3, 1)], {}),
    ((64, 64), [(2, 5)], {"grid_stride_px": 8}),
    ((33, 35), [(0, 1)], {}),
]


@pytest.mark.parametrize(("size", "masked", "change"), SIZES)
def test_beyond_the_reach_of_the_mask_no_pixel_changes(toy, size, masked, change):
    image = large_image(toy, *size, **change)
    reference = picture(*size)
    mask = np.zeros(image.grid.shape[:2], bool)
    covered = np.zeros(size, bool)
    for row, col in masked:
        mask[row, col] = True
        top, left = (origins[at] for origins, at in zip(cells_of(image), (row, col), strict=True))
        covered[top : top + 16, left : left + 16] = True
    edited = edit_image(image, reference, mask, encode)
    assert edited.shape == reference.shape and edited.dtype == np.uint8
    distance = distance_transform_cdt(~covered, "chessboard")
    difference = np.abs(edited.astype(int) - reference)
    assert difference[distance > 8].size and difference[distance > 8].max() == 0
    assert difference[covered].mean() > 10
    # Around it, what was decoded is the average of 2x2 pixels: it fades out.
    assert 0 < difference[(distance > 0) & (distance <= 8)].mean() < 10


def test_only_what_the_windows_at_the_mask_see_is_made(toy, monkeypatch):
    image = large_image(toy, 160, 160)
    mask = np.zeros((10, 10), bool)
    mask[4, 7:9] = True
    made = []
    original = LargeImage.pixels
    monkeypatch.setattr(
        LargeImage, "pixels", lambda self, bar: made.append(self) or original(self, bar)
    )
    edit_image(image, picture(160, 160), mask, encode)
    part = made[0]
    assert (part.height_px, part.width_px) == (3 * 16, 4 * 16)
    np.testing.assert_array_equal(part.grid, image.grid[3:6, 6:10])
    assert part.kept.mask.sum() == 2 * 8 * 8


def test_all_cells_masked_is_the_image_itself(toy):
    image = large_image(toy, 48, 40)
    edited = edit_image(image, picture(48, 40), np.ones(image.grid.shape[:2], bool), encode)
    np.testing.assert_array_equal(edited, image.pixels())


# The canvas


def kept_canvas(image, seed=0):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(image.height, image.width, 2)).astype(np.float32)
    mask = np.zeros((image.height, image.width), bool)
    mask[8:16, 8:20] = True
    return dataclasses.replace(image, kept=Kept(latent, mask))


@pytest.mark.parametrize("change", [{}, {"scheme": "shifted", "solver": "ancestral"}])
def test_kept_latents_stay_and_decide_what_is_made_beside_them(toy, change):
    image = large_image(toy, 48, 64, **change)
    one, other = kept_canvas(image), kept_canvas(image, seed=1)
    latents = [np.asarray(part.latent()) for part in (one, other, image)]
    mask = one.kept.mask
    np.testing.assert_array_equal(latents[0][~mask], one.kept.latent[~mask])
    assert np.abs(latents[0] - latents[1])[mask].mean() > 0.02
    assert np.abs(latents[0] - latents[2])[mask].mean() > 0.02


class Silent:
    def __init__(self, **kw):
        pass

    def update(self, n=1):
        pass

    close = update


def test_a_sweep_keeps_them_too(toy, tmp_path):
    image = kept_canvas(large_image(toy, 63, 47, solver="dpmpp"))
    Sweep(image, tmp_path / "work", {}, 1).run(Tiling(12, 4), Silent)
    state = np.load(tmp_path / "work" / f"state_{'ab'[len(image.plan.timesteps) % 2]}.npy")[:, 0]
    np.testing.assert_allclose(state, image.latent(), atol=2e-5)
    np.testing.assert_array_equal(state[~image.kept.mask], image.kept.latent[~image.kept.mask])


# The way over


def test_the_reach_falls_linearly_around_the_masked_cells():
    mask = np.array([[True, False, False], [False, False, False]])
    weight = reach(mask, np.array([0, 4]), np.array([0, 4, 6]), 4, 3, (8, 10))
    np.testing.assert_allclose(weight[0], [1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0])
    np.testing.assert_allclose(weight[:, 3], [1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
    assert weight[5, 4] == 0.5  # the larger of two distances
    mask[1, 2] = True
    both = reach(mask, np.array([0, 4]), np.array([0, 4, 6]), 4, 3, (8, 10))
    assert (both[4:, 6:] == 1).all() and (both >= weight).all() and both[0, 9] == 0


@pytest.mark.parametrize(
    ("reference", "mask", "message"),
    [
        (picture(48, 40), np.ones((3, 3), bool), "40x48 px for an edited image of 48x48 px"),
        (picture(48, 48), np.ones((3, 2), bool), r"mask of \[3, 2\] cells, 6 .*\[3, 3\]"),
        (picture(48, 48), np.zeros((3, 3), bool), r"mask of \[3, 3\] cells, 0 of them"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_encoded(toy, reference, mask, message):
    with pytest.raises(InputError, match=message):
        edit_image(large_image(toy, 48, 48), reference, mask, lambda images: pytest.fail("encoded"))


def test_kept_latents_of_another_canvas_are_refused(toy):
    kept = kept_canvas(large_image(toy, 48, 64)).kept
    with pytest.raises(InputError, match=r"kept latents of shape \[24, 32, 2\].*\[24, 24, 2\]"):
        dataclasses.replace(large_image(toy, 48, 48), kept=kept)
