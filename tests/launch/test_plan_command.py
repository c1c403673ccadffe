"""`omr plan`: every recipe fits its machines, the docs show what it prints, and mistakes are explained."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from launch.cli import main
from launch.plan_command import build_layout, build_rl_task, build_sft_task
from launch.recipes.clusters import RECIPE_SITES
from launch.recipes.rl import RL_RECIPES
from launch.recipes.sft import SFT_RECIPES
from megatron_omr.plan.config import AssumeConfig
from megatron_omr.plan.gpus import GPUS
from megatron_omr.plan.memory import plan_engine
from megatron_omr.plan.search import plan_layout
from tests.helpers.plan_docs import PAGE, render

ASSUME = AssumeConfig()


def test_every_recipe_but_the_demo_states_its_machines():
    assert {*SFT_RECIPES, *RL_RECIPES} - {"demo"} == set(RECIPE_SITES)


@pytest.mark.parametrize("name", sorted(SFT_RECIPES.keys() - {"demo"}))
def test_sft_recipe_fits_its_machines(name: str):
    config, site = SFT_RECIPES[name](), RECIPE_SITES[name]
    task = build_sft_task(config, ASSUME, shape=site.shape)
    plan = plan_layout(
        task, build_layout(config), ranks=site.cluster.num_gpus, cluster=site.cluster, assume=ASSUME
    )
    assert not plan.problem


@pytest.mark.parametrize("name", sorted(RL_RECIPES.keys() - {"demo"}))
def test_rl_recipe_fits_its_machines(name: str):
    config, site = RL_RECIPES[name](), RECIPE_SITES[name]
    task = build_rl_task(config, ASSUME, shape=site.shape)
    plan = plan_layout(task, build_layout(config), ranks=config.trainers, cluster=site.cluster, assume=ASSUME)
    assert not plan.problem
    assert config.trainers + config.engine.num_engines <= site.cluster.num_gpus
    assert task.engine is not None
    engine = plan_engine(task, task.engine, GPUS[site.cluster.gpu], ASSUME)
    assert engine.tokens > config.engine.max_model_len


def test_docs_show_what_the_command_prints():
    text = PAGE.read_text(encoding="utf-8")
    assert render(text) == text, "python -m tests.helpers.plan_docs writes the page anew"


def test_it_needs_no_torch():
    code = (
        "import sys; from launch.cli import main; main(['plan', 'qwen2_5_vl_72b_sft']); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "fits:" in done.stdout


def test_json_holds_the_parts_of_the_totals(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "qwen2_5_vl_7b_gspo", "--json", "--top", "2"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["measured"] is False and len(values["layouts"]) == 2
    for stage in values["plan"]["memory"]:
        total = stage.pop("total")
        assert sum(stage.values()) == pytest.approx(total)
    assert values["engine"]["cache"] > 0
    assert [plan["seconds"]["total"] for plan in values["layouts"]] == sorted(
        plan["seconds"]["total"] for plan in values["layouts"]
    )


def test_fields_of_the_recipe_and_the_cluster_count(capsys: pytest.CaptureFixture[str]):
    words = ["--compute.recompute", "none", "--compute.recompute_vision", "none", "--cluster.gpu", "a100"]
    assert main(["plan", "qwen2_5_vl_7b_sft", *words]) == 0
    out = capsys.readouterr().out
    assert "on 1 x 8 a100" in out and "does not fit: needs" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["qwen2_5_vl_7b_sft", "--parallel.tp", "8"], "parallel.tp=8 must divide num_key_value_heads=4"),
        (["qwen2_5_vl_7b_sft", "--cluster.gpus_per_node", "6"], "6 processes cannot hold parallel.tp=2"),
        (["qwen2_5_vl_7b_gspo", "--trainers", "8"], "need 12 GPUs"),
        (["qwen2_5_vl_7b_sft", "--cluster.nodes", "4096"], "loader.global_batch_size=2,048 holds no sample"),
        (
            ["qwen2_5_vl_7b_sft", "--compute.fp8", "tensorwise", "--compute.backend", "local"],
            "compute.fp8=tensorwise runs in Transformer Engine's layers",
        ),
        (
            ["qwen2_5_vl_7b_sft", "--compute.fp8", "tensorwise", "--precision", "fp32"],
            "compute.fp8=tensorwise runs in Transformer Engine's layers",
        ),
        (
            ["qwen2_5_vl_7b_sft", "--compute.backend", "te", "--precision", "fp32"],
            "compute.backend=te has no attention in fp32",
        ),
        (
            ["qwen2_5_vl_7b_sft", "--model", "models/mine", "--shape", "9B"],
            "there is no published shape '9B'",
        ),
        (["qwen2_5_vl_8b_sft"], "did you mean 'qwen2_5_vl_"),
    ],
)
def test_mistakes_are_explained(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", *words]) == 2
    assert message in capsys.readouterr().err


def test_engine_that_vllm_would_not_start_is_named(capsys: pytest.CaptureFixture[str]):
    """0.28 of 79.1 GiB leaves less than the 1.75 GiB of keys and values that 32,792 tokens take."""
    words = ["plan", "qwen2_5_vl_7b_gspo", "--engine.gpu_memory_utilization"]
    assert main([*words, "0.28"]) == 0
    assert "do not hold one response of engine.max_model_len=32,792" in capsys.readouterr().out
    assert main([*words, "0.2", "--json"]) == 0
    engine = json.loads(capsys.readouterr().out)["engine"]
    assert not engine["fits"] and "the weights leave -5.6 GiB" in engine["problem"]


def test_fp32_is_planned_with_the_layers_it_will_have(capsys: pytest.CaptureFixture[str]):
    def read(backend: str) -> list[dict]:
        words = ["qwen2_5_vl_7b_sft", "--precision", "fp32", "--compute.backend", backend, "--json"]
        assert main(["plan", *words]) == 0
        return json.loads(capsys.readouterr().out)["plan"]["memory"]

    assert read("auto") == read("local")


def test_demo_has_no_plan(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "demo"]) == 0
    assert "plans are for GPUs" in capsys.readouterr().err
