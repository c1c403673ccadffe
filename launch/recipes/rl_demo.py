"""RL recipes of the demo: one for each algorithm, which `omr demo --algorithm NAME` runs.

All but GSPO's take four mini-batches of a step's responses: with one, as the demo's GSPO and the released recipe have
it, every ratio is 1, nothing is clipped, and the algorithms differ in little but their means.
"""

from __future__ import annotations

from dataclasses import replace

from data_pipeline.encode.config import ImageConfig
from data_pipeline.verify.config import CheckerConfig
from megatron_omr.config import CheckpointConfig, OptimConfig
from rl.algorithms.config import AlgorithmConfig, DynamicSamplingConfig, SolutionConfig
from rl.config import EngineConfig, RLConfig, SamplingConfig
from rl.rewards.config import RewardConfig

MINIBATCHES = 4  # the GSPO paper's number


def demo(root: str = "runs/demo", *, seed: int = 42) -> RLConfig:
    """Minutes on two cores: GSPO on the half-trained SFT policy, two Megatron workers and two vLLM engines."""
    return RLConfig(
        run=f"{root}/rl",
        model=f"{root}/sft/hf",
        shards=f"{root}/data/train",
        steps=150,
        prompts_per_step=32,
        seed=seed,
        precision="fp32",
        trainers=2,
        pack_length=4_096,
        share_prompts=True,
        max_mismatch=1e-4,
        engine=EngineConfig(
            num_engines=2,  # a core each while the trainers wait
            precision="fp32",
            max_model_len=512,
            max_num_seqs=256,
            max_images=1,
            cpu_kv_cache_gib=0.5,
        ),
        sampling=SamplingConfig(n=8, max_tokens=48),
        reward=RewardConfig(checker=CheckerConfig(mode="released")),
        image=ImageConfig(min_pixels=28 * 28, max_pixels=224 * 224),
        optim=OptimConfig(lr=2e-4, schedule="cosine", warmup_steps=0, weight_decay=0.0),
        checkpoint=CheckpointConfig(every=20, keep=2),
    )


def demo_gspo_token(root: str = "runs/demo", *, seed: int = 42) -> RLConfig:
    """The demo by GSPO-token: GSPO's ratio with a gradient for each token, four mini-batches."""
    return _variant(root, seed, AlgorithmConfig(name="gspo_token", num_minibatches=MINIBATCHES))


def demo_grpo(root: str = "runs/demo", *, seed: int = 42) -> RLConfig:
    """The demo by GRPO: a ratio for each token, clipped at 0.2 on both sides, four mini-batches."""
    return _variant(root, seed, AlgorithmConfig(name="grpo", num_minibatches=MINIBATCHES))


def demo_dapo(root: str = "runs/demo", *, seed: int = 42) -> RLConfig:
    """The demo by DAPO: clip-higher, mean over tokens, dynamic sampling, overlong penalty, four mini-batches."""
    algorithm = AlgorithmConfig(
        name="dapo",
        num_minibatches=MINIBATCHES,
        # about two thirds of the groups have a signal; asking more at first saves rounds
        dynamic_sampling=DynamicSamplingConfig(enabled=True, oversampling=1.5),
    )
    recipe = _variant(root, seed, algorithm)
    # DAPO's penalty covers 4,096 of 20,480 tokens: a fifth of the demo's 48
    weights = (*recipe.reward.weights, ("overlong", 1.0))
    return replace(recipe, reward=replace(recipe.reward, weights=weights, overlong_buffer=10))


def demo_dr_grpo(root: str = "runs/demo", *, seed: int = 42) -> RLConfig:
    """The demo by Dr. GRPO: neither standard deviations nor lengths divide anything; four mini-batches."""
    return _variant(root, seed, AlgorithmConfig(name="dr_grpo", num_minibatches=MINIBATCHES))


def demo_cispo(root: str = "runs/demo", *, seed: int = 42) -> RLConfig:
    """The demo by CISPO: the clipped ratio is a weight, so that no token loses its gradient; four mini-batches."""
    return _variant(root, seed, AlgorithmConfig(name="cispo", num_minibatches=MINIBATCHES))


def demo_sapo(root: str = "runs/demo", *, seed: int = 42) -> RLConfig:
    """The demo by SAPO: a smooth gate in place of clipping, four mini-batches."""
    return _variant(root, seed, AlgorithmConfig(name="sapo", num_minibatches=MINIBATCHES))


def demo_visurf(root: str = "runs/demo", *, seed: int = 42) -> RLConfig:
    """The demo by ViSurf: GRPO whose groups hold the worked solution, too; four mini-batches."""
    algorithm = AlgorithmConfig(
        name="grpo", num_minibatches=MINIBATCHES, solution=SolutionConfig(enabled=True)
    )
    return replace(_variant(root, seed, algorithm), run=f"{root}/rl_visurf")


def _variant(root: str, seed: int, algorithm: AlgorithmConfig) -> RLConfig:
    """Returns the demo's recipe with another algorithm, and a run folder named after it."""
    return replace(demo(root, seed=seed), run=f"{root}/rl_{algorithm.name}", algorithm=algorithm)
