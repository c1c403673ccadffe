"""RL recipes of other papers and of other models, on the machines of OpenMMReasoner's."""

from __future__ import annotations

from dataclasses import replace

from data_pipeline.encode.config import ImageConfig
from launch.recipes.openmmreasoner import openmmreasoner_gspo
from megatron_omr.config import ComputeConfig, ParallelConfig
from rl.algorithms.config import AlgorithmConfig, KLConfig, SolutionConfig
from rl.config import HeldOutConfig, PromptConfig, RLConfig


def visurf() -> RLConfig:
    """ViSurf (arXiv 2510.10606): SFT and RL in one stage, from the base model; solutions are members of the groups.

    Published: the loss is the mean over the responses and the solution, advantages are z-scores over all of them, there
    is one update of the policy a step, no KL term, and the three controls of the solution's reward
    (algorithm.solution). Its code is not public, and the mean over the tokens of a response is therefore GRPO's.
    Ours: questions, reward, sizes and learning rate are those of openmmreasoner_gspo, and the machines.
    """
    recipe = openmmreasoner_gspo()
    return replace(
        recipe,
        run="runs/visurf",
        model="models/Qwen2.5-VL-7B-Instruct",  # the single stage stands in for SFT
        # without groups left out by us: those that are all wrong learn from their solution
        algorithm=AlgorithmConfig(
            name="grpo", drop_equal_groups=False, solution=SolutionConfig(enabled=True)
        ),
    )


def mmr1() -> RLConfig:
    """MMR1 (arXiv 2509.21268): half of each step's prompts are drawn by the variance of their reward.

    Published (examples/mmr1.yaml of LengSicong/MMR1): GRPO, 512 prompts x 8 responses, temperature 0.6, KL 0.01, half
    of the prompts in proportion to P (1 - P), P the accuracy of 8 extra responses to every question, measured anew
    every 4 steps; the paper measures every 28 to 35 steps, and adds a score of how diverse the responses are (0.2).
    Ours: P is the accuracy of the training's own last responses, so that nothing is sampled for it, and prompts are
    drawn from those that were asked; no score of diversity; the 35 steps of the paper; reward, learning rate, lengths
    and as many questions as openmmreasoner_gspo, whose start stands in for MMR1's SFT.
    """
    recipe = openmmreasoner_gspo()
    return replace(
        recipe,
        run="runs/mmr1",
        shards="data/mmr1_rl",
        steps=recipe.steps // 4,
        prompts_per_step=512,
        prompts=PromptConfig(weighted_share=0.5),
        sampling=replace(recipe.sampling, n=8, temperature=0.6),
        held_out=HeldOutConfig(),
        algorithm=AlgorithmConfig(name="grpo", drop_equal_groups=False, kl=KLConfig(coefficient=0.01)),
    )


def qwen3_vl_8b_gspo() -> RLConfig:
    """OpenMMReasoner's GSPO from a cold start of Qwen3-VL-8B, on the same 8 x 8 GPUs."""
    return replace(
        openmmreasoner_gspo(),
        run="runs/qwen3_vl_8b_gspo",
        model="runs/qwen3_vl_8b_sft/hf",
        image=ImageConfig(min_pixels=65_536, max_pixels=4_194_304),
    )


def qwen3_vl_4b_gspo() -> RLConfig:
    """The same from a cold start of Qwen3-VL-4B, on one machine of 8 GPUs: four train, four generate."""
    large = qwen3_vl_8b_gspo()
    return replace(
        large,
        run="runs/qwen3_vl_4b_gspo",
        model="runs/qwen3_vl_4b_sft/hf",
        trainers=4,
        engine=replace(large.engine, num_engines=4),
    )


def qwen3_vl_2b_gspo() -> RLConfig:
    """The same from a cold start of Qwen3-VL-2B, on one machine of 8 GPUs."""
    return replace(
        qwen3_vl_4b_gspo(),
        run="runs/qwen3_vl_2b_gspo",
        model="runs/qwen3_vl_2b_sft/hf",
        parallel=ParallelConfig(tp=2, sp=True),
    )


def qwen3_vl_32b_gspo() -> RLConfig:
    """The same from a cold start of Qwen3-VL-32B, on 8 x 8 GPUs: half of them train, an engine is four.

    All layers are computed again: with the MLPs alone, as in openmmreasoner_32b_gspo, activations would need 4 GiB more
    than there are by `omr plan`, for its 64 heads are wider than the hidden state.
    """
    large = qwen3_vl_8b_gspo()
    return replace(
        large,
        run="runs/qwen3_vl_32b_gspo",
        model="runs/qwen3_vl_32b_sft/hf",
        trainers=32,
        engine=replace(large.engine, num_engines=8, tp=4),
        parallel=ParallelConfig(tp=8, sp=True),
        compute=ComputeConfig(recompute="full", recompute_vision="full"),
    )
