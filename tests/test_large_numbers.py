"""Numbers of stitched images: where crops lie, cells are those of the grid."""

import numpy as np
from fake_evaluation import FakeEncoder, picture

from ssl_diffusion.evaluation.large_numbers import LargeImage, cells_of, crop_numbers
from ssl_diffusion.evaluation.spaces import encoder_space


def test_crops_are_of_the_same_places_and_the_reference_is_of_others():
    space = encoder_space(FakeEncoder(), "encoder", "FD", "0")
    none = np.array([], int)
    images = [
        LargeImage(real, 255 - real, real, 16, none, none, None, "", None)
        for real in (picture(seed, 96) for seed in range(2))
    ]
    seen = {}

    def features(space, images):
        seen[images.name] = np.concatenate([*images.chunks()])
        return space.embed(seen[images.name])

    numbers = crop_numbers(images, [space], features, 16, 12)["encoder"]["sets"]
    np.testing.assert_array_equal(seen["crops, reconstruction"], 255 - seen["crops, stitched"])
    assert numbers["stitched"]["n"] == 24
    np.testing.assert_array_equal(seen["crops, real"], seen["crops, stitched"])
    assert not np.array_equal(seen["crops, reference"], seen["crops, real"])
    assert numbers["stitched"]["fd"] == numbers["real"]["fd"]
    assert numbers["real"]["fd"]["value"] < numbers["reconstruction"]["fd"]["value"]


def test_cells_lie_row_by_row_and_the_last_ends_with_the_image():
    image = np.arange(20 * 32 * 3, dtype=np.uint32).reshape(20, 32, 3).astype(np.uint8)
    cells = cells_of(image, 16)
    assert cells.shape == (4, 16, 16, 3)
    np.testing.assert_array_equal(cells[1], image[:16, 16:])
    np.testing.assert_array_equal(cells[2], image[4:, :16])
