"""Checks of a login node: layouts, memory and inputs that cannot work are found before a job is submitted."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from launch.recipes.clusters import RECIPE_SITES
from launch.recipes.data import DATA_RECIPES
from launch.recipes.rl import RL_RECIPES
from launch.recipes.sft import SFT_RECIPES
from launch.submit.checks import check_inputs, check_layout, check_rewards, check_with_slurm
from launch.submit.code import find_code
from launch.submit.config import ClusterFile
from launch.submit.login import Login
from launch.submit.size import Size
from megatron_omr.config import ParallelConfig, ValidationConfig
from megatron_omr.plan.shapes import CONFIGS
from rl.config import HeldOutConfig
from rl.rewards.config import RewardConfig

CLUSTER = ClusterFile(kind="slurm", gpu="h100")
NODE = Size(nodes=1, tasks_per_node=8, gpus_per_node=8)


@pytest.mark.parametrize("name", RECIPE_SITES)
def test_every_recipe_is_legal_and_fits_its_machines(name: str):
    site = RECIPE_SITES[name].cluster
    is_rl = name in RL_RECIPES
    config = RL_RECIPES[name]() if is_rl else replace(SFT_RECIPES[name](), processes=site.num_gpus)
    size = Size(nodes=site.nodes, gpus_per_node=8)
    found = list(check_layout(config, name, replace(CLUSTER, gpu=site.gpu), size))
    assert [(check.name, check.state) for check in found] == [("layout", "ok"), ("memory", "ok")], found


def test_layout_that_cannot_be_and_layout_that_does_not_fit_are_wrong():
    config = SFT_RECIPES["qwen2_5_vl_7b_sft"]()
    (found,) = check_layout(replace(config, processes=12), "qwen2_5_vl_7b_sft", CLUSTER, NODE)
    assert (found.name, found.state) == ("layout", "wrong") and "12 processes cannot hold" in found.text
    large = replace(config, parallel=ParallelConfig(), compute=replace(config.compute, recompute="none"))
    _, memory = check_layout(large, "qwen2_5_vl_7b_sft", CLUSTER, NODE)
    assert (memory.name, memory.state) == ("memory", "wrong") and "omr plan" in memory.text
    _, memory = check_layout(config, "qwen2_5_vl_7b_sft", replace(CLUSTER, gpu=""), NODE)
    assert memory.state == "unknown" and "names no GPU" in memory.text


def test_model_that_is_only_on_the_cluster_leaves_the_layout_open():
    config = replace(SFT_RECIPES["qwen2_5_vl_7b_sft"](), model="/there/mine")
    (found,) = check_layout(config, "mine", CLUSTER, NODE)
    assert (found.state, found.text) == ("unknown", "model=/there/mine is not here: its shape decides")


def test_model_that_vllm_computes_otherwise_is_refused_for_rl(tmp_path: Path):
    text = (CONFIGS / "Qwen2.5-VL-7B-Instruct" / "config.json").read_text()
    assert '"mrope_section"' in text
    yarn = '"factor": 4.0, "original_max_position_embeddings": 32768, '
    for kind in ('"type": "mrope"', '"type": "default"', '"rope_type": "default"'):
        text = text.replace(kind, f'{yarn}"{kind.split(chr(34))[1]}": "yarn"')
    (tmp_path / "config.json").write_text(text)
    config = replace(RL_RECIPES["openmmreasoner_gspo"](), model=str(tmp_path))
    (found,) = check_layout(config, "mine", CLUSTER, NODE)
    assert found.state == "wrong" and "vLLM computes other frequencies" in found.text


def test_missing_inputs_are_named_and_addresses_are_not_looked_at(tmp_path: Path):
    config = SFT_RECIPES["demo"](str(tmp_path / "x"))
    shutil.copytree(CONFIGS / "Qwen2.5-VL-7B-Instruct", tmp_path / "x" / "model")
    config = replace(config, model="x/model", loader=replace(config.loader, shards="data/none"))
    model, shards = check_inputs(config, Login(), str(tmp_path))
    assert (model.state, shards.state) == ("ok", "wrong")
    assert shards.text == f"loader.shards=data/none is not there: no {tmp_path}/data/none"
    far = replace(config, loader=replace(config.loader, shards="s3://bucket/shards"))
    assert [check.state for check in check_inputs(far, Login(), str(tmp_path))] == ["ok", "unknown"]
    validated = replace(far, validation=ValidationConfig(shards="data/held"))
    *_, wrong = check_inputs(validated, Login(), str(tmp_path))
    assert "validation.shards=data/held is not there" in wrong.text
    held_out = HeldOutConfig(shards="data/held", benchmarks=(("amc23", "data/amc23"),))
    rl = replace(RL_RECIPES["demo"](), held_out=held_out)
    *_, own, benchmark = check_inputs(rl, Login(), str(tmp_path))
    assert "held_out.shards=data/held is not there" in own.text
    assert "held_out.benchmarks amc23=data/amc23 is not there" in benchmark.text
    named = [check.text for check in check_inputs(DATA_RECIPES["own"](), Login(), str(tmp_path))]
    assert named == [f"sources.0.rows.path=./mine.jsonl is not there: no {tmp_path}/mine.jsonl"]


def test_without_slurm_its_opinion_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = check_with_slurm(Login(), "#!/bin/sh\n")
    assert found.state == "unknown" and "this machine has no such command" in found.text


def test_own_reward_is_tried_and_looked_for_where_the_job_will(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def best(given): return 1\ndef wrong(given): return given.nothing")
    elsewhere = tmp_path / "elsewhere"

    def check(name: str, base: Path) -> tuple[str, str]:
        reward = RewardConfig(weights=(("accuracy", 1.0), (name, 1.0)))
        config = replace(RL_RECIPES["demo"](), reward=reward)
        (found,) = check_rewards(config, Login(), str(base), find_code())
        return found.state, found.text

    assert check("mine.py:best", tmp_path)[0] == "ok"
    assert check(f"{tmp_path}/mine.py:best", elsewhere)[0] == "ok"
    assert check("docs/example_reward.py:shortness", elsewhere)[0] == "ok"  # in the code, which is packed
    state, text = check("mine.py:best", elsewhere)
    assert state == "wrong" and f"mine.py will not be found: put it into {elsewhere}" in text
    state, text = check("mine.py:wrong", tmp_path)
    assert state == "wrong" and "AttributeError" in text
