"""How a model is sampled, from its model.json and the flags of a command."""

import pytest
from absl import flags

from ssl_diffusion.diffusion.sampling import Sampling
from ssl_diffusion.diffusion.schedule import make_schedule
from ssl_diffusion.errors import InputError
from ssl_diffusion.sampling import define_flags, sampling_of

OWN = {"steps": 25, "guidance": 1.5, "stride": 8}


def parsed(*arguments, own=OWN):
    flag_values = flags.FlagValues()
    define_flags(flag_values)
    flag_values(["command", *arguments])
    return sampling_of(own, flag_values)


def test_flags_go_before_the_models_own_settings():
    assert parsed() == Sampling(25, 1.5, "ddim", None)
    given = ["--steps=9", "--solver=unipc", "--guidance=1", "--guidance_interval=0.3,5"]
    assert parsed(*given) == Sampling(9, 1.0, "unipc", (0.3, 5.0))
    own = OWN | {"solver": "dpmpp", "guidance_interval": [0.5, 3.0]}
    assert parsed(own=own) == Sampling(25, 1.5, "dpmpp", (0.5, 3.0))
    assert parsed("--guidance_interval=all", own=own) == Sampling(25, 1.5, "dpmpp", None)


def test_bad_sampling_is_named():
    for text in ("", "1", "low,high", "1,2,3"):
        with pytest.raises(InputError, match=f"--guidance_interval={text}; expected low,high"):
            parsed(f"--guidance_interval={text}")
    with pytest.raises(InputError, match="guidance interval 2,1; expected"):
        parsed("--guidance_interval=2,1")
    with pytest.raises(InputError, match="unknown solver 'euler'"):
        parsed(own=OWN | {"solver": "euler"})
    with pytest.raises(InputError, match="26 sampling steps; expected 1 to 20"):
        parsed("--steps=26").plan(make_schedule("cosine", 20))
