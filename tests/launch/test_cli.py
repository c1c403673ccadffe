"""The command line: help with examples, and mistakes that name the nearest choice."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from launch import cli
from launch.arguments import CommandGroup

ROOT = Path(__file__).parents[2]


def omr(*args: str, timeout: float = 60, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *args],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120", **env},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_overview_names_every_command_and_loads_nothing_heavy():
    code = (
        "import sys\nfrom launch.cli import main\nassert main(['--help']) == 0\n"
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "ray", "vllm", "transformers", "megatron", "numpy"} & set(done.stderr.split())
    for command in cli.OMR.commands:
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize(
    "command",
    ["doctor", "demo", "data", "tiny", "sft", "rl", "eval", "verify", "convert", "parity", "report"],
)
def test_help_of_a_command_explains_and_ends_with_examples(command: str):
    done = omr(command, "--help")
    assert done.returncode == 0 and not done.stderr
    description, _, examples = done.stdout.partition("examples:\n")
    found = cli.OMR.commands[command]
    doc = found.doc if isinstance(found, CommandGroup) else found.__doc__
    assert doc.splitlines()[0] in description and "Examples:" not in description
    assert examples.strip() and all(line.startswith("  omr ") for line in examples.strip("\n").splitlines())


@pytest.mark.parametrize(
    "words", [("sft", "demo"), ("rl", "demo"), ("eval", "demo"), ("convert", "to-megatron")]
)
def test_help_of_a_recipe_lists_its_fields(words: tuple[str, str]):
    done = omr(*words, "--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout
    assert ("--parallel.tp" if words[0] != "eval" else "--sampling.temperature") in done.stdout


def test_import_has_path_and_out_as_positionals_only():
    help_text = omr("data", "import", "messages", "--help").stdout
    assert "PATH [OUT]" in help_text
    assert "--out" not in help_text and "--rows.path" not in help_text


def test_recipe_values_are_the_defaults_of_the_help():
    text = " ".join(omr("sft", "demo", "--help").stdout.replace("│", " ").split())  # wherever lines end
    assert "(default: runs/demo/sft)" in text


@pytest.mark.parametrize(
    ("args", "nearest"),
    [
        (["stf", "demo"], "did you mean 'sft'?"),
        (["sft", "dmo"], "did you mean 'demo'?"),
        (["rl", "openmmreasoner_gsop"], "did you mean 'openmmreasoner_gspo'?"),
        (["convert", "to-megatorn", "a", "b"], "did you mean 'to-megatron'?"),
        (["data", "digit", "out"], "did you mean 'digits'?"),
        (["sft", "demo", "--optim.lrr", "1"], "--optim.lr "),
        (["rl", "demo", "--algorithm.clip_lo", "1"], "--algorithm.clip_low "),
        (["parity", "x", "--parallel.ttp", "2"], "--parallel.tp "),
        (["verify", "in", "out", "--checker.mod", "strict"], "--checker.mode "),
        (["data", "select", "in", "out", "--filters.min_word=5"], "--filters.min_words "),
        (["data", "select", "in", "out", "--preset=mmfinereson"], "did you mean 'mmfinereason'?"),
        (["vverify", "in", "out"], "did you mean 'verify'?"),
    ],
)
def test_typo_names_the_nearest_choice(args: list[str], nearest: str):
    done = omr(*args)
    assert done.returncode == 2
    assert nearest in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sft", "demo", "--model", "/nowhere"], "omr: error: /nowhere/config.json does not exist"),
        (["report", "/nowhere"], "omr: error: /nowhere is not a folder"),
        (["sft", "demo", "--steps", "0"], "omr: error: steps=0 must be at least 1"),
        (["sft", "demo", "--steps", "many"], "--steps"),
        (["sft", "demo", "--parallel.sp"], "parallel.sp=True needs parallel.tp > 1"),
        (["data", "import", "messages", "rows.jsonl"], "omr: error: out is missing"),
        (["sft", "demo", "--loader.shards", "https://host/x?token=1"], "keys belong into environment"),
        (["parity"], "Missing"),
        (["sft"], "qwen2_5_vl_7b_sft"),
        ([], "usage: omr"),
    ],
)
def test_mistake_is_explained_without_a_traceback(args: list[str], message: str):
    done = omr(*args)
    assert done.returncode == 2
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_layout_that_cannot_hold_the_model_is_refused_before_any_rank_starts(tiny_hf: Path):
    done = omr("sft", "demo", "--model", str(tiny_hf), "--parallel.tp", "3", "--processes", "3")
    assert done.returncode == 2
    assert done.stderr.startswith("omr: error: parallel.tp=3 must divide num_key_value_heads=2")
    done = omr("parity", str(tiny_hf), "--parallel.pp", "2", "--processes", "3")
    assert done.returncode == 2
    assert "3 processes cannot hold" in done.stderr


@pytest.mark.parametrize("command", ["rl", "eval"])
def test_model_that_the_engine_computes_otherwise_is_refused(command: str, tiny_hf: Path, tmp_path: Path):
    config = json.loads((tiny_hf / "config.json").read_text())
    config["text_config"]["rope_parameters"] = {
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 10.0,
        "mrope_section": [4, 6, 6],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = omr(command, "demo", "--model", str(tmp_path))
    assert done.returncode == 2
    assert "rope_type='yarn' works in SFT and conversion, but vLLM" in done.stderr


@pytest.mark.skipif(
    shutil.which("omr", path=Path(sys.executable).parent) is None, reason="omr is not installed"
)
def test_console_script_is_this_command():
    script = shutil.which("omr", path=Path(sys.executable).parent)
    done = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "omr sft demo" in done.stdout


@pytest.mark.parametrize(
    ("env", "options", "said"),
    [
        (
            {"RANK": "0", "WORLD_SIZE": "8"},
            [],
            "torchrun, or another launcher of ranks, started this.*use `srun --ntasks-per-node=1 omr rl RECIPE`",
        ),
        (
            {},
            ["--trainers", "3", "--parallel.tp", "2"],
            "3 trainers cannot hold parallel.tp=2 .* a multiple of 2",
        ),
        # a launcher's ranks are none of the trainers
        (
            {"SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_ID": "5"},
            ["--trainers", "3", "--parallel.tp", "2"],
            "3 trainers",
        ),
        ({}, ["--engine.tp", "3"], "engine.tp=3 must divide num_attention_heads=4; .* tp = 1, 2, 4$"),
    ],
)
def test_rl_is_started_once_and_counts_its_own_trainers(
    env: dict[str, str], options: list[str], said: str, tiny_hf: Path
):
    done = omr("rl", "demo", "--model", str(tiny_hf), *options, env=env)
    assert done.returncode == 2
    assert re.search(said, done.stderr), done.stderr
