"""RL recipes of OpenMMReasoner (arXiv 2511.16334): its GSPO, and what it compares GSPO with.

Where the paper and the released scripts (EvolvingLMMs-Lab/OpenMMReasoner) disagree, each docstring says which one the
recipe follows. Common to all of the released scripts: one optimizer step per batch of responses, which makes every
ratio 1, so that no clip acts and GSPO and GRPO differ in nothing but their means; all groups are trained on; no KL; the
overlong penalty is off, although the paper names it; the published checker, without a judge but in gspo_n16.sh.
"""

from __future__ import annotations

from dataclasses import replace

from data_pipeline.encode.config import ImageConfig
from data_pipeline.verify.config import CheckerConfig
from megatron_omr.config import CheckpointConfig, ComputeConfig, OptimConfig, ParallelConfig
from rl.algorithms.config import AlgorithmConfig, DynamicSamplingConfig
from rl.config import EngineConfig, HeldOutConfig, PromptConfig, RLConfig, RolloutConfig, SamplingConfig
from rl.rewards.config import RewardConfig

VALIDATION = ("amc23", "aime24", "aime25", "mmmu_val", "mathvision_testmini")
"""Benchmarks of the paper's validation (its Fig. 5), which does not say which part of MathVision."""


def openmmreasoner_gspo() -> RLConfig:
    """GSPO as released: from the cold start, 128 prompts x 16 responses a step, lr 1e-6, on 8 x 8 GPUs.

    On one machine of 8 GPUs: --trainers 4 --engine.num_engines 4. The same layout fits there too.

    All groups are trained on, as released: those whose responses are equally right still learn from their format, and
    count in the mean. --algorithm.drop_equal_groups True, our default elsewhere, leaves them out.

    Six machines train and two generate. By `omr plan`, a step takes 142 s so, 107 of them until the longest response
    ends, however many engines there are; with 8 engines it takes 140 s, with 24 145 s and with 32 151 s. Eight would
    be too few as responses grow: at 6,000 tokens 16 are the fastest, at 10,000 they take 0.57 of the time of eight.
    """
    return RLConfig(
        run="runs/openmmreasoner_gspo",
        model="runs/qwen2_5_vl_7b_sft/hf",
        shards="data/openmmreasoner_rl/mixed",
        steps=1_232,
        prompts_per_step=128,
        seed=42,
        precision="bf16",
        trainers=48,
        pack_length=33_792,
        engine=EngineConfig(num_engines=16, precision="bf16", max_model_len=32_792, max_num_seqs=1_024),
        sampling=SamplingConfig(n=16, temperature=1.0, top_p=1.0, max_tokens=28_696),
        held_out=HeldOutConfig(benchmarks=tuple((name, f"data/benchmarks/{name}") for name in VALIDATION)),
        reward=RewardConfig(
            weights=(("accuracy", 0.9), ("format", 0.1)), checker=CheckerConfig(mode="released")
        ),
        algorithm=AlgorithmConfig(name="gspo", num_minibatches=1, drop_equal_groups=False),
        image=ImageConfig(min_pixels=3_136, max_pixels=4_194_304),
        parallel=ParallelConfig(tp=4, sp=True),
        compute=ComputeConfig(recompute="mlp", recompute_vision="full"),
        optim=OptimConfig(
            lr=1e-6, schedule="constant", warmup_steps=25, weight_decay=0.1, beta2=0.999, clip_grad=1.0
        ),
        checkpoint=CheckpointConfig(every=16, keep=3),
    )


def openmmreasoner_gspo_4() -> RLConfig:
    """GSPO as in its paper (arXiv 2507.18071): four mini-batches a step, so that the clip of 3e-4/4e-4 acts.

    A step has four times the prompts and a run a quarter of the steps: the same questions and optimizer steps as
    openmmreasoner_gspo, three of four on responses of older weights. The script that the release was made from had
    these 512 prompts, and a comment in the release still speaks of four mini-batches.
    """
    recipe = openmmreasoner_gspo()
    return replace(
        recipe,
        run="runs/openmmreasoner_gspo_4",
        steps=recipe.steps // 4,
        prompts_per_step=4 * recipe.prompts_per_step,
        algorithm=replace(recipe.algorithm, num_minibatches=4),
        checkpoint=replace(recipe.checkpoint, every=recipe.checkpoint.every // 4),
    )


def openmmreasoner_gspo_n8() -> RLConfig:
    """Stability study: GSPO with 8 responses to a prompt instead of 16; the paper finds 16 better and smoother."""
    return _with_sampling(openmmreasoner_gspo(), "openmmreasoner_gspo_n8", n=8)


def openmmreasoner_gspo_t14() -> RLConfig:
    """Stability study: GSPO sampling at temperature 1.4 instead of 1.0, at which the paper's run collapses."""
    return _with_sampling(openmmreasoner_gspo(), "openmmreasoner_gspo_t14", temperature=1.4)


def openmmreasoner_gspo_curriculum() -> RLConfig:
    """Ablation: GSPO on easy questions first, which the paper finds worse, 52.5 against 54.3.

    The shards need metadata pass_rate, of the paper's Qwen3-VL-8B or another model: `omr data score` measures it.
    """
    recipe = openmmreasoner_gspo()
    return replace(
        recipe, run="runs/openmmreasoner_gspo_curriculum", prompts=PromptConfig(order="easy_first")
    )


def openmmreasoner_gspo_async() -> RLConfig:
    """GSPO whose engines generate all the time, at most a step ahead, under weights that change. Ours, not released.

    Responses of older weights count by truncated importance sampling with their geometric mean ratio, as GSPO sees
    them (arXiv 2507.18071): GSPO's bounds of 3e-4 alone would clip nearly all of them.
    """
    recipe = openmmreasoner_gspo()
    return replace(
        recipe,
        run="runs/openmmreasoner_gspo_async",
        rollout=RolloutConfig(mode="async", max_staleness=1.0),
        algorithm=replace(recipe.algorithm, correction="sequence"),
    )


def openmmreasoner_grpo() -> RLConfig:
    """GRPO as released: ratios of tokens, clipped at 0.2 on both sides; the mean is over tokens.

    The GRPO paper's mean is over sequences: --algorithm.loss_mean sequences. The release takes 4 x 8 GPUs; ours 8 x 8.
    """
    recipe = openmmreasoner_gspo()
    algorithm = AlgorithmConfig(name="grpo", loss_mean="tokens", drop_equal_groups=False)
    return replace(recipe, run="runs/openmmreasoner_grpo", algorithm=algorithm)


def openmmreasoner_dapo() -> RLConfig:
    """DAPO as the paper describes it: clip-higher 0.28, mean over tokens, dynamic sampling, overlong penalty.

    Of these the released script has the mean alone, see openmmreasoner_dapo_released. 384 prompts are asked at first
    for the 128 groups of a step, which is the script's gen_batch_size. Ours: groups that are too many are trained on in
    the next step, where verl drops them; 0.28 is the DAPO paper's (arXiv 2503.14476), as the paper does not give its
    own, and acts on these groups alone, as there is one mini-batch. The penalty is DAPO's, of weight 1 over the last
    4,096 tokens (the scripts hold these values, and switch it off): responses below 24,600 tokens never meet it.
    """
    recipe = openmmreasoner_gspo()
    return replace(
        recipe,
        run="runs/openmmreasoner_dapo",
        reward=replace(recipe.reward, weights=(*recipe.reward.weights, ("overlong", 1.0))),
        algorithm=AlgorithmConfig(
            name="dapo", dynamic_sampling=DynamicSamplingConfig(enabled=True, oversampling=3.0)
        ),
    )


def openmmreasoner_dapo_n8() -> RLConfig:
    """Stability study: DAPO with 8 responses to a prompt instead of 16; the paper's run collapses late."""
    return _with_sampling(openmmreasoner_dapo(), "openmmreasoner_dapo_n8", n=8)


def openmmreasoner_dapo_t14() -> RLConfig:
    """Stability study: DAPO sampling at temperature 1.4 instead of 1.0; the paper finds no gain."""
    return _with_sampling(openmmreasoner_dapo(), "openmmreasoner_dapo_t14", temperature=1.4)


def openmmreasoner_dapo_released() -> RLConfig:
    """DAPO as released: clip 0.2/0.2, mean over tokens, no filter: all 384 prompts of a step, three mini-batches.

    The script asks 384 prompts for a batch of 128 and does not turn the filter on, so that the trainer takes all of
    them in three optimizer steps. 411 steps are the optimizer steps of the other recipes.
    """
    recipe = openmmreasoner_gspo()
    return replace(
        recipe,
        run="runs/openmmreasoner_dapo_released",
        steps=411,
        prompts_per_step=384,
        algorithm=AlgorithmConfig(name="dapo", clip_high=0.2, num_minibatches=3, drop_equal_groups=False),
    )


def openmmreasoner_32b_gspo() -> RLConfig:
    """GSPO as released, on Qwen2.5-VL-32B, on 8 x 8 GPUs: an engine is four GPUs.

    Half of the GPUs train, half generate. By `omr plan`, with 48 trainers and four engines a step takes 0.89 of the
    time at responses of 3,000 tokens, and 1.31 times as long at 6,000.
    """
    small = openmmreasoner_gspo()
    return replace(
        small,
        run="runs/openmmreasoner_32b_gspo",
        model="runs/qwen2_5_vl_32b_sft/hf",
        trainers=32,
        engine=replace(small.engine, num_engines=8, tp=4),
        parallel=ParallelConfig(tp=8, sp=True),
    )


def _with_sampling(recipe: RLConfig, name: str, **values: float) -> RLConfig:
    """Returns the recipe with other fields of sampling, in a run folder of that name."""
    return replace(recipe, run=f"runs/{name}", sampling=replace(recipe.sampling, **values))
