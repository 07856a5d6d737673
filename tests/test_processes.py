"""Several processes that train one model, over gloo: real ones, each with its own devices."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, run_command
from safetensors.numpy import load_file

from ssl_diffusion.training.logs import read_metrics

STEPS = ("--config.steps=8", "--config.checkpoint_every=4", "--config.sample_every=8")


def start(workdir: Path, *arguments: str, processes: int = 2, devices: int = 2) -> list:
    """The processes of one run, which find each other by the environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for process in range(processes):
        environment = os.environ | {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(process),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        command = [sys.executable, "-m", "ssl_diffusion.train", *TINY, *STEPS, *arguments]
        command += ["--multihost", f"--workdir={workdir}"]
        log = open(workdir.parent / f"{workdir.name}.{process}.log", "w")  # noqa: SIM115
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log, stdout=log))
    return started


def finish(workdir: Path, started: list) -> list[str]:
    """Waits for them; what each of them printed."""
    codes = [process.wait(timeout=600) for process in started]
    told = [
        (workdir.parent / f"{workdir.name}.{process}.log").read_text()
        for process in range(len(started))
    ]
    assert codes == [0] * len(started), "\n".join(told)
    return told


def losses(workdir: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(workdir)]


@pytest.fixture(scope="module")
def alone(records_dir, tmp_path_factory):
    """The workdir of a run of one process and one device."""
    workdir = tmp_path_factory.mktemp("alone") / "train"
    given = *TINY, *STEPS, f"--config.data.dir={records_dir}", f"--workdir={workdir}"
    result = run_command("train", *given)
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.fixture(scope="module")
def together(records_dir, tmp_path_factory):
    """The same run by two processes of two devices, its state split over pairs of these."""
    workdir = tmp_path_factory.mktemp("together") / "train"
    started = start(workdir, f"--config.data.dir={records_dir}", "--config.mesh.fsdp=2")
    return workdir, finish(workdir, started)


def test_two_processes_follow_one(alone, together):
    workdir, (first, second) = together
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-4)
    one, other = (load_file(path / "model" / "weights.safetensors") for path in (alone, workdir))
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, atol=2e-3, err_msg=name)
    # Only the first process tells of the run (the library that connects them speaks in each).
    for word in ("Total: ", "train: ", "held_out_loss"):
        assert word in first and word not in second


@pytest.mark.slow
def test_two_processes_follow_one_for_fifty_steps(records_dir, tmp_path):
    longer = "--config.steps=50", "--config.checkpoint_every=50", "--config.sample_every=50"
    given = f"--config.data.dir={records_dir}", *longer
    result = run_command("train", *TINY, *given, f"--workdir={tmp_path / 'alone'}")
    assert result.returncode == 0, result.stderr
    finish(tmp_path / "two", start(tmp_path / "two", *given, "--config.mesh.fsdp=2"))
    assert len(losses(tmp_path / "two")) == 50
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "alone"), rtol=1e-4)


@pytest.mark.parametrize("first, then", [pytest.param(2, 1, marks=pytest.mark.slow), (1, 2)])
def test_a_checkpoint_goes_on_with_another_number_of_processes(
    first, then, alone, records_dir, tmp_path
):
    """Killed once step 4 is saved; the mesh is another, too."""
    workdir = tmp_path / "train"
    data = f"--config.data.dir={records_dir}"

    def begin(processes: int) -> list:
        return start(workdir, data, f"--config.mesh.fsdp={processes}", processes=processes)

    started = begin(first)
    while not (workdir / "checkpoints" / "4").is_dir():
        assert all(process.poll() is None for process in started)
        time.sleep(0.02)
    for process in started:
        process.kill()
        process.wait()
    assert not (workdir / "checkpoints" / "8").exists()
    finish(workdir, begin(then))
    assert [line["step"] for line in read_metrics(workdir)] == [*range(1, 9)]
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-4)


def test_sigterm_to_one_of_two_saves_the_work_of_both(records_dir, tmp_path):
    workdir = tmp_path / "train"
    slow = "--config.steps=2000", "--config.checkpoint_every=2000", "--config.sample_every=2000"
    started = start(workdir, f"--config.data.dir={records_dir}", *slow)
    while not any(line["step"] >= 3 for line in read_metrics(workdir)):
        assert all(process.poll() is None for process in started)
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    told = finish(workdir, started)
    assert "saved; the same command goes on" in told[0]
    (saved,) = (workdir / "checkpoints").iterdir()
    assert losses(workdir) and int(saved.name) == read_metrics(workdir)[-1]["step"]
    assert not (workdir / "summary.json").exists()
