"""Stand-ins for what the launchers start: a small repository whose `train` does what it is told.

That is the next word of WORKDIR/plan. gcloud, kubectl and Slurm come first on the PATH and write
down how they were called.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

TRAIN = """
import json, pathlib, signal, sys, time

workdir = pathlib.Path(next(word.split("=", 1)[1] for word in sys.argv if "--workdir=" in word))
runs = workdir / "runs"
number = len(runs.read_text().splitlines()) if runs.exists() else 0
with runs.open("a") as stream:
    stream.write(json.dumps(sys.argv[1:]) + chr(10))
word = (workdir / "plan").read_text().split()[number]
if word == "finish":
    time.sleep(0.3)
    (workdir / "summary.json").write_text("{}")
if word == "wait":
    signal.signal(signal.SIGTERM, lambda *_: ((workdir / "saved").touch(), sys.exit(0)))
    (workdir / "waits").touch()
    time.sleep(20)
sys.exit({"crash": 1, "refuse": 2}.get(word, 0))
"""

# One worker in a folder that is new with every slice. STAND_INS/states holds, slice by slice, what
# `describe` says.
GCLOUD = """#!PYTHON
import json, os, pathlib, shutil, subprocess, sys

home, words = pathlib.Path(os.environ["STAND_INS"]), sys.argv[1:]
worker, states = home / "worker", home / "states"
options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
verb = next(word for word in words if word in ("create", "describe", "delete", "scp", "ssh"))
with (home / "gcloud").open("a") as stream:
    stream.write(json.dumps([verb, *words]) + chr(10))
if verb == "create":
    if (home / "refuses").exists():
        sys.exit("ERROR: INVALID_ARGUMENT: no such accelerator type")
    worker.mkdir()
elif not worker.exists():
    sys.exit("ERROR: NOT_FOUND: Resource was not found")
elif verb == "describe":
    slices = json.loads(states.read_text()) if states.exists() else []
    state = slices[0].pop(0) if slices and slices[0] else "ACTIVE"
    states.write_text(json.dumps(slices))
    print(state)
elif verb == "delete":
    shutil.rmtree(worker)
    if states.exists():
        states.write_text(json.dumps(json.loads(states.read_text())[1:]))
elif verb == "scp":
    source, target = words[words.index("scp") + 1 :][:2]
    shutil.copy(source, worker / target.split(":", 1)[1])
else:
    path = f"{home / 'on_worker'}:{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(worker), "PATH": path}
    command = ["bash", "-c", options["--command"]]
    sys.exit(subprocess.run(command, cwd=worker, env=environment).returncode)
"""

# On a worker, uv "makes" an environment; a path is on another disk than / unless
# STAND_INS/unmounted is there.
PYTHON3 = """#!/usr/bin/env bash
echo "$*" >>"$STAND_INS/python3"
case "$*" in
  *"uv venv"*) mkdir -p .venv/bin && ln -s "PYTHON" .venv/bin/python ;;
esac
"""
STAT = """#!/usr/bin/env bash
if [ "$3" = / ] || [ -e "$STAND_INS/unmounted" ]; then echo 1; else echo 2; fi
"""
OTHERS = {
    "kubectl": 'echo "$*" >>"$STAND_INS/kubectl"\ncat >"$STAND_INS/applied.yaml"',
    "sbatch": 'echo "$*" >>"$STAND_INS/sbatch"\ncat >"$STAND_INS/job.sh"',
    "srun": 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"',
    "squeue": 'cat "$STAND_INS/state"',
    "scontrol": 'echo "$*" >>"$STAND_INS/scontrol"',
    "sleep": "exit 0",
}


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("PYTHON", sys.executable))
    path.chmod(0o755)


class Place:
    """A repository with the launchers, a workdir, and the stand-ins."""

    def __init__(self, folder: Path):
        self.root, self.workdir = folder / "repository", folder / "runs" / "run 1"
        self.stand_ins = folder / "stand-ins"
        self.workdir.mkdir(parents=True)
        shutil.copytree(
            ROOT / "launch", self.root / "launch", ignore=shutil.ignore_patterns("*.png")
        )
        for name in ("requirements.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root / name)
        for name, text in (("ssl_diffusion/__init__.py", ""), ("ssl_diffusion/train.py", TRAIN)):
            write_program(self.root / name, text)
        write_program(self.root / "configs/bracs.py", "")
        (self.root / ".gitignore").write_text("/dist/\n/.venv/\n__pycache__/\n")
        for command in ("init", "add .", "-c user.name=a -c user.email=a@b commit -m all"):
            subprocess.run(
                ["git", *command.split()], cwd=self.root, check=True, capture_output=True
            )
        write_program(self.stand_ins / "bin/gcloud", GCLOUD)
        write_program(self.stand_ins / "on_worker/python3", PYTHON3)
        write_program(self.stand_ins / "on_worker/stat", STAT)
        for name, text in OTHERS.items():
            write_program(self.stand_ins / "bin" / name, f"#!/usr/bin/env bash\n{text}\n")
        write_program(self.stand_ins / "bin/python", '#!/usr/bin/env bash\nexec "PYTHON" "$@"\n')
        write_program(
            self.root / ".venv/bin/python",
            '#!/usr/bin/env bash\n[ "$2" != pip ] || exec printf "%s\\n" "$*" >>"$STAND_INS/pip"\n'
            'exec "PYTHON" "$@"\n',
        )
        (self.root / ".venv/installed").touch()
        inherited = {k: v for k, v in os.environ.items() if k != "EXTRAS"}  # launch/test.sh has it
        self.environment = inherited | {
            "PATH": f"{self.stand_ins / 'bin'}:{os.environ['PATH']}",
            "STAND_INS": str(self.stand_ins),
        }

    def command(self, script: str, *options: str) -> list[str]:
        """The words that start a launcher with the options it needs, those of `options` last."""
        if script == "slurm.sh":  # which takes no space
            self.workdir = self.workdir.with_name("run_1")
            self.workdir.mkdir(exist_ok=True)
        common = ["--config=configs/bracs.py", f"--workdir={self.workdir}"]
        return ["bash", f"launch/{script}", *common, *NEEDED[script](self), *options]

    def launch(self, script: str, *options: str) -> subprocess.CompletedProcess:
        return self.run(self.command(script, *options))

    def run(self, command: list[str], **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def plan(self, words: str) -> None:
        (self.workdir / "plan").write_text(words)

    def runs(self) -> list[list[str]]:
        """The arguments of every start of training so far."""
        file = self.workdir / "runs"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def recorded(self, name: str) -> list[str]:
        file = self.stand_ins / name
        return file.read_text().splitlines() if file.exists() else []

    def gcloud(self) -> list[str]:
        """The verbs gcloud was called with."""
        return [json.loads(line)[0] for line in self.recorded("gcloud")]


NEEDED = {
    "gpu.sh": lambda place: [],
    "slurm.sh": lambda place: ["--nodes=2", "--gpus-per-node=4"],
    "tpu_pod.sh": lambda place: (
        "--name=bracs --accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 "
        "--zone=us-east5-a --project=lab"
    ).split(),
    "gke.sh": lambda place: [
        "--name=bracs",
        "--image=registry/ssl_diffusion:1",
        f"--claim=runs:{place.workdir.parent}",
        "--accelerator=tpu-v5p-slice",
        "--topology=4x4x4",
    ],
}
