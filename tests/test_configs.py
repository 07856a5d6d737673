"""The shipped configurations: whole at full size, trained for two steps in their local form."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, load_config, run_command, shrink
from ml_collections import ConfigDict

from ssl_diffusion.diffusion.sampling import read_sampling
from ssl_diffusion.diffusion.schedule import make_schedule
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json
from ssl_diffusion.models.build import Policy, build_conditioner, build_network
from ssl_diffusion.prepare import prepare
from ssl_diffusion.train import train
from ssl_diffusion.training.logs import read_metrics
from ssl_diffusion.training.plan import model_flop
from ssl_diffusion.training.settings import check_config, open_record_sets
from ssl_diffusion.training.tasks import Task
from ssl_diffusion.training.tasks.build import TASKS
from ssl_diffusion.weights.model import load_model

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
NETWORKS = {"pancancer": ["dit"]} | dict.fromkeys(
    ("bracs_prior", "demo_autoencoder", "demo_encoder", "demo_prior", "ssl_pretrain"), [""]
)
PUBLISHED = [name for name in NAMES if name != "demo" and NETWORKS.get(name) != [""]]
CASES = [(name, network) for name in NAMES for network in NETWORKS.get(name, ["unet", "dit"])]
DENOISERS = [case for case in CASES if case[1]]
# Millions of parameters of the network, and of what makes its context of an embedding.
PARAMETERS = {
    ("bracs", "unet"): (400.920579, 384 * 512 + 512),
    ("tcga_crc_20x", "unet"): (400.920579, 768 * 512 + 512),
    ("tcga_crc_20x", "dit"): (113.054988, 768 * 512 + 512),
    ("pancancer", "dit"): (604.974080, 1536 * 1152 + 1152 + 1152 * 1152 + 1152 + 1536),
}


def config_of(name: str, network: str, local: bool = False) -> ConfigDict:
    words = [word for word in (network, "runlocal" if local else "") if word]
    return load_config(name, ",".join(words)) if words else load_config(name)


def docstring(name: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text()))


@cache
def task_of(settings: str) -> tuple[Task, int]:
    """(a task, FLOP of an example), once for all configurations of the same networks."""
    config = ConfigDict(json.loads(settings))
    task = TASKS[config.task](config, None)
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))
    frozen = task.frozen | jax.eval_shape(task.carried, params)
    losses, terms = jax.eval_shape(task.loss, params, frozen, task.batch(8), keys)
    assert losses.shape == (8,) and losses.dtype == jnp.float32
    assert {term.shape[0] for term in terms.values()} <= {8}
    return task, model_flop(task, 1)


def built(config: ConfigDict) -> tuple[Task, int]:
    kept = ("task", "accumulation", "model", "diffusion", "objective", "sampling", "conditions")
    settings = {name: config[name] for name in kept if name in config}
    data = ("patch_px", "embedding", "latent", "input", "posterior", "patch_tokens", "tokens")
    data += ("window", "full_grids", "balance", "mix")
    settings["data"] = {name: config.data[name] for name in data if name in config.data}
    return task_of(ConfigDict(settings).to_json(sort_keys=True))


@pytest.mark.parametrize("name, network", CASES)
def test_a_config_fits_itself_and_eight_devices(name, network):
    config = config_of(name, network)
    devices = 4 if name == "demo_autoencoder" else 8
    check_config(config, devices)
    task, _ = built(config)
    if (name, network) in PARAMETERS:
        params = jax.eval_shape(task.init, jax.random.key(0))
        counts = {part: sum(leaf.size for leaf in jax.tree.leaves(params[part])) for part in params}
        millions, conditioner = PARAMETERS[name, network]
        assert counts == {"denoiser": round(1e6 * millions), "conditioner": conditioner}


@pytest.mark.parametrize("name, network", DENOISERS)
def test_what_a_model_folder_says_builds_the_same_model(name, network):
    """Through JSON, where tuples become lists."""
    config = config_of(name, network)
    task, _ = built(config)
    told = json.loads(config.to_json())
    policy = Policy(**told["model"]["policy"])
    assert build_network(told["model"]["architecture"], policy) == task.network
    assert build_conditioner(told["model"]["conditioner"]) == task.conditioner
    schedule = make_schedule(**told["diffusion"]["schedule"])
    jax.tree.map(np.testing.assert_array_equal, schedule, task.objective.schedule)
    sampling = read_sampling(told["sampling"])
    assert len(sampling.plan(schedule).timesteps) == told["sampling"]["steps"]
    assert told["diffusion"]["prediction"] == task.objective.kind


@pytest.mark.parametrize("name", NAMES)
def test_docstring_says_what_is_run_on_what_and_what_comes_of_it(name):
    text = " ".join(docstring(name).replace("\\\n", " ").split())
    for command in ("prepare", "train"):
        assert f"python -m ssl_diffusion.{command} --config=configs/{name}.py" in text
    assert re.search(r"--workdir=runs/\w+", text)
    assert "Hardware: " in text and re.search(r"[Ee]xpected|[Mm]easured", text)
    assert re.search(r"\d h on|minutes|hour", text)
    if name in PUBLISHED:
        assert re.search(r"arXiv \d{4}\.\d{5}", text) and "Data: " in text


@pytest.mark.parametrize("name", PUBLISHED)
def test_hours_in_a_docstring_are_those_of_its_numbers(name):
    text = " ".join(docstring(name).split())
    config = config_of(name, NETWORKS.get(name, ["unet"])[0])
    steps, images = config.steps, config.steps * config.batch_size
    assert f"{steps:,} steps" in text
    (told,) = re.findall(r"(\d+) M images", text)
    assert round(images / 1e6) == int(told)
    _, flop = built(config)
    (exa,) = re.findall(r"(\d+) EFLOP", text)
    assert float(exa) == pytest.approx(images * flop / 1e18, rel=0.05)
    (hours,) = re.findall(r"expected ([\d.]+) h on 8 H100 at 45 % of 790 TFLOP/s", text)
    assert float(hours) == pytest.approx(float(exa) * 1e18 / (8 * 0.45 * 790e12) / 3600, rel=0.03)


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_its_data_a_config_says_how_to_get_them(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_of(name, "")
    prepares = f"python -m ssl_diffusion.prepare --config=configs/{name}.py"
    with pytest.raises(InputError, match="no records in data/") as error:
        open_record_sets(config)
    assert str(error.value).count(prepares) == 1
    with pytest.raises(InputError, match="no images in data/") as error:
        prepare(config.data, tmp_path / "records")
    assert prepares in str(error.value) and f"{config.data.source}/" in str(error.value)
    for model in (config.data.encoder, config.data.autoencoder):
        assert model in config.data.instructions
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PUBLISHED)
def test_only_the_networks_that_there_are_can_be_asked_for(name):
    for argument in ("bogus", "unet,dit", "runlocal,bogus"):
        with pytest.raises(InputError, match="expected unet or dit, runlocal, or both by a comma"):
            load_config(name, argument)
    assert config_of(name, "").to_json() == config_of(name, CASES_OF[name][0]).to_json()


CASES_OF = {name: [network for other, network in CASES if other == name] for name in NAMES}


def test_pancancer_is_no_unet():
    with pytest.raises(InputError, match="transformer: leave unet out"):
        load_config("pancancer", "unet")


@pytest.mark.parametrize(
    "argument, phrases",
    [
        ("configs/naip.py:bogus", ["'bogus'", "expected unet or dit, runlocal"]),
        ("configs/naip.py", ["no records in", "Chesapeake", "--config=configs/naip.py"]),
    ],
)
def test_the_command_says_so_in_one_line(argument, phrases, tmp_path):
    arguments = [f"--config={argument}", f"--workdir={tmp_path / 'run'}"]
    if "bogus" not in argument:
        arguments.append(f"--config.data.dir={tmp_path / 'none'}")
    result = run_command("train", *arguments)
    assert result.returncode == 2 and not (tmp_path / "run").exists()
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and all(phrase in line for phrase in phrases)


@pytest.mark.parametrize("name, network", [case for case in DENOISERS if case[0] in PUBLISHED])
def test_the_local_form_is_small_and_needs_nothing_but_the_package(name, network):
    config, full = config_of(name, network, local=True), config_of(name, network)
    data = config.data
    for shipped in (data.source, data.split, data.encoder, data.autoencoder):
        assert shipped.startswith("demo:")
    params = jax.eval_shape(built(config)[0].init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) < 1.5e6
    assert config.steps * config.batch_size <= 320
    # The rest is that of the full run.
    for section in ("objective", "mesh", "seed", "accumulation", "task"):
        assert config[section] == full[section]
    for key in ("prediction", "schedule"):
        assert config.diffusion[key] == full.diffusion[key]
    assert config.model.architecture.name == full.model.architecture.name
    assert config.model.conditioner.name == full.model.conditioner.name
    assert (data.variants, data.posterior) == (full.data.variants, full.data.posterior)


@pytest.fixture(scope="module")
def posterior_records(tmp_path_factory) -> Path:
    """As `records_dir`, with the posteriors that the pan-cancer model draws from."""
    folder = tmp_path_factory.mktemp("posteriors") / "records"
    config = config_of("pancancer", "dit", local=True)
    config.data.variants = 1
    prepare(config.data, folder)
    return folder


@pytest.fixture(scope="module")
def trained(records_dir, posterior_records, run_dir, tmp_path_factory):
    """config -> the workdir of its run; runs that differ in no setting are one."""
    done: dict[str, Path] = {shrunk("demo", "unet").to_json(sort_keys=True): run_dir}

    def run(config: ConfigDict) -> Path:
        config.data.instructions = ""
        settings = config.to_json(sort_keys=True)
        if settings not in done:
            folder = posterior_records if config.data.posterior else records_dir
            config.data.dir = str(folder)
            done[settings] = tmp_path_factory.mktemp("run") / "train"
            train(config, done[settings])
        return done[settings]

    return run


def shrunk(name: str, network: str) -> ConfigDict:
    """A run of a few steps that does all a run does, on records that are at hand."""
    if name == "demo":
        config = shrink(config_of(name, network))
    else:
        config = config_of(name, network, local=True)
        # One record of each patch, as the other tests have them.
        config.steps, config.sampling.steps, config.data.variants = 2, 2, 1
        config.log_every, config.checkpoint_every, config.sample_every = 1, 2, 2
        config.ema.snapshot_every = 2
    config.data.dir, config.data.instructions = "", ""
    return config


@pytest.mark.parametrize("name, network", DENOISERS)
def test_a_config_trains(name, network, trained):
    config = shrunk(name, network)
    workdir = trained(config)
    losses = [line["loss"] for line in read_metrics(workdir)]
    assert len(losses) == config.steps and np.isfinite(losses).all()
    assert read_json(workdir / "summary.json", "summary")["steps"] == config.steps
    assert (workdir / "samples" / f"{config.steps:08d}.png").is_file()
    assert (workdir / "averages" / f"{config.steps:08d}" / "0.050.safetensors").is_file()
    model = load_model(workdir / "model")
    assert model.spec["architecture"]["name"] == network
    assert model.spec["conditioner"]["name"] == config.model.conditioner.name
    assert model.spec["diffusion"]["prediction"] == config.diffusion.prediction
    assert model.spec["trained"]["settings"]["model"] == json.loads(config.model.to_json())
