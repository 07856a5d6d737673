"""The learning rate over a run, and which parameters decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import load_config

from ssl_diffusion.errors import InputError
from ssl_diffusion.training.optimizer import learning_rate, make_optimizer


@pytest.fixture
def config():
    config = load_config("demo")
    config.steps = 10
    config.optimizer.update({"learning_rate": 0.5, "warmup_steps": 4, "decay": "constant"})
    return config


def rates(config) -> np.ndarray:
    """Of every step of the run."""
    rate = learning_rate(config)
    return np.array([rate(taken) for taken in range(config.steps)])


def test_the_rate_warms_up_to_its_peak_and_stays_or_decays(config):
    warm = [0.125, 0.25, 0.375, 0.5]
    np.testing.assert_allclose(rates(config), warm + 6 * [0.5])
    config.optimizer.decay = "cosine"
    cosine = 0.25 * (1 + np.cos(np.pi * np.arange(1, 7) / 7))
    np.testing.assert_allclose(rates(config), np.append(warm, cosine), rtol=1e-6)


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_without_warm_up_the_first_step_is_at_the_peak(config, decay):
    config.optimizer.update({"warmup_steps": 0, "decay": decay})
    assert rates(config)[0] == 0.5 and (rates(config) > 0).all()


@pytest.mark.parametrize(
    "name, value",
    [("learning_rate", -1.0), ("clip_norm", 0.0), ("b2", 1.0), ("weight_decay", -0.1)],
)
def test_numbers_that_cannot_train_are_refused(config, name, value):
    config.optimizer[name] = value
    with pytest.raises(InputError, match=f"config.optimizer.{name} is {value}, expected"):
        learning_rate(config)


def test_kernels_decay_and_nothing_else(config):
    config.optimizer.update({"warmup_steps": 0, "weight_decay": 0.1})
    block = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    params = {
        "block": block,
        "pos_embed": jnp.ones((1, 4, 3)),
        "scale_shift_table": jnp.ones((6, 3)),
    }
    optimizer = make_optimizer(config)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    after = optax.apply_updates(params, updates)
    np.testing.assert_allclose(after["block"].pop("kernel"), 1 - 0.5 * 0.1, rtol=1e-6)
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(after))
