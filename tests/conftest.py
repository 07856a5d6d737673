"""Built once a session: records of the shipped slide and a model trained for a few steps."""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What one test or process has compiled the others read: most of the time would go there.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get("TESTS_COMPILED") or tempfile.mkdtemp()
os.environ["TESTS_COMPILED"] = os.environ["JAX_COMPILATION_CACHE_DIR"]  # the workers' own, too
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
WORKER = "PYTEST_XDIST_WORKER" in os.environ


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
    config.checkpoint_every, config.sample_every, config.ema.snapshot_every = 2, 6, 3
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
    "--config.ema.snapshot_every=3",
    "--config.data.stride_px=64",
    "--config.model.conditioner.width=32",
    "--config.model.architecture.channel_multipliers=(1,1)",
    "--config.model.architecture.attention_levels=(1,)",
    "--config.sampling.steps=2",
)


@pytest.fixture(autouse=True)
def log_lines_end_with_the_test():
    """A command run in this process prints the log's lines; what the next test does is not its."""
    yield
    root = logging.getLogger()
    root.handlers = [h for h in root.handlers if type(h).__module__ != "ssl_diffusion.cli"]


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


def random_params(network, *args):
    """Parameters without the zeros of an initialisation, which hide what lies behind them."""
    import jax
    import jax.numpy as jnp

    shapes = jax.eval_shape(network.init, jax.random.key(0), *args)["params"]
    rng = np.random.default_rng(1)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = np.prod(leaf.shape[:-1])  # 1 for vectors
        return jnp.asarray(
            rng.standard_normal(leaf.shape, np.float32) / np.sqrt(fan_in), leaf.dtype
        )

    return jax.tree.map(draw, shapes)


def convert(source: Path, folder: Path, layout="auto", dtype="float32", **settings) -> Path:
    """The model folder of a published file."""
    from ssl_diffusion.weights.importers.settings import Settings
    from ssl_diffusion.weights.importing import import_model, write_imported

    settings = Settings(**settings)
    write_imported(import_model(source, layout, settings), folder, settings, dtype)
    return folder


def assert_same_tensors(found: Path, expected: Path) -> None:
    """Whether two .safetensors hold the same names and, to the bit, the same arrays."""
    from ssl_diffusion.weights.safetensors_file import read_tensors

    found, expected = read_tensors(found), read_tensors(expected)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> tuple[Path, Path]:
    """(checkpoint in the published layout, model folder converted from it) of the small model."""
    import oracle

    from ssl_diffusion.diffusion.schedule import make_betas
    from ssl_diffusion.weights.layouts.ldm import schedule_tables
    from ssl_diffusion.weights.safetensors_file import write_tensors

    folder = tmp_path_factory.mktemp("published")
    betas = make_betas("ldm_linear", 1000, beta_start=0.0015, beta_end=0.0195)
    tensors = oracle.tensors("small") | {"betas": schedule_tables(betas)["betas"]}
    write_tensors(folder / "small.safetensors", tensors)
    return folder / "small.safetensors", convert(folder / "small.safetensors", folder / "model")


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> Path:
    """A diffusers folder: the small transformer, the small autoencoder of 16 channels."""
    from oracle import manifest, tensors

    from ssl_diffusion.weights.safetensors_file import write_tensors

    folder = tmp_path_factory.mktemp("pipeline") / "published"
    for part, name in {"transformer": "pixart_small", "vae": "kl_f8_small"}.items():
        (folder / part).mkdir(parents=True)
        file = folder / part / "diffusion_pytorch_model.safetensors"
        write_tensors(file, tensors(name))
        (folder / part / "config.json").write_text(json.dumps(manifest(name)[1]))
    scheduler = {
        "beta_schedule": "linear",
        "num_train_timesteps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "prediction_type": "epsilon",
    }
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def pytest_unconfigure():
    """Removes what was compiled, once all is done."""
    if not WORKER:
        shutil.rmtree(os.environ["TESTS_COMPILED"], ignore_errors=True)


def pytest_sessionfinish(session):
    """A worker hands its differences from the recordings to the process that prints them."""
    import oracle

    if WORKER:
        session.config.workeroutput["differences"] = oracle.DIFFERENCES


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Takes the differences of a worker."""
    import oracle

    oracle.DIFFERENCES.extend(getattr(node, "workeroutput", {}).get("differences", ()))


def pytest_terminal_summary(terminalreporter):
    """The table of differences from the recordings, where some were compared."""
    import oracle

    if oracle.DIFFERENCES:
        terminalreporter.section("max |difference| / std of the recording")
        for test, value in oracle.DIFFERENCES:
            terminalreporter.write_line(f"{value:9.1e}  {test}")
