"""The launchers: what they print under --dry-run, and whether a run that is cut off is finished."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from stand_ins import NEEDED, Place, write_program

JAX_TPU, JAX_CUDA = "jax[tpu]>=0.10,<0.13", "jax[cuda13]>=0.10,<0.13"


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def commands(printed: str) -> list[list[str]]:
    return [shlex.split(line) for line in printed.splitlines() if not line.startswith("#")]


def training(place: Place, python: str, *arguments: str) -> list[str]:
    config = ["--config=configs/bracs.py", f"--workdir={place.workdir}"]
    return [python, "-m", "ssl_diffusion.train", *config, *arguments]


def slurm_job(place: Place, *options: str) -> str:
    """The script that --dry-run prints for sbatch."""
    printed = place.launch("slurm.sh", "--dry-run", *options)
    assert printed.returncode == 0, printed.stderr
    return re.search(r"^sbatch <<'JOB'\n(.*)^JOB$", printed.stdout, re.S | re.M)[1]


def job_set(place: Place, *options: str) -> dict:
    printed = place.launch("gke.sh", "--dry-run", *options)
    assert printed.returncode == 0, printed.stderr
    return yaml.safe_load(printed.stdout)


def container_of(jobs: dict) -> dict:
    [job] = jobs["spec"]["replicatedJobs"]
    [container] = job["template"]["spec"]["template"]["spec"]["containers"]
    return container


def test_scripts_pass_shellcheck():
    scripts = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "launch").glob("*.sh"))
    assert len(scripts) >= 8
    shellcheck = Path(sys.executable).with_name("shellcheck")
    result = subprocess.run(
        [shellcheck, "--external-sources", *scripts], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", NEEDED)
def test_dry_run_runs_nothing(place, script):
    before = sorted(place.root.rglob("*"))
    result = place.launch(script, "--dry-run")
    assert result.returncode == 0 and result.stdout, result.stderr
    assert sorted(place.root.rglob("*")) == before
    assert not [*place.workdir.iterdir()]
    assert {path.name for path in place.stand_ins.iterdir()} == {"bin", "on_worker"}


@pytest.mark.parametrize(
    ("script", "options", "phrase"),
    [
        ("gpu.sh", ["--wrokdir=x"], "unknown option --wrokdir=x"),
        ("gpu.sh", ["train"], "unknown option train"),
        ("gpu.sh", ["--=x"], "unknown option --=x"),
        ("gpu.sh", ["--dry-run=1"], "unknown option --dry-run=1"),
        ("gpu.sh", ["--config"], "--config has no value"),
        ("gpu.sh", ["--config=configs/none.py:dit"], "no such config: configs/none.py"),
        ("slurm.sh", ["--nodes=two"], "--nodes=two; expected a whole number"),
        ("slurm.sh", ["--workdir=here"], "expected the absolute path"),
        ("slurm.sh", ["--workdir=/a b"], "expected no space"),
        ("tpu_pod.sh", ["--workdir=gs://bucket/run"], "expected the absolute path"),
        ("tpu_pod.sh", ["--config=/configs/bracs.py"], "expected a path in this checkout"),
        ("tpu_pod.sh", ["--attempts=0"], "--attempts=0; expected a whole number"),
        ("gke.sh", ["--workdir=/elsewhere"], "is not under"),
        ("gke.sh", ["--claim=runs"], "expected CLAIM:/PATH"),
        ("gke.sh", ["--topology=64"], "expected chips per axis"),
        ("gke.sh", ["--topology=1x1"], "has 1 chips, not a multiple of --chips-per-host=4"),
    ],
)
def test_wrong_options_are_one_line_and_code_2(place, script, options, phrase):
    result = place.launch(script, *options)
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ") and phrase in line


@pytest.mark.parametrize("script", NEEDED)
def test_every_missing_option_is_named(place, script):
    words = place.command(script)
    for word in words[2:]:
        result = place.run([other for other in words if other is not word])
        assert (result.returncode, result.stdout) == (2, "")
        assert f"error: {word.split('=')[0]}=VALUE is missing" in result.stderr


def test_arguments_of_train_pass_unchanged(place):
    odd = ['--config.note=it\'s "a" & $HOME `b` \\ c*', "--config.data.dir=/mnt/é", "--config.x="]
    printed = place.launch("gpu.sh", "--dry-run", "--", *odd, "--dry-run")
    expected = training(place, ".venv/bin/python", *odd, "--dry-run")
    assert commands(printed.stdout)[-1] == expected
    last = printed.stdout.splitlines()[-1]
    read_back = place.run(["bash", "-c", f"printf '%s\\n' {last}"])
    assert read_back.stdout.splitlines() == expected
    assert [*map(str, container_of(job_set(place, "--", *odd))["args"])] == training(
        place, "python", "--multihost", *odd
    )


def test_gpu_installs_and_trains(place):
    place.plan("finish")
    result = place.launch("gpu.sh", "--", "--config.steps=3")
    assert result.returncode == 0, result.stderr
    assert place.runs() == [training(place, "", "--config.steps=3")[3:]]
    assert place.recorded("pip")[0].endswith(
        f"install --quiet --disable-pip-version-check {JAX_CUDA}"
    )
    printed = commands(place.launch("gpu.sh", "--dry-run").stdout)
    assert [words[0] for words in printed] == ["cd", "bash"] + 2 * [".venv/bin/python"]
    assert printed[2][-1] == JAX_CUDA


def test_gpu_hands_a_signal_to_training(place):
    place.plan("wait")
    started = subprocess.Popen(place.command("gpu.sh"), cwd=place.root, env=place.environment)
    wait_for(place.workdir / "waits")
    started.terminate()
    assert started.wait(timeout=60) == 0
    assert (place.workdir / "saved").exists()


def wait_for(file: Path) -> None:
    until = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < until, f"no {file}"
        time.sleep(0.02)


def test_slurm_job_has_a_task_per_gpu(place):
    job = slurm_job(place, "--sbatch=--partition=gpu", "--sbatch=--time=24:00:00", "--", "--a=b c")
    options = dict(re.findall(r"^#SBATCH (--[a-z-]+)(?:=(.*))?$", job, re.M))
    assert options["--nodes"] == "2"
    assert options["--gpus-per-node"] == options["--ntasks-per-node"] == "4"
    assert "--gpus-per-task" not in options  # JAX picks a task's GPU by its local rank
    assert options["--signal"] == "TERM@120"  # the tasks, not the shell (B:TERM)
    assert options["--output"] == f"{place.workdir}/slurm-%j.log"
    assert options["--partition"] == "gpu" and options["--time"] == "24:00:00"
    assert {"--requeue", "--open-mode"} <= options.keys()
    [srun] = [shlex.split(line) for line in job.splitlines() if line.startswith("srun")]
    begin = srun.index(".venv/bin/python")
    assert srun[:begin] == ["srun", "--kill-on-bad-exit=0", "--cpus-per-task=8"]
    assert srun[begin : srun.index("||")] == training(
        place, ".venv/bin/python", "--multihost", "--a=b c"
    )
    assert place.run(["bash", "-n", "-c", job]).returncode == 0


def test_slurm_queues_again_until_training_has_finished(place):
    job = slurm_job(place)
    assert place.launch("slurm.sh").returncode == 0
    assert (place.stand_ins / "job.sh").read_text() == job
    (place.stand_ins / "state").write_text("RUNNING\n")
    place.plan("preempted crash finish")
    codes = []
    while len(place.recorded("scontrol")) == len(codes):
        count = {"SLURM_RESTART_COUNT": str(len(codes))} if codes else {}
        codes.append(place.run(["bash", "-c", job], SLURM_JOB_ID="7", **count).returncode)
    assert codes == [0, 0, 0]
    assert place.recorded("scontrol") == ["requeue 7", "requeue 7"]
    assert len(place.runs()) == 3 and (place.workdir / "summary.json").exists()


@pytest.mark.parametrize(
    ("plan", "state", "count", "code"),
    [
        ("refuse", "RUNNING", "0", 2),  # the input is unusable
        ("preempted", "COMPLETING", "0", 0),  # cancelled by its owner
        ("preempted", "RUNNING", "99", 1),  # the hundredth attempt
    ],
)
def test_slurm_does_not_queue_again(place, plan, state, count, code):
    job = slurm_job(place)
    (place.stand_ins / "state").write_text(state)
    place.plan(plan)
    result = place.run(["bash", "-c", job], SLURM_JOB_ID="7", SLURM_RESTART_COUNT=count)
    assert result.returncode == code
    assert place.recorded("scontrol") == []


def test_tpu_commands(place):
    options = ["--spot", "--create=--network=lab", "--setup=sudo mount a:/b /mnt", "--dry-run"]
    printed = place.launch("tpu_pod.sh", *options, "--", "--config.steps=3")
    lines = commands(printed.stdout)
    where = ["--zone=us-east5-a", "--project=lab"]
    assert [words[:2] for words in lines[:3]] == [
        ["cd", str(place.root)],
        ["mkdir", "-p"],
        ["git", "archive"],
    ]
    create, describe, copy, *remote, delete = lines[3:]
    queued = ["gcloud", "compute", "tpus", "queued-resources"]
    assert create == queued + ["create", "bracs", *where] + [
        "--node-id=bracs",
        "--accelerator-type=v5p-128",
        "--runtime-version=v2-alpha-tpuv5",
        "--spot",
        "--network=lab",
    ]
    assert describe == queued + ["describe", "bracs", *where, "--format=value(state.state)"]
    assert delete == queued + ["delete", "bracs", *where, "--force", "--quiet"]
    node = ["gcloud", "compute", "tpus", "tpu-vm"]
    assert copy[:6] == node + ["scp", "dist/bracs.tar.gz"]
    assert copy[6] == "bracs:ssl_diffusion.tar.gz" and "--worker=all" in copy
    assert all(words[:8] == node + ["ssh", "bracs", *where] for words in remote)
    workers = [words[-2] for words in remote]
    assert workers == ["--worker=all"] * 4 + ["--worker=0"]
    setup, check, install, start, finished = [
        words[-1].removeprefix("--command=") for words in remote
    ]
    assert setup == "sudo mount a:/b /mnt"
    assert f"mkdir -p '{place.workdir}'" in check
    assert shlex.split(install)[-3:] == ["--editable", ".", JAX_TPU]
    *before, program, option, script = shlex.split(start)
    assert before == ["cd", "ssl_diffusion", "&&", "flock", ".train.lock"]
    assert (program, option) == ("sh", "-c")
    assert shlex.split(script) == [
        "[",
        "-e",
        f"{place.workdir}/summary.json",
        "]",
        "||",
        "exec",
    ] + (training(place, ".venv/bin/python", "--multihost", "--config.steps=3"))
    assert shlex.split(finished) == ["test", "-e", f"{place.workdir}/summary.json"]


def test_tpu_goes_on_until_training_has_finished(place):
    place.plan("preempted crash finish")
    # The second slice goes while it waits, the others wait a little.
    states = [["WAITING_FOR_RESOURCES", "ACTIVE"], ["PROVISIONING", "SUSPENDED"], ["CREATING"]]
    (place.stand_ins / "states").write_text(json.dumps(states))
    result = place.launch("tpu_pod.sh", "--setup=echo mounted >>$STAND_INS/setup", "--", "--a=b")
    assert result.returncode == 0, result.stderr
    verbs = place.gcloud()
    assert verbs.count("create") == verbs.count("delete") == 4 and verbs[-1] == "delete"
    assert place.runs() == 3 * [training(place, "", "--multihost", "--a=b")[3:]]
    assert place.recorded("setup") == 3 * ["mounted"]  # every slice starts bare
    installs = [line for line in place.recorded("python3") if "--editable" in line]
    assert len(installs) == 3 and all(line.endswith(JAX_TPU) for line in installs)


@pytest.mark.parametrize(("plan", "code"), [("refuse", 2), ("preempted crash", 1)])
def test_tpu_gives_up_and_deletes(place, plan, code):
    place.plan(plan)
    result = place.launch("tpu_pod.sh", "--attempts=2")
    assert result.returncode == code
    assert result.stderr.splitlines()[-1].startswith("error: ")
    attempts = len(plan.split())
    verbs = place.gcloud()
    assert len(place.runs()) == verbs.count("create") == verbs.count("delete") == attempts
    assert verbs[-1] == "delete"


def test_tpu_stops_when_gcloud_refuses_the_first_slice(place):
    (place.stand_ins / "refuses").touch()
    result = place.launch("tpu_pod.sh")
    assert result.returncode == 2 and "no such accelerator type" in result.stderr
    assert place.gcloud().count("create") == 1


def test_tpu_refuses_a_workdir_on_the_workers_disk(place):
    (place.stand_ins / "unmounted").touch()
    result = place.launch("tpu_pod.sh")
    assert result.returncode == 2 and "mount one there with --setup" in result.stderr
    assert place.gcloud()[-1] == "delete" and place.runs() == []


def test_tpu_leaves_alone_what_it_did_not_create(place):
    (place.stand_ins / "worker").mkdir()
    result = place.launch("tpu_pod.sh")
    assert result.returncode == 2 and "bracs exists already" in result.stderr
    assert place.gcloud() == ["describe"]


def test_tpu_ships_only_what_is_committed(place):
    (place.root / "configs/mine.py").write_text("")
    result = place.launch("tpu_pod.sh")
    assert result.returncode == 2 and "not committed: ?? configs/mine.py" in result.stderr
    assert place.gcloud() == []


def test_tpu_deletes_when_it_is_stopped(place):
    place.plan("wait")
    started = subprocess.Popen(
        place.command("tpu_pod.sh"),
        cwd=place.root,
        env=place.environment,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(place.workdir / "waits")
    os.killpg(started.pid, signal.SIGTERM)
    assert started.wait(timeout=20) != 0
    assert place.gcloud()[-1] == "delete"


def test_tpu_worker_trains_once_when_gcloud_connects_again(place):
    printed = commands(place.launch("tpu_pod.sh", "--dry-run").stdout)
    start = next(words[-1] for words in printed if "flock" in words[-1])
    command = ["bash", "-c", start.removeprefix("--command=").replace("cd ssl_diffusion && ", "")]
    place.plan("finish finish")
    both = [
        subprocess.Popen(command, cwd=place.root, env=place.environment, text=True)
        for _ in range(2)
    ]
    assert [process.wait(timeout=20) for process in both] == [0, 0]
    assert len(place.runs()) == 1


def test_job_set(place):
    jobs = job_set(place, "--attempts=5")
    assert (jobs["apiVersion"], jobs["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobs["metadata"]["name"] == "bracs"
    policy = jobs["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 4
    assert policy["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    [replicated] = jobs["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (16, 16, 0)
    assert job["completionMode"] == "Indexed"
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 300
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
    }
    container = container_of(jobs)
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert container["image"] == "registry/ssl_diffusion:1"
    assert container["resources"] == {
        "requests": {"google.com/tpu": 4},
        "limits": {"google.com/tpu": 4},
    }
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    assert volumes[mounts[str(place.workdir.parent)]] == {
        "persistentVolumeClaim": {"claimName": "runs"}
    }
    assert volumes[mounts["/dev/shm"]] == {"emptyDir": {"medium": "Memory"}}
    # Kubernetes would take $(NAME) for a variable of its own.
    assert "$(" not in " ".join(container["command"])
    hosts = job_set(place, "--topology=2x4", "--chips-per-host=8")["spec"]["replicatedJobs"][0]
    assert hosts["template"]["spec"]["completions"] == 1


def test_job_set_is_applied_as_printed(place):
    printed = place.launch("gke.sh", "--dry-run").stdout
    result = place.launch("gke.sh")
    assert result.returncode == 0 and "jobset-name=bracs" in result.stderr
    assert place.recorded("kubectl") == ["apply -f -"]
    assert (place.stand_ins / "applied.yaml").read_text() == printed.split("\n", 1)[1]


def start(place: Place, container: dict) -> subprocess.Popen:
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    return subprocess.Popen(
        [*container["command"], *container["args"]],
        cwd=place.root,
        env=place.environment | variables,
    )


def test_pods_end_well_only_when_training_has_finished(place):
    place.plan("preempted crash refuse finish")
    container = container_of(job_set(place))
    codes = [start(place, container).wait(timeout=20) for _ in range(4)]
    assert codes == [75, 1, 2, 0]
    assert place.runs()[0] == training(place, "", "--multihost")[3:]


def test_pod_waits_while_training_saves(place):
    place.plan("wait")
    pod = start(place, container_of(job_set(place)))
    wait_for(place.workdir / "waits")
    pod.terminate()
    assert pod.wait(timeout=20) == 75
    assert (place.workdir / "saved").exists()


def test_readme_commands_parse(place):
    text = (ROOT / "launch/README.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^ *(?:[A-Z_]+=\S+ )*(bash launch/\S+\.sh .*)$", text, re.M)
    scripts = set()
    for line in lines:
        words = shlex.split(line.partition("#")[0])
        script = Path(words[1]).name
        if script not in NEEDED:
            continue
        scripts.add(script)
        config = next(word.split("=")[1] for word in words if word.startswith("--config="))
        write_program(place.root / config.partition(":")[0], "")
        result = place.run([*words[:2], "--dry-run", *words[2:]])
        assert result.returncode == 0, (line, result.stderr)
    assert scripts == NEEDED.keys()
