"""`omr plan`: every recipe fits its machines, the docs show what it prints, and mistakes are explained."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from launch.cli import main
from launch.plan_command import build_layout, build_rl_task, build_sft_task
from launch.recipes.clusters import RECIPE_SITES
from launch.recipes.rl import RL_RECIPES
from launch.recipes.sft import SFT_RECIPES
from megatron_omr.config import SFTConfig
from megatron_omr.plan.config import AssumeConfig, ClusterConfig
from megatron_omr.plan.engines import plan_engine
from megatron_omr.plan.gpus import GPUS
from megatron_omr.plan.memory import count_patches
from megatron_omr.plan.search import plan_layout
from rl.config import RLConfig, RolloutConfig
from rl.placement.plan import Node, build_plan
from tests.helpers.plan_docs import PAGE, render

ASSUME = AssumeConfig()
ONE_NODE = ClusterConfig()


def test_every_recipe_but_the_demo_states_its_machines():
    recipes = {*SFT_RECIPES, *RL_RECIPES}
    assert {name for name in recipes if not name.startswith("demo")} == set(RECIPE_SITES)


def check_sft_fits(config: SFTConfig, cluster: ClusterConfig, shape: str) -> None:
    config.check_processes(cluster.num_gpus)
    assert config.processes == cluster.num_gpus, "no GPU is idle"
    task = build_sft_task(config, ASSUME, shape=shape)
    plan = plan_layout(task, build_layout(config), ranks=config.processes, cluster=cluster, assume=ASSUME)
    assert not plan.problem


def check_rl_fits(config: RLConfig, cluster: ClusterConfig, shape: str) -> None:
    task = build_rl_task(config, ASSUME, shape=shape)
    plan = plan_layout(task, build_layout(config), ranks=config.trainers, cluster=cluster, assume=ASSUME)
    assert not plan.problem
    assert task.engine is not None and config.trainers + task.engine.num_gpus == cluster.num_gpus
    engine = plan_engine(task.engine, GPUS[cluster.gpu], ASSUME)
    assert engine.tokens > config.engine.max_model_len
    nodes = [Node(address=str(number), gpus=cluster.gpus_per_node) for number in range(cluster.nodes)]
    placed = build_plan(nodes, config)
    assert all(len(set(group)) == 1 for group in placed.groups), "tensor-parallel ranks share a machine"


@pytest.mark.parametrize("name", sorted(SFT_RECIPES.keys() - {"demo"}))
def test_sft_recipe_fits_its_machines(name: str):
    site = RECIPE_SITES[name]
    check_sft_fits(SFT_RECIPES[name](), site.cluster, site.shape)


@pytest.mark.parametrize("name", sorted(RL_RECIPES.keys() & RECIPE_SITES.keys()))
def test_rl_recipe_fits_its_machines(name: str):
    site = RECIPE_SITES[name]
    check_rl_fits(RL_RECIPES[name](), site.cluster, site.shape)


def test_published_recipes_run_on_the_machines_of_the_paper():
    found = [RECIPE_SITES[name].cluster for name in ("qwen2_5_vl_7b_sft", "openmmreasoner_gspo")]
    assert [(cluster.nodes, cluster.gpus_per_node) for cluster in found] == [(4, 8), (8, 8)]


def test_variant_for_one_machine_of_each_7b_recipe_fits():
    """What the recipes' docstrings say to change."""
    shape = RECIPE_SITES["qwen2_5_vl_7b_sft"].shape
    sft, rl = SFT_RECIPES["qwen2_5_vl_7b_sft"], RL_RECIPES["openmmreasoner_gspo"]
    assert "--processes 8" in str(sft.__doc__)
    check_sft_fits(replace(sft(), processes=8), ONE_NODE, shape)
    assert "--trainers 4 --engine.num_engines 4" in str(rl.__doc__)
    small = replace(rl(), trainers=4, engine=replace(rl().engine, num_engines=4))
    check_rl_fits(small, ONE_NODE, shape)


def test_an_engine_of_several_gpus_holds_more_and_is_faster_alone():
    def plan(tp: int):
        recipe = RL_RECIPES["openmmreasoner_32b_gspo"]()
        config = replace(recipe, engine=replace(recipe.engine, tp=tp, num_engines=32 // tp))
        task = build_rl_task(config, ASSUME, shape=RECIPE_SITES["openmmreasoner_32b_gspo"].shape)
        return plan_engine(task.engine, GPUS["h100"], ASSUME)

    one, two, four = plan(1), plan(2), plan(4)
    assert one.sent == one.weights == four.sent
    assert four.weights == pytest.approx(one.weights / 4, rel=1e-3), (
        "norms and a few biases are whole on each"
    )
    assert one.cache < 0, "32B leaves no room on one GPU"
    cache = four.cache / two.cache  # twice the GPUs, each with half of a token's keys and values
    assert four.tokens / two.tokens == pytest.approx(2 * cache)


def test_docs_show_what_the_command_prints():
    text = PAGE.read_text(encoding="utf-8")
    assert render(text) == text, "python -m tests.helpers.plan_docs writes the page anew"


def test_docs_of_experts_have_the_layouts_of_their_recipes():
    text = (PAGE.parent / "experts.md").read_text(encoding="utf-8")
    for name, site in RECIPE_SITES.items():
        config = (SFT_RECIPES | RL_RECIPES)[name]()
        if not isinstance(config, SFTConfig) or config.parallel.ep == 1:
            continue
        task, layout = build_sft_task(config, ASSUME, shape=site.shape), build_layout(config)
        plan = plan_layout(task, layout, ranks=config.processes, cluster=site.cluster, assume=ASSUME)
        row = (
            f"| `{name}` | {site.cluster.nodes} x 8 {site.cluster.gpu} | {layout.describe()} dp{plan.dp}, "
            f"recompute {config.compute.recompute} | {plan.peak_gib:.1f} of {GPUS[site.cluster.gpu].memory_gib} "
            f"| {plan.time.total:.1f} | {plan.time.mfu:.1%} |"
        )
        assert row in text


def test_it_needs_no_torch():
    code = (
        "import sys; from launch.cli import main; main(['plan', 'qwen2_5_vl_72b_sft']); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "fits:" in done.stdout


def test_json_holds_the_parts_of_the_totals(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "openmmreasoner_gspo", "--json", "--top", "2"]) == 0
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
    assert main(["plan", "qwen2_5_vl_3b_sft", *words]) == 0
    out = capsys.readouterr().out
    assert "on 1 x 8 a100" in out and "does not fit: needs" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["qwen2_5_vl_7b_sft", "--parallel.tp", "8"], "parallel.tp=8 must divide num_key_value_heads=4"),
        (["qwen2_5_vl_7b_sft", "--processes", "6"], "6 processes cannot hold parallel.tp=2"),
        (["qwen2_5_vl_7b_sft", "--cluster.nodes", "2"], "processes=32 need 32 GPUs, and cluster.nodes=2 x"),
        (["openmmreasoner_gspo", "--trainers", "52"], "x engine.tp=1 need 68 GPUs"),
        (
            ["openmmreasoner_gspo", "--engine.tp", "3", "--trainers", "4"],
            "engine.tp=3 must divide num_attention_heads=28",
        ),
        (
            ["openmmreasoner_32b_gspo", "--engine.tp", "5", "--engine.num_engines", "1"],
            "must divide num_key_value_heads=8",
        ),
        (
            ["qwen2_5_vl_7b_sft", "--processes", "32768", "--cluster.nodes", "4096"],
            "loader.global_batch_size=2,048 holds no sample",
        ),
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


def test_colocated_engines_need_no_gpus_of_their_own(capsys: pytest.CaptureFixture[str]):
    words = ["plan", "openmmreasoner_gspo", "--trainers", "64", "--rollout.placement", "colocated"]
    assert main([*words, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["engine"]["fits"]
    assert values["plan"]["memory"][0]["reserve"] == (ASSUME.reserve_gib + ASSUME.engine_gib) * 2**30
    assert main([*words, "--engine.gpu_memory_utilization", "0.95"]) == 0
    out = capsys.readouterr().out
    assert "what the trainer leaves on its GPU needs 2.0 GiB more" in out
    assert "meanwhile the host holds" in out and "GPUs are idle" not in out
    with pytest.raises(
        ValueError, match="rollout.placement=colocated does not go with rollout.mode=one_step_off"
    ):
        RolloutConfig(mode="one_step_off", placement="colocated")


def test_engine_that_vllm_would_not_start_is_named(capsys: pytest.CaptureFixture[str]):
    """0.28 of 79.1 GiB leaves less than the 1.75 GiB of keys and values that 32,792 tokens take."""
    words = ["plan", "openmmreasoner_gspo", "--engine.gpu_memory_utilization"]
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


def test_a_pair_of_a_videos_frames_counts_as_an_image():
    name = "qwen2_5_vl_7b_sft"
    config, videos = SFT_RECIPES[name](), {"images": 0.0, "image_pixels": 768 * 784}
    images = replace(ASSUME, **videos | {"images": 16.0})
    tasks = [
        build_sft_task(config, assume, shape=RECIPE_SITES[name].shape)
        for assume in (replace(ASSUME, **videos, video_frames=31), images, replace(ASSUME, **videos))
    ]
    assert tasks[0].work == tasks[1].work
    assert tasks[0].work.images == 16 * tasks[0].work.samples
    most, usual = count_patches(tasks[0], ASSUME, cp=1)
    assert most == usual > 0.9 * 4 * tasks[0].pack_tokens, "nearly all tokens are of videos"
    assert count_patches(tasks[2], ASSUME, cp=1)[1] == 0
