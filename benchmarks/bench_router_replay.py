"""How many experts differ between trainer and engine, and what replaying the engine's does to their logprobs.

A small Qwen3-VL with experts and random weights answers questions about drawn images in vLLM; the trainer computes the
same tokens with its own experts (measure) and with the engine's (replay). Then it takes optimizer steps on them, so
that the engine's weights become stale: each mode goes its own way from the same weights. What is counted are pairs of a
token, also of prompts and images, and a layer, whose sets of experts differ. For CPUs; kernels of GPUs round otherwise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from benchmarks.environment import write_result
from data_pipeline.encode.config import ImageConfig
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples, digit_texts
from data_pipeline.tables import text_table
from megatron_omr.config import LogConfig, OptimConfig
from megatron_omr.families.tiny import TINY_BASES
from megatron_omr.tiny import create_tiny_model
from rl.algorithms.config import AlgorithmConfig
from rl.config import EngineConfig, RLConfig, SamplingConfig
from rl.mismatch.measure import Compared, measure_mismatch
from rl.parity.ask import ask
from rl.parity.config import EngineParityConfig
from rl.types import TrainRollout

if TYPE_CHECKING:
    from rl.trainer import TrainerWorker

Mode = Literal["measure", "replay"]
PROMPTS, RESPONSES, TOKENS, STEPS, LR = 8, 4, 48, 4, 3e-4
EXPERTS, CHOSEN = 32, 4
SHOWN = ("mismatch_mean", "mismatch_p99", "mismatch_max", "mismatch_k3")


def main() -> dict[str, object]:
    """Measures, prints and writes benchmarks/results/router_replay.json; returns its content."""
    result: dict[str, object] = {
        "precision": "bf16",
        "prompts": PROMPTS,
        "responses": RESPONSES,
        "tokens": TOKENS,
        "experts": EXPERTS,
        "experts of a token": CHOSEN,
        "lr": LR,
    }
    with tempfile.TemporaryDirectory() as folder:
        found = measure_modes(build_config(Path(folder)))
    rows = [
        (mode, step, f"{values['routing_difference']:.4f}", *(f"{values[name]:.2e}" for name in SHOWN))
        for mode, steps in found.items()
        for step, values in enumerate(steps)
    ]
    print(text_table(("experts", "versions old", "differ", *SHOWN), rows), flush=True)
    result |= found
    write_result("router_replay", result)
    return result


def build_config(folder: Path) -> RLConfig:
    """Returns the config of a run with a new model, and writes its prompts."""
    base = replace(TINY_BASES["tiny_qwen3_vl_moe"], num_experts=EXPERTS, num_experts_per_tok=CHOSEN)
    create_tiny_model(folder / "model", digit_texts(200), config=base)
    write_shards(digit_samples("test", PROMPTS, seed=0), folder / "shards")
    return RLConfig(
        run=str(folder / "run"),
        model=str(folder / "model"),
        shards=str(folder / "shards"),
        steps=STEPS,
        pack_length=4_096,
        engine=EngineConfig(max_model_len=1_024, max_num_seqs=32, max_images=1, cpu_kv_cache_gib=0.5),
        sampling=SamplingConfig(n=RESPONSES, max_tokens=TOKENS),
        image=ImageConfig(),
        algorithm=AlgorithmConfig(name="grpo", router_replay="replay"),
        optim=OptimConfig(lr=LR, schedule="constant", warmup_steps=0),
        log=LogConfig(tensorboard=False),
    )


def measure_modes(config: RLConfig) -> dict[Mode, list[dict[str, float]]]:
    """Returns the measurements of each step in both modes."""
    asked = ask(config, EngineParityConfig(prompts=PROMPTS), "")
    rollouts = [
        replace(rollout, advantage=1.0 if number % 2 else -1.0)
        for number, rollout in enumerate(asked.rollouts)
    ]
    modes: tuple[Mode, ...] = ("measure", "replay")
    return {mode: measure_mode(asked.config, rollouts, mode) for mode in modes}


def measure_mode(config: RLConfig, rollouts: Sequence[TrainRollout], mode: Mode) -> list[dict[str, float]]:
    """Returns the measurements before each of STEPS optimizer steps on the same rollouts."""
    from megatron_omr import parallel
    from rl.trainer import TrainerWorker

    with tempfile.TemporaryDirectory() as folder:
        algorithm = replace(config.algorithm, router_replay=mode)
        config = replace(config, run=folder, algorithm=algorithm)
        worker = TrainerWorker(config, rank=0, world_size=1, init_method=f"file://{folder}/init")
        found = []
        for _ in range(STEPS):
            mismatch = compare(worker, rollouts)
            trained = worker.train([list(rollouts)], 0)
            found.append(mismatch | {"routing_difference": trained["routing_difference"]})
        parallel.shutdown()
    return found


def compare(worker: TrainerWorker, rollouts: Sequence[TrainRollout]) -> dict[str, float]:
    """Returns how far the logprobs of engine and trainer are apart on all tokens, however old."""
    logprobs = worker.score(list(rollouts))
    assert logprobs is not None, "it has all stages"
    return measure_mismatch(
        [
            Compared(rollout=rollout, trainer_logprobs=own, is_fresh=np.ones(len(own), bool))
            for rollout, own in zip(rollouts, logprobs, strict=True)
        ]
    )


if __name__ == "__main__":
    main()
