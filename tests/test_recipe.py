"""The `data` section: what cannot be, and how resolutions are told."""

import pytest
from ml_collections import ConfigDict

from ssl_diffusion.data import recipe
from ssl_diffusion.errors import InputError


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"patch_px": 0}, "patch_px is 0"),
        ({"source_mpp": -1.0}, "source_mpp is -1"),
        ({"min_saturation": 1.5}, "min_saturation is 1.5"),
        ({"held_out": (0.5, 0.5)}, "held_out is .*expected the parts of val and test"),
        ({"bands": (0, 1, 2)}, "bands is"),
        ({"value_range": (10, 0)}, "value_range is"),
        ({"jpeg_quality": 0}, "jpeg_quality is 0"),
        ({"variants": 3}, "variants is 3"),
    ],
)
def test_a_recipe_that_cannot_be(entries, message):
    with pytest.raises(InputError, match=message):
        recipe.check(ConfigDict(recipe.section() | entries))


@pytest.mark.parametrize(
    "text, mpp", [("0.5", 0.5), ("0.25um", 0.25), ("2 µm", 2.0), ("30m", 3e7), ("0.6m", 6e5)]
)
def test_resolutions_are_told_in_micrometres_or_metres(text, mpp):
    assert recipe.parse_mpp(text, "mpp") == pytest.approx(mpp)


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "half", "3km"])
def test_what_is_no_resolution(text):
    with pytest.raises(InputError, match="--mpp="):
        recipe.parse_mpp(text, "mpp")
