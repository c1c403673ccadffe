"""The 7B recipes have the published numbers, and the demo's stages use each other's outputs."""

from __future__ import annotations

from dataclasses import asdict

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
    config = RL_RECIPES["qwen2_5_vl_7b_gspo"]()
    optim, algorithm, sampling = config.optim, config.algorithm, config.sampling
    assert (algorithm.name, algorithm.clip) == ("gspo", (3e-4, 4e-4))
    assert algorithm.num_minibatches == 1
    assert (config.prompts_per_step, config.steps, config.checkpoint.every) == (128, 1_232, 16)
    assert (sampling.n, sampling.temperature, sampling.top_p, sampling.max_tokens) == (16, 1.0, 1.0, 28_696)
    assert config.engine.max_model_len == 4_096 + 28_696
    assert (optim.lr, optim.weight_decay, optim.schedule, optim.warmup_steps) == (1e-6, 0.1, "constant", 25)
    assert config.reward.weights == (("accuracy", 0.9), ("format", 0.1))


def test_published_data_numbers():
    cold_start, hard = DATA_RECIPES["openmmreasoner_sft"](), DATA_RECIPES["mmfinereason_sft_hardest"]()
    questions = DATA_RECIPES["openmmreasoner_rl"]()
    assert (cold_start.per_question, cold_start.teacher.k, cold_start.samples) == (8, 8, 874_357)
    assert [source.name for source in cold_start.sources if source.responses == "distill"] == [
        "llava_cot",
        "openvlthinker",
        "we_math_sft",
    ]
    assert len(questions.sources) == 8 and questions.questions.max_answer_chars == 50
    assert (questions.dedup.scope, questions.dedup.threshold) == ("across", 0.99)
    assert (hard.student.k, hard.responses.min_words, hard.responses.max_pass_rate) == (4, 100, 0.0)
    assert hard.writer.max_pixels == 2_048**2


def test_grpo_is_the_gspo_recipe_with_another_algorithm():
    gspo, grpo = asdict(RL_RECIPES["qwen2_5_vl_7b_gspo"]()), asdict(RL_RECIPES["qwen2_5_vl_7b_grpo"]())
    assert {name for name in gspo if gspo[name] != grpo[name]} == {"run", "algorithm"}
    assert grpo["algorithm"]["name"] == "grpo"
    assert RL_RECIPES["qwen2_5_vl_7b_grpo"]().algorithm.clip == (0.2, 0.2)


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
