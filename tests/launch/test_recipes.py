"""Recipes have the published numbers, variants differ in few fields, and the demo's stages use each other's outputs."""

from __future__ import annotations

from dataclasses import asdict
from typing import get_args

import pytest

from data_pipeline.benchmarks.registry import BENCHMARKS
from launch.config import RL_STAGES, DemoAlgorithm, name_rl_stage
from launch.recipes.data import DATA_RECIPES
from launch.recipes.eval import EVAL_RECIPES
from launch.recipes.rl import RL_RECIPES
from launch.recipes.sft import SFT_RECIPES
from rl.algorithms.config import AlgorithmConfig


def test_published_sft_numbers():
    config = SFT_RECIPES["qwen2_5_vl_7b_sft"]()
    optim = config.optim
    assert (optim.lr, optim.weight_decay, optim.beta1, optim.beta2, optim.eps) == (
        5e-5,
        0.0,
        0.9,
        0.999,
        1e-8,
    )
    assert (optim.schedule, optim.warmup_steps, optim.min_lr, optim.clip_grad) == ("cosine", 430, 0.0, 1.0)
    assert (config.steps, config.loader.pack_length, config.image.max_pixels) == (4_300, 61_440, 4_194_304)


def test_published_rl_numbers():
    config = RL_RECIPES["openmmreasoner_gspo"]()
    optim, algorithm, sampling = config.optim, config.algorithm, config.sampling
    assert (algorithm.name, algorithm.clip) == ("gspo", (3e-4, 4e-4))
    assert algorithm.num_minibatches == 1
    assert (config.prompts_per_step, config.steps, config.checkpoint.every) == (128, 1_232, 16)
    assert (sampling.n, sampling.temperature, sampling.top_p, sampling.max_tokens) == (16, 1.0, 1.0, 28_696)
    assert config.engine.max_model_len == 4_096 + 28_696
    assert (optim.lr, optim.weight_decay, optim.schedule, optim.warmup_steps) == (1e-6, 0.1, "constant", 25)
    assert config.reward.weights == (("accuracy", 0.9), ("format", 0.1))
    asked = [name for name, _ in config.held_out.benchmarks]
    assert asked == ["amc23", "aime24", "aime25", "mmmu_val", "mathvision_testmini"]
    assert asked == [name for name in asked if name in BENCHMARKS] and config.held_out.every == 16


def test_training_reads_what_a_data_recipe_writes_and_rl_starts_from_sft():
    written = {f"{config().out}/mixed" for config in DATA_RECIPES.values()}
    for name in ("qwen2_5_vl_7b_sft", "mmfinereason_sft", "mmvistareason_sft"):
        assert SFT_RECIPES[name]().loader.shards in written
    rl = RL_RECIPES["openmmreasoner_gspo"]()
    assert rl.shards in written and rl.model == f"{SFT_RECIPES['qwen2_5_vl_7b_sft']().run}/hf"


def test_published_data_numbers():
    cold_start, hard = DATA_RECIPES["openmmreasoner_sft"](), DATA_RECIPES["mmfinereason_sft_hardest"]()
    questions = DATA_RECIPES["openmmreasoner_rl"]()
    assert (cold_start.per_question, cold_start.teachers[0].k, cold_start.samples) == (8, 8, 874_357)
    assert [source.name for source in cold_start.sources if source.responses == "distill"] == [
        "llava_cot",
        "openvlthinker",
        "we_math_sft",
    ]
    assert len(questions.sources) == 8 and questions.questions.max_answer_chars == 50
    assert (questions.dedup.scope, questions.dedup.threshold) == ("across", 0.99)
    assert (hard.student.k, hard.responses.min_words, hard.responses.max_pass_rate) == (4, 100, 0.0)
    assert hard.writer.max_pixels == 2_048**2


@pytest.mark.parametrize(
    ("name", "base", "fields"),
    [
        (
            "openmmreasoner_gspo_4",
            "openmmreasoner_gspo",
            {"steps", "prompts_per_step", "algorithm", "checkpoint"},
        ),
        ("openmmreasoner_gspo_n8", "openmmreasoner_gspo", {"sampling"}),
        ("openmmreasoner_gspo_t14", "openmmreasoner_gspo", {"sampling"}),
        ("openmmreasoner_gspo_curriculum", "openmmreasoner_gspo", {"prompts"}),
        ("openmmreasoner_gspo_async", "openmmreasoner_gspo", {"rollout", "algorithm"}),
        ("openmmreasoner_grpo", "openmmreasoner_gspo", {"algorithm"}),
        ("openmmreasoner_dapo", "openmmreasoner_gspo", {"algorithm", "reward"}),
        ("openmmreasoner_dapo_n8", "openmmreasoner_dapo", {"sampling"}),
        ("openmmreasoner_dapo_t14", "openmmreasoner_dapo", {"sampling"}),
        ("openmmreasoner_dapo_released", "openmmreasoner_gspo", {"steps", "prompts_per_step", "algorithm"}),
        ("openmmreasoner_32b_gspo", "openmmreasoner_gspo", {"model", "trainers", "engine", "parallel"}),
        ("visurf", "openmmreasoner_gspo", {"model", "algorithm"}),
        ("demo_dapo", "demo", {"algorithm", "reward"}),
        *((f"demo_{name}", "demo", {"algorithm"}) for name in get_args(DemoAlgorithm)[1:] if name != "dapo"),
    ],
)
def test_variant_differs_from_its_base_in_these_fields(name: str, base: str, fields: set[str]):
    one, other = asdict(RL_RECIPES[name]()), asdict(RL_RECIPES[base]())
    assert {field for field in one if one[field] != other[field]} == {"run", *fields}


def test_runs_of_recipes_have_folders_of_their_own():
    runs = {name: config().run for name, config in RL_RECIPES.items()}
    assert len(set(runs.values())) == len(runs)
    assert all(run == f"runs/{name}" for name, run in runs.items() if not name.startswith("demo"))


def test_variants_of_the_paper_have_its_numbers():
    configs = {name: recipe() for name, recipe in RL_RECIPES.items()}
    for name in ("gspo", "gspo_4", "grpo", "dapo_released"):
        config = configs[f"openmmreasoner_{name}"]
        assert not config.algorithm.drop_equal_groups, "as released, all groups are trained on"
        questions, updates = (
            config.steps * config.prompts_per_step,
            config.steps * config.algorithm.num_minibatches,
        )
        assert questions == pytest.approx(1_232 * 128, rel=1e-3) and updates == pytest.approx(1_232, rel=1e-3)
        assert config.prompts_per_step == 128 * config.algorithm.num_minibatches
    grpo = configs["openmmreasoner_grpo"].algorithm
    assert (grpo.clip, grpo.loss_mean, grpo.num_minibatches) == ((0.2, 0.2), "tokens", 1)
    assert configs["openmmreasoner_dapo_released"].algorithm.clip == (0.2, 0.2)
    paper = configs["openmmreasoner_dapo"]
    assert paper.algorithm.clip == (0.2, 0.28) and paper.algorithm.dynamic_sampling.enabled
    assert (dict(paper.reward.weights)["overlong"], paper.reward.buffer) == (1.0, 4_096)
    assert paper.prompts_per_step * paper.algorithm.dynamic_sampling.oversampling == 384
    assert [configs[f"openmmreasoner_{name}_n8"].sampling.n for name in ("gspo", "dapo")] == [8, 8]
    assert [configs[f"openmmreasoner_{name}_t14"].sampling.temperature for name in ("gspo", "dapo")] == [
        1.4,
        1.4,
    ]
    assert configs["visurf"].algorithm.solution.enabled


@pytest.mark.parametrize(
    ("name", "schedule", "prompts", "lengths", "reward"),
    [
        (
            "mmfinereason",
            (300, 1e-6, 10, 0.0),
            (256, 16, 1.0),
            (8_192, 16_384),
            {"accuracy": 0.9, "format": 0.1},
        ),
        ("mmvistareason", (200, 5e-6, 20, 0.005), (256, 8, 0.95), (4_096, 16_384), {"accuracy": 1.0}),
    ],
)
def test_other_papers_rl_has_their_numbers(
    name: str,
    schedule: tuple[int, float, int, float],
    prompts: tuple[int, int, float],
    lengths: tuple[int, int],
    reward: dict[str, float],
):
    config = RL_RECIPES[f"{name}_gspo"]()
    optim, algorithm, sampling = config.optim, config.algorithm, config.sampling
    assert (config.steps, optim.lr, optim.warmup_steps, algorithm.kl.coefficient) == schedule
    assert (config.prompts_per_step, sampling.n, sampling.top_p) == prompts
    assert (config.engine.max_model_len, sampling.max_tokens) == (sum(lengths), lengths[1])
    assert (algorithm.clip, algorithm.num_minibatches, optim.weight_decay) == ((3e-4, 4e-4), 1, 0.1)
    assert dict(config.reward.weights) == reward
    assert config.model == f"{SFT_RECIPES[f'{name}_sft']().run}/hf", "from its own SFT"


@pytest.mark.parametrize(
    ("name", "epochs", "samples", "pack_length", "warmup"),
    [
        ("mmfinereason_sft", 3, 1_770_926, 32_768, 0.03),
        ("mmvistareason_sft", 2, 527_809, 16_384, 0.1),
    ],
)
def test_other_papers_sft_has_their_numbers(
    name: str, epochs: int, samples: int, pack_length: int, warmup: float
):
    config = SFT_RECIPES[name]()
    assert config.steps * config.loader.global_batch_size == pytest.approx(epochs * samples, rel=1e-3)
    assert (config.loader.pack_length, config.image.max_pixels) == (pack_length, 768**2)
    optim = config.optim
    assert (optim.lr, optim.schedule, optim.weight_decay, optim.clip_grad) == (1e-5, "cosine", 0.0, 1.0)
    assert optim.warmup_steps == pytest.approx(warmup * config.steps, abs=1)
    assert optim.freeze == ("vision", "projector")


def test_each_algorithm_of_the_demo_has_a_recipe_and_a_stage():
    for algorithm in get_args(DemoAlgorithm):
        config = RL_RECIPES["demo" if algorithm == "gspo" else f"demo_{algorithm}"]("/root", seed=3)
        stage = name_rl_stage(algorithm)
        assert config.run == f"/root/{stage}" and stage in RL_STAGES and config.seed == 3
        name = "grpo" if algorithm == "visurf" else algorithm
        assert config.algorithm.name == name and config.algorithm.solution.enabled == (algorithm == "visurf")
        assert config.algorithm.num_minibatches == (1 if algorithm == "gspo" else 4), (
            "with one, nothing is clipped"
        )


def test_given_clip_replaces_the_published_one():
    assert AlgorithmConfig(name="grpo", clip_high=0.28).clip == (0.2, 0.28)


def test_demo_stages_use_each_others_outputs():
    root = "/tmp/some/where"
    sft, rl = SFT_RECIPES["demo"](root, seed=7), RL_RECIPES["demo"](root, seed=7)
    score = EVAL_RECIPES["demo"](root, seed=7)
    assert rl.model == f"{sft.run}/hf" and score.model == f"{rl.run}/hf"
    assert sft.image == rl.image == score.image, "trainer and engine must count the same image tokens"
    assert sft.loader.shards == rl.shards != score.shards
    assert {sft.seed, sft.loader.seed, rl.seed, score.seed} == {7}
    assert rl.sampling.max_tokens == score.sampling.max_tokens
