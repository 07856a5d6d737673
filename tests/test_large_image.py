"""The whole image: what one window and apart windows are, any size, grids coarse and dense."""

import os
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import stitch_latents
from conftest import ROOT
from toy import SETTINGS, Toy, large_image, make_toy, random_grid

from ssl_diffusion.diffusion.sampling import Sampling
from ssl_diffusion.diffusion.solvers import solve
from ssl_diffusion.errors import InputError
from ssl_diffusion.stitching.large_image import LargeImage, generate_image
from ssl_diffusion.stitching.noise import START
from ssl_diffusion.stitching.settings import grid_cells
from ssl_diffusion.stitching.windows import window_origins


@pytest.fixture(scope="module")
def toy():
    return make_toy()


def plain(image, noise, embeddings):
    """The patch sampler on windows of noise [n, 8, 8, 2]."""
    denoise = image.model.denoiser(image.settings.sampling.guidance)
    return solve(image.plan, lambda k: (denoise, jnp.asarray(embeddings)), jnp.asarray(noise))


@pytest.mark.parametrize("change", [{"solver": "unipc"}, {"scheme": "shifted", "stride": 8}])
def test_one_window_is_the_plain_sampler(toy, change):
    image = large_image(toy, 16, 16, steps=10, **change)
    expected = plain(image, image.noise(START, 0, 8)[None], image.grid[0])
    # Not bit for bit: eps is recomputed from x0. A few float32 roundings of values around 1.
    np.testing.assert_allclose(image.latent(), expected[0], atol=3e-6)


def test_windows_apart_are_so_many_plain_samplers(toy):
    image = large_image(toy, 32, 48, stride=8, weights="uniform")
    canvas = np.asarray(image.latent())
    apart = lambda canvas: canvas.reshape(2, 8, 3, 8, 2).swapaxes(1, 2).reshape(6, 8, 8, 2)  # noqa: E731
    expected = plain(image, apart(image.noise(START, 0, 16)), image.grid.reshape(6, 1, 3))
    np.testing.assert_allclose(apart(canvas), expected, atol=3e-6)


@pytest.mark.parametrize(
    ("height", "width", "change"),
    [
        (16, 16, {"solver": "ancestral"}),
        (17, 33, {"solver": "unipc"}),
        (31, 48, {"scheme": "shifted", "solver": "dpmpp"}),
        (16, 50, {"scheme": "shifted"}),
        (40, 17, {"grid_stride_px": 6}),
    ],
)
def test_any_size_from_one_patch_on(toy, height, width, change):
    image = large_image(toy, height, width, **change)
    size = width, height
    pixels = generate_image(toy, image.grid, size=size, settings=image.settings, window_batch=4)
    assert pixels.shape == (height, width, 3) and pixels.dtype == np.uint8
    assert pixels.std() > 10


@pytest.mark.parametrize("change", [{"solver": "ancestral"}, {"scheme": "shifted"}])
def test_the_same_seed_gives_the_same_image_and_another_another(toy, change):
    def latent(seed):
        return np.asarray(large_image(toy, 32, 32, seed=seed, **change).latent())

    first = latent(0)
    np.testing.assert_array_equal(first, latent(0))
    assert np.abs(first - latent(1)).mean() > 0.5


def test_noise_of_a_larger_canvas_begins_with_that_of_a_smaller_one(toy):
    small, large = large_image(toy, 16, 33), large_image(toy, 40, 64)
    for evaluation in (START, 0, 2):
        whole = large.noise(evaluation, 0, large.height)
        np.testing.assert_array_equal(small.noise(evaluation, 0, 8), whole[:8, :17])
        np.testing.assert_array_equal(large.noise(evaluation, 5, 8), whole[5:13])


def test_an_embedding_acts_where_its_cell_lies(toy):
    grid = random_grid(2, 3)
    changed = grid.copy()
    changed[0, 2] += 1.0  # top right
    latents = [
        np.asarray(large_image(toy, 32, 48, grid=g, stride=8, weights="uniform").latent())
        for g in (grid, changed)
    ]
    difference = np.abs(latents[0] - latents[1]).mean(2)
    assert difference[:8, 16:].mean() > 0.1
    difference[:8, 16:] = 0
    assert difference.max() == 0


def test_no_evaluation_is_guided_outside_the_interval(toy):
    none = large_image(toy, 16, 16, guidance=5.0, guidance_interval=(1e-9, 1e-8)).latent()
    all_of_it = large_image(toy, 16, 16, guidance=5.0).latent()
    np.testing.assert_array_equal(none, large_image(toy, 16, 16, guidance=1.0).latent())
    assert np.abs(none - all_of_it).mean() > 0.1


# Devices and processes


@pytest.fixture(scope="module")
def one_device():
    return stitch_latents.latents()


def start(out, devices, *process):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, ROOT / "tests" / "stitch_latents.py", out, *map(str, process)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
        stdout=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(("processes", "devices"), [(1, 2), (1, 8), (2, 2)])
def test_devices_processes_and_window_batches_change_the_canvas_by_rounding_only(
    one_device, tmp_path, processes, devices
):
    files = [tmp_path / f"{index}.npz" for index in range(processes)]
    if processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        running = [start(file, devices, index, processes, port) for index, file in enumerate(files)]
    else:
        running = [start(files[0], devices)]
    assert [process.wait(timeout=300) for process in running] == [0] * processes
    found, *others = (np.load(file) for file in files)
    assert found["devices"] == processes * devices
    for case, canvas in one_device.items():
        # A device has another number of windows at once: its matrix products round differently, and
        # what windows give is added up in another order. Measured: 3 units in the last place of
        # the canvas's largest values after three evaluations.
        first = one_device[f"{case.split()[0]} 1"]
        unit = np.spacing(np.abs(first).max())
        assert np.abs(canvas - first).max() <= 8 * unit
        assert np.abs(found[case] - first).max() <= 8 * unit
        for other in others:
            np.testing.assert_array_equal(other[case], found[case])


# Grids


def test_a_grid_has_a_cell_for_every_window_of_its_stride():
    for stride in (2, 6, 16):
        for size in range(16, 90):
            windows = window_origins(-(-size // 2), 8, stride // 2)
            assert grid_cells(size, 16, stride) == len(windows)


@pytest.mark.parametrize(("height", "width"), [(40, 48), (41, 33)])
def test_a_dense_grid_gives_every_window_its_own_embedding(toy, height, width):
    image = large_image(toy, height, width, stride=3, grid_stride_px=6)
    layout = image.scheme.layout(0)
    assert image.grid.shape[:2] == (len(layout.origins_y), len(layout.origins_x))
    context = image.context(layout.origins_y, layout.origins_x)
    np.testing.assert_allclose(context, image.grid, atol=1e-6)


def test_contexts_of_some_rows_of_windows_are_those_of_all(toy):
    image = large_image(toy, 95, 33)  # only the cells around the rows are looked at
    layout = image.scheme.layout(0)
    whole = image.context(layout.origins_y, layout.origins_x)
    for first in range(len(layout.origins_y) - 1):
        some = image.context(layout.origins_y[first : first + 2], layout.origins_x)
        np.testing.assert_allclose(some, whole[first : first + 2], atol=1e-6)


def test_dense_and_coarse_grids_of_one_embedding_make_the_same_image(toy):
    images = []
    for spacing in (16, 6):
        cells = grid_cells(32, 16, spacing), grid_cells(41, 16, spacing)
        grid = np.tile(random_grid(1, 1), (*cells, 1, 1))
        images.append(large_image(toy, 32, 41, grid=grid, grid_stride_px=spacing).latent())
    np.testing.assert_array_equal(*images)


@pytest.mark.parametrize(
    ("grid", "size", "settings", "message"),
    [
        (random_grid(2, 2), (32, 15), {}, "15x32 px; expected at least one patch, 16x16 px"),
        (random_grid(2, 2), (32, 33), {}, "2 rows and 2 columns.*expected 2 rows and 3 columns"),
        (random_grid(2, 2), (32, 32), {"grid_stride_px": 8}, "expected 3 rows and 3 columns"),
        (random_grid(2, 2), (32, 32), {"grid_stride_px": 7}, "every 7 px; expected a multiple of"),
        (random_grid(2, 2), (32, 32), {"grid_stride_px": 18}, "every 18 px; .* up to the patch"),
        (random_grid(2, 2)[..., :2], (32, 32), {}, r"\[2, 2, 1, 2\].*\[rows, cols, 1, 3\]"),
        (random_grid(2, 4).reshape(2, 2, 2, 3), (32, 32), {}, r"\[2, 2, 2, 3\]"),
        (random_grid(2, 2)[0, 0], (32, 32), {}, r"shape \[1, 3\]"),
        (random_grid(0, 2), (32, 32), {}, r"\[0, 2, 1, 3\]"),
        (random_grid(2, 2) * np.float32("nan"), (32, 32), {}, "NaN, infinity or .* in 4 cells"),
        (random_grid(2, 2).astype(int), (32, 32), {}, "grid of int64"),
        (random_grid(2, 2), (32, 32), {"stride": 9}, "stride 9; expected 1 to 8"),
        (random_grid(2, 2), (32, 32), {"stride": 0, "scheme": "shifted"}, "stride 0; expected 1"),
        (random_grid(2, 2), (32, 32), {"scheme": "spot"}, "unknown scheme 'spot'"),
        (random_grid(2, 2), (32, 32), {"weights": "flat"}, "unknown window weights 'flat'"),
        (random_grid(2, 2), (32, 32), {"sampling": Sampling(1001, 2.0)}, "1001 sampling steps"),
        (random_grid(2, 2), (32, 32), {"window_batch": 0}, "window batch 0"),
    ],
)
def test_what_cannot_be_made_is_refused_before_the_model_runs(toy, grid, size, settings, message):
    class Untouched(Toy):
        def context(self, embedding):
            raise AssertionError("reached the model")

    settings = {"window_batch": 4} | settings
    window_batch = settings.pop("window_batch")
    model, settings = Untouched(toy.params), SETTINGS._replace(**settings)
    with pytest.raises(InputError, match=message):
        LargeImage(model, grid, *size, settings, window_batch)
    with pytest.raises(InputError, match=message):
        generate_image(model, grid, size=size[::-1], settings=settings, window_batch=window_batch)
