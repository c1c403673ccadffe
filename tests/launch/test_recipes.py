"""The 7B recipes have the published numbers, and the demo's stages use each other's outputs."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from launch.recipes.data import DATA_RECIPES
from launch.recipes.eval import EVAL_RECIPES
from launch.recipes.rl import RL_RECIPES
from launch.recipes.sft import SFT_RECIPES
from megatron_omr.model_config import ModelConfig
from rl.config import AlgorithmConfig

# The fields that layouts depend on, from the published config.json of each size.
QWEN_7B = {
    "model_type": "qwen2_5_vl",
    "torch_dtype": "bfloat16",
    "vocab_size": 152_064,
    "hidden_size": 3_584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"mrope_section": [16, 24, 24]},
    "max_position_embeddings": 128_000,
    "image_token_id": 151_655,
    "video_token_id": 151_656,
    "vision_start_token_id": 151_652,
    "vision_end_token_id": 151_653,
    "vision_config": {
        "depth": 32,
        "hidden_size": 1_280,
        "intermediate_size": 3_420,
        "num_heads": 16,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "out_hidden_size": 3_584,
    },
}
QWEN_3B = QWEN_7B | {
    "vocab_size": 151_936,
    "hidden_size": 2_048,
    "intermediate_size": 11_008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vision_config": QWEN_7B["vision_config"] | {"out_hidden_size": 2_048},
}


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
    assert (config.reward.accuracy_weight, config.reward.format_weight) == (0.9, 0.1)


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


@pytest.mark.parametrize(
    ("recipe", "model"),
    [
        (SFT_RECIPES["qwen2_5_vl_7b_sft"], QWEN_7B),
        (SFT_RECIPES["qwen2_5_vl_3b_sft"], QWEN_3B),
        (RL_RECIPES["qwen2_5_vl_7b_gspo"], QWEN_7B),
    ],
)
def test_layout_of_a_recipe_fits_its_model(recipe, model: dict, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(model))
    config = recipe()
    names = {field.name for field in fields(config)}
    config.parallel.check_model(ModelConfig.from_hf(tmp_path))
    assert config.parallel.dp(config.processes if "processes" in names else config.trainers) >= 1


def test_demo_stages_use_each_others_outputs():
    root = "/tmp/some/where"
    sft, rl = SFT_RECIPES["demo"](root, seed=7), RL_RECIPES["demo"](root, seed=7)
    score = EVAL_RECIPES["demo"](root, seed=7)
    assert rl.model == f"{sft.run}/hf" and score.model == f"{rl.run}/hf"
    assert sft.image == rl.image == score.image, "trainer and engine must count the same image tokens"
    assert sft.loader.shards == rl.shards != score.shards
    assert {sft.seed, sft.loader.seed, rl.seed, score.seed} == {7}
    assert rl.sampling.max_tokens == score.sampling.max_tokens
