"""Dry runs on a machine without Slurm: what would be submitted is whole, valid bash, and asks for the right things."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from launch.recipes.clusters import RECIPE_SITES
from launch.recipes.rl import RL_RECIPES
from launch.recipes.sft import SFT_RECIPES
from megatron_omr.config import SFTConfig
from megatron_omr.plan.shapes import CONFIGS
from tests.helpers.launching import Outcome, path_with, run_omr

CLUSTER = """
kind = "slurm"
gpu = "h100"
setup = ["module load cuda"]
[slurm]
account = "my-account"
partition = "gpu"
cpu_partition = "cpu"
gpus_per_node = 8
cpus_per_node = 64
mem = "0"
parameters = {exclusive = true, reservation = "a b", contiguous = false}
[environment]
GREETING = "it's $HOME \\"x\\""
lower_case = "1"
"""
CONTAINER = """
[container]
image = "/images/omr.sqsh"
mounts = ["/data:/data:ro"]
"""
TOOLS = ("bash", "env", "git", "gzip", "mkdir", "rm", "tar")
LARGE = [name for name in (*SFT_RECIPES, *RL_RECIPES) if name in RECIPE_SITES]


pytestmark = pytest.mark.timeout(300)  # one process submits each large recipe: 15 s on an idle core


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Outcome]:
    """What dry runs show: of each large recipe, and of some other commands."""
    folder = tmp_path_factory.mktemp("dry")
    (folder / "clusters").mkdir()
    (folder / "clusters" / "site.toml").write_text(CLUSTER)
    for gpu in {RECIPE_SITES[name].cluster.gpu for name in LARGE}:
        (folder / "clusters" / f"{gpu}.toml").write_text(CLUSTER.replace('"h100"', f'"{gpu}"'))
    (folder / "clusters" / "pyxis.toml").write_text(f'folder = "{folder}"\n' + CLUSTER + CONTAINER)
    (folder / "checkpoints/step-00000100").mkdir(parents=True)
    for name in LARGE:
        config = (RL_RECIPES | SFT_RECIPES)[name]()
        shards = config.loader.shards if isinstance(config, SFTConfig) else config.shards
        held_out = [] if isinstance(config, SFTConfig) else [place for _, place in config.held_out.benchmarks]
        for place in (shards, *held_out):
            (folder / place).mkdir(parents=True, exist_ok=True)
        if not (folder / config.model).exists():
            shutil.copytree(CONFIGS / RECIPE_SITES[name].shape, folder / config.model)
    commands: dict[str, list[str]] = {}
    for name in LARGE:
        site = RECIPE_SITES[name].cluster
        stage = "rl" if name in RL_RECIPES else "sft"
        commands[name] = [stage, name, "--on", site.gpu, "--nodes", str(site.nodes)]
    commands["pyxis"] = [
        "sft",
        "qwen2_5_vl_7b_sft",
        "--on",
        "pyxis",
        "--optim.lr",
        "1e-6",
        "--log.wandb",
        "it's",
    ]
    commands["quote"] = ["data", "mix", "data/openmmreasoner_rl/mixed", "--out", "it's", "--on", "site"]
    commands["convert"] = ["convert", "to-hf", "checkpoints/step-00000100", "out/hf", "--on", "site"]
    commands["data"] = ["data", "mix", "data/openmmreasoner_rl/mixed", "--out", "mix", "--on", "site"]
    commands["missing"] = ["sft", "qwen2_5_vl_7b_sft", "--model", "models/none", "--on", "site"]
    commands["nothing"] = ["data", "validate", "data/openmmreasoner_rl/mixed", "--on", "site"]
    commands["eval"] = ["eval", "qwen2_5_vl_7b_greedy", "--on", "site", "--nodes", "2"]
    model = SFT_RECIPES["qwen2_5_vl_7b_sft"]().model
    asked = ["mathvista_testmini", "mathverse_testmini", "--engine.num_engines", "4"]
    commands["benchmarks"] = ["eval", *asked, "--model", model, "--on", "site"]
    commands["typo"] = ["eval", "aime24", "mathvist", "--model", model, "--on", "site"]
    env = {"PATH": path_with(folder / "bin", *TOOLS), "HOME": str(folder)}
    done = run_omr(
        *(["launch", *words, "--dry-run"] for words in commands.values()), cwd=folder, env=env, timeout=240
    )
    assert not (folder / ".nemo_run").exists() and not (folder / "runs/openmmreasoner_gspo").exists()
    return dict(zip(commands, done, strict=True))


def scripts(outcome: Outcome) -> tuple[str, str]:
    """Returns the batch script, and what every task runs."""
    _, batch, task = re.split(r"# ---- .* ----\n\n", outcome.out)
    return batch, task


def flags(batch: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", batch, re.M))


@pytest.mark.parametrize("name", LARGE)
def test_every_large_recipe_is_whole(shown: Mapping[str, Outcome], name: str):
    outcome = shown[name]
    assert outcome.code == 0, outcome.err
    states = re.findall(r"^(ok|\?\?|!!)  (\w+)", outcome.err, re.M)
    num_held_out = len(RL_RECIPES[name]().held_out.benchmarks) if name in RL_RECIPES else 0
    inputs = [("ok", "input")] * (2 + num_held_out)
    assert states == [("ok", "layout"), ("ok", "memory"), *inputs, ("ok", "code"), ("??", "slurm")]
    batch, task = scripts(outcome)
    is_rl, site = name in RL_RECIPES, RECIPE_SITES[name].cluster
    assert flags(batch) == {
        "account": "my-account",
        "partition": "gpu",
        "nodes": str(site.nodes),
        "ntasks-per-node": "1" if is_rl else "8",
        "gpus-per-node": "8",
        "cpus-per-task": "64" if is_rl else "8",
        "mem": "0",
        "time": "24:00:00",
        "signal": "USR1@600",
        "exclusive": "",
        "reservation": "'a b'",
        "job-name": f"omr.{'rl' if is_rl else 'sft'}",
        "open-mode": "append",
        "output": flags(batch)["output"],
    }
    assert flags(batch)["output"].endswith(f"/runs/{name}/launch/logs/%j.log")
    as_wished = is_rl or SFT_RECIPES[name]().processes == site.num_gpus
    processes = "" if as_wished else f" --processes {site.num_gpus}"
    assert task.rstrip().endswith(
        f"exec python -P -m launch.cli {'rl' if is_rl else 'sft'} {name}{processes}"
    )


@pytest.mark.parametrize("name", [*LARGE, "pyxis", "convert", "data"])
def test_scripts_are_valid_bash(shown: Mapping[str, Outcome], name: str, tmp_path: Path):
    batch, task = scripts(shown[name])
    (tmp_path / "task.sh").write_text(task)
    ours = batch.partition("set +vx\n")[2].partition("# Command 1")[0]  # the rest is NeMo-Run's
    (tmp_path / "setup.sh").write_text(f"#!/bin/bash\n{ours}")
    (tmp_path / "batch.sh").write_text(batch)
    shellcheck = Path(sys.executable).parent / "shellcheck"
    checked = subprocess.run(
        [shellcheck, "--severity=warning", "task.sh", "setup.sh"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout
    subprocess.run(["bash", "-n", "batch.sh"], cwd=tmp_path, check=True)


def test_environment_keeps_names_and_values(shown: Mapping[str, Outcome], tmp_path: Path):
    batch, _ = scripts(shown[LARGE[0]])
    exports = [line for line in batch.splitlines() if line.startswith(("export GREETING", "export lower"))]
    printed = subprocess.check_output(
        ["bash", "-c", "\n".join(exports) + '\necho "$GREETING|$lower_case"'], text=True
    )
    assert printed == 'it\'s $HOME "x"|1\n'
    assert "\nmodule load cuda\n" in batch


def test_container_has_image_mounts_and_the_packed_code(shown: Mapping[str, Outcome]):
    outcome = shown["pyxis"]
    assert outcome.code == 0, outcome.err
    batch, task = scripts(outcome)
    (srun,) = [line for line in batch.splitlines() if line.startswith("srun --output")]
    assert "--container-image /images/omr.sqsh" in srun
    assert "/data:/data:ro," in srun and "/sft:/nemo_run" in srun and "--chdir" not in srun
    assert "export PATH=" not in batch, "the image has its own python"
    assert "PYTHONPATH=/nemo_run/code" in task
    assert "launch.cli sft qwen2_5_vl_7b_sft --optim.lr 1e-6 --log.wandb 'it'\"'\"'s'" in task


def test_commands_without_gpus_go_to_their_partition(shown: Mapping[str, Outcome]):
    for name in ("convert", "data"):
        outcome = shown[name]
        assert outcome.code == 0, outcome.err
        asked = flags(scripts(outcome)[0])
        assert (asked["partition"], asked["nodes"], asked["cpus-per-task"]) == ("cpu", "1", "64")
        assert "gpus-per-node" not in asked
    assert flags(scripts(shown["convert"])[0])["output"].endswith("/out/hf.launch/logs/%j.log")


def test_benchmarks_get_a_gpu_for_each_engine(shown: Mapping[str, Outcome]):
    outcome = shown["benchmarks"]
    assert outcome.code == 0, outcome.err
    batch, task = scripts(outcome)
    asked = flags(batch)
    assert (asked["nodes"], asked["gpus-per-node"], asked["partition"]) == ("1", "4", "gpu")
    assert "launch.cli eval mathvista_testmini mathverse_testmini --engine.num_engines 4 --model " in task
    assert "ok  input     model=" in outcome.err


def test_mistakes_end_with_a_line_that_says_so(shown: Mapping[str, Outcome]):
    assert shown["missing"].code == 2
    assert re.search(
        r"^!!  input     model=models/none is not there: no /.*/models/none$", shown["missing"].err, re.M
    )
    assert shown["missing"].err.endswith("nothing was submitted, for what is marked !! above: input\n")
    assert shown["nothing"].code == 2
    assert "`omr data validate` writes no folder that a job could have; run it here" in shown["nothing"].err
    assert shown["quote"].code == 2
    assert re.search(r"it's\.launch\" has \"'\": NeMo-Run and Slurm take paths", shown["quote"].err)
    assert shown["eval"].code == 2
    assert "--nodes 2, but `omr eval` takes 1 with this recipe" in shown["eval"].err
    assert shown["typo"].code == 2
    assert "no benchmark 'mathvist'; did you mean" in shown["typo"].err
