"""The command line as a user meets it: help that teaches, mistakes that name their neighbour."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch import cli
from launch.arguments import pick
from launch.config import DigitsConfig
from launch.recipes.sft import SFT_RECIPES
from megatron_omr.config import ConvertConfig, SFTConfig

ROOT = Path(__file__).parents[2]


def omr(*args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *args],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "120"},
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
    for command in cli.COMMANDS:
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize(
    "command", ["doctor", "demo", "data", "sft", "rl", "eval", "verify", "convert", "parity", "report"]
)
def test_help_of_a_command_explains_and_ends_with_examples(command: str):
    done = omr(command, "--help")
    assert done.returncode == 0 and not done.stderr
    description, _, examples = done.stdout.partition("examples:\n")
    assert cli.COMMANDS[command].__doc__.splitlines()[0] in description
    assert examples.strip() and all(line.startswith("  omr ") for line in examples.strip("\n").splitlines())


@pytest.mark.parametrize("words", [("sft", "demo"), ("rl", "demo"), ("eval", "demo"), ("convert", "to-hf")])
def test_help_of_a_recipe_lists_its_fields(words: tuple[str, str]):
    done = omr(*words, "--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout
    assert ("--parallel.tp" if words[0] != "eval" else "--sampling.temperature") in done.stdout


def test_recipe_values_are_the_defaults_of_the_help():
    assert "(default: runs/demo/sft)" in omr("sft", "demo", "--help").stdout


@pytest.mark.parametrize(
    ("args", "neighbour"),
    [
        (["stf", "demo"], "did you mean 'sft'?"),
        (["sft", "dmo"], "did you mean 'demo'?"),
        (["rl", "qwen2_5_vl_7b_gsop"], "did you mean 'qwen2_5_vl_7b_gspo'?"),
        (["convert", "to-megatorn", "a", "b"], "did you mean 'to-megatron'?"),
        (["data", "digit", "out"], "did you mean 'digits'?"),
        (["sft", "demo", "--optim.lrr", "1"], "--optim.lr "),
        (["rl", "demo", "--algorithm.clip_lo", "1"], "--algorithm.clip_low "),
        (["parity", "x", "--parallel.ttp", "2"], "--parallel.tp "),
        (["verify", "in", "out", "--mod", "strict"], "--mode "),
        (["vverify", "in", "out"], "did you mean 'verify'?"),
    ],
)
def test_typo_names_its_neighbour(args: list[str], neighbour: str):
    done = omr(*args)
    assert done.returncode == 2
    assert neighbour in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["sft", "demo", "--model", "/nowhere"], "omr: error: /nowhere/config.json does not exist"),
        (["report", "/nowhere"], "omr: error: /nowhere is not a folder"),
        (["sft", "demo", "--steps", "0"], "steps=0 must be at least 1"),
        (["sft", "demo", "--steps", "many"], "--steps"),
        (["sft", "demo", "--parallel.sp"], "parallel.sp=True needs parallel.tp > 1"),
        (["parity"], "Missing"),
        (["sft"], "qwen2_5_vl_7b_sft"),
        ([], "usage: omr"),
    ],
)
def test_mistake_is_said_without_a_traceback(args: list[str], said: str):
    done = omr(*args)
    assert done.returncode == 2
    assert said in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_layout_that_cannot_hold_the_model_is_refused_before_any_rank_starts(tiny_hf: Path):
    done = omr("sft", "demo", "--model", str(tiny_hf), "--parallel.tp", "3", "--processes", "3")
    assert done.returncode == 2
    assert done.stderr.startswith("omr: error: parallel.tp=3 must divide num_key_value_heads=2")
    done = omr("parity", str(tiny_hf), "--parallel.pp", "2", "--processes", "3")
    assert done.returncode == 2
    assert "3 processes cannot hold" in done.stderr


def test_overrides_reach_the_config():
    config = cli._recipe(
        cli.sft, "sft", SFTConfig, SFT_RECIPES, ["demo", "--optim.lr", "1e-2", "--parallel.tp", "2"]
    )
    assert (config.optim.lr, config.parallel.tp) == (1e-2, 2)
    assert config.loader == SFT_RECIPES["demo"]().loader


def test_fields_without_a_default_are_positional():
    words = ["a", "b", "--parallel.tp", "2"]
    config = cli.parse(cli.convert, "convert to-hf", ConvertConfig, words)
    assert (config.source, config.out, config.parallel.tp) == ("a", "b", 2)
    assert cli.parse(cli.data, "data digits", DigitsConfig, ["out", "--train", "5"]).counts["train"] == 5


def test_pick_lists_all_choices_when_nothing_is_near():
    with pytest.raises(ValueError, match="no recipe 'zzz'; there are demo, other"):
        pick("recipe", {"demo": 1, "other": 2}, "zzz")


@pytest.mark.skipif(
    shutil.which("omr", path=Path(sys.executable).parent) is None, reason="omr is not installed"
)
def test_console_script_is_this_command():
    script = shutil.which("omr", path=Path(sys.executable).parent)
    done = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "omr sft demo" in done.stdout


def test_data_command_writes_every_split(tmp_path: Path):
    counts = {"train": 6, "validation": 2, "test": 3}
    options = [word for name, count in counts.items() for word in (f"--{name}", str(count))]
    done = omr("data", "digits", str(tmp_path), *options, timeout=120)
    assert done.returncode == 0, done.stderr
    from data_pipeline.shards.index import ShardIndex

    assert {name: len(ShardIndex.load(tmp_path / name).refs) for name in counts} == counts
