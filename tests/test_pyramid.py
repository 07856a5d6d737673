"""Levels of a pyramid: averages of one another, in as much memory as a band."""

from pathlib import Path

import numpy as np
import pytest

from ssl_diffusion.stitching import pyramid
from ssl_diffusion.stitching.mapped import read_rows, release
from ssl_diffusion.stitching.pyramid import build_levels, level_sizes


def averaged(image: np.ndarray) -> np.ndarray:
    """Every pixel by itself: the mean of what there is of its 2x2, halves rounded up."""
    height, width, _ = image.shape
    half = np.zeros((-(-height // 2), -(-width // 2), 3), np.uint8)
    for y in range(half.shape[0]):
        for x in range(half.shape[1]):
            box = image[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].reshape(-1, 3).astype(np.float64)
            half[y, x] = np.floor(box.mean(axis=0) + 0.5)
    return half


@pytest.mark.parametrize(("width", "height"), [(37, 23), (38, 23), (37, 24), (38, 24), (40, 1)])
@pytest.mark.parametrize("band", [1, 100, 2**22])
def test_levels_are_averages_whatever_the_bands(width, height, band, monkeypatch, tmp_path):
    monkeypatch.setattr(pyramid, "SMALLEST", 8)
    monkeypatch.setattr(pyramid, "BAND_PX", band)
    base = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    expected = [base]
    while max(expected[-1].shape[:2]) > 8:
        expected.append(averaged(expected[-1]))
    for folder in (None, tmp_path):
        found = build_levels(base, folder)
        assert [level.shape[1::-1] for level in found] == level_sizes(width, height)
        for level, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(level, wanted)
            assert isinstance(level, np.memmap) == (folder is not None and level is not base)


def test_levels_end_at_512_px():
    assert level_sizes(512, 512) == [(512, 512)]
    assert level_sizes(513, 40) == [(513, 40), (257, 20)]
    assert level_sizes(100_000, 12_001)[-1] == (391, 47)


def mapped_kib(path: Path) -> int:
    """How much of a file this process has in memory."""
    text = Path("/proc/self/smaps").read_text()
    mapping = text[text.index(str(path)) :]
    return int(mapping[mapping.index("Rss:") :].split()[1])


def test_pages_of_a_file_are_let_go_and_what_was_written_stays(tmp_path):
    path = tmp_path / "level.npy"
    level = np.lib.format.open_memmap(path, "w+", np.uint8, (1000, 1000, 3))
    level[:] = 5
    assert mapped_kib(path) > 2900
    release(level[10:, :900])  # a view lets go of the whole file
    assert mapped_kib(path) == 0
    assert (read_rows(level, 990, 2000) == 5).all() and mapped_kib(path) == 0
    private = np.load(path, mmap_mode="c")
    private[:] = 6
    release(private)
    assert (private == 6).all() and (level == 5).all()
