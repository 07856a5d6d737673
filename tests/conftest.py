"""Built once a session: records of the shipped slide and a model trained for a few steps."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

ROOT = Path(__file__).parents[1]


def load_config(name: str, *arguments: str):
    """`get_config(*arguments)` of configs/`name`.py."""
    spec = importlib.util.spec_from_file_location(
        f"configs_{name}", ROOT / "configs" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arguments)


def shrink(config):
    """The same run for a test: every part of the network there, and small; a few steps."""
    config.steps, config.batch_size, config.log_every = 6, 8, 1
    config.checkpoint_every, config.sample_every = 2, 6
    config.data.stride_px = 64
    if config.task == "denoiser":
        small = {
            "unet": {"channel_multipliers": (1, 1), "attention_levels": (1,)},
            "dit": {"width": 32, "depth": 1, "heads": 2},
        }
        config.model.architecture.update(small[config.model.architecture.name])
        config.model.conditioner.width = 32
        config.sampling.steps = 2
    return config


def run_command(module: str, *arguments: str, devices: int = 1) -> subprocess.CompletedProcess:
    """`python -m ssl_diffusion.MODULE ARGUMENTS`, as a user runs it from the repository."""
    environment = dict(os.environ)
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.run(
        [sys.executable, "-m", f"ssl_diffusion.{module}", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


# The tiny demo run as command-line overrides of configs/demo.py, for tests that need a real
# process.
TINY = (
    "--config=configs/demo.py",
    "--config.steps=6",
    "--config.batch_size=8",
    "--config.log_every=1",
    "--config.checkpoint_every=2",
    "--config.sample_every=6",
    "--config.data.stride_px=64",
    "--config.model.conditioner.width=32",
    "--config.model.architecture.channel_multipliers=(1,1)",
    "--config.model.architecture.attention_levels=(1,)",
    "--config.sampling.steps=2",
)


@pytest.fixture(scope="session")
def records_dir(tmp_path_factory) -> Path:
    """Records of the shipped slide at stride 64, with embeddings and latents."""
    from ssl_diffusion.prepare import prepare

    folder = tmp_path_factory.mktemp("records") / "records"
    prepare(shrink(load_config("demo")).data, folder)
    return folder


@pytest.fixture(scope="session")
def run_dir(records_dir, tmp_path_factory) -> Path:
    """The workdir of a finished tiny run; its model folder is in `model/`."""
    from ssl_diffusion.train import train

    config = shrink(load_config("demo"))
    config.data.dir = str(records_dir)
    workdir = tmp_path_factory.mktemp("run") / "train"
    train(config, workdir)
    return workdir
