"""Measures what each policy loss costs beside GSPO: forward, backward and metrics on 65,536 packed tokens, one core.

The fastest of some runs, in seconds of this process, so that other work on the machine hardly matters.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.environment import write_result
from data_pipeline.loader.packing import merge
from data_pipeline.tables import text_table
from data_pipeline.types import Example
from rl.algorithms.config import AlgorithmConfig, KLConfig
from rl.algorithms.policy_loss import POLICY_LOSSES, build_policy_loss
from rl.types import RolloutBatch

TOKENS, PROMPT, RESPONSE = 65_536, 512, 3_584
REPEATS = 20


def main() -> dict[str, object]:
    """Measures, prints, writes benchmarks/results/policy_loss.json, and returns its content."""
    k3 = KLConfig(coefficient=0.01)
    configs = {name: AlgorithmConfig(name=name) for name in POLICY_LOSSES}
    configs |= {f"{name}, k3": AlgorithmConfig(name=name, kl=k3) for name in ("gspo", "grpo")}
    torch.set_num_threads(1)
    batch = build_batch()
    logprobs_T = (batch.rollout_logprobs_T + 0.1).requires_grad_()
    runs = {name: build_run(config, batch, logprobs_T) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):  # in turn, so that other work on the machine slows all of them alike
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    ratios = {name: min(times) / min(seconds["gspo"]) for name, times in seconds.items()}
    print(text_table(("loss", "time over gspo's"), [(name, f"{x:.2f}") for name, x in ratios.items()]))
    result: dict[str, object] = {"tokens": TOKENS, "repeats": REPEATS, "time over gspo's": ratios}
    write_result("policy_loss", result)
    return result


def build_batch() -> RolloutBatch:
    """Returns a pack of responses after their prompts, with policies near each other."""
    length = PROMPT + RESPONSE
    example = Example(
        id="a",
        input_ids=torch.ones(length, dtype=torch.long),
        loss_mask=(torch.arange(length) >= PROMPT).float(),
        position_ids=torch.arange(length).expand(3, -1),
        pixels=torch.zeros(0, 588, dtype=torch.uint8),
        image_grid_thw=torch.zeros(0, 3, dtype=torch.long),
    )
    generator = torch.Generator().manual_seed(0)
    old_T = -torch.rand(TOKENS, generator=generator)
    noise_T = 0.1 * torch.randn(TOKENS, generator=generator)
    packed = merge([example] * (TOKENS // length), pad_token_id=0)
    return RolloutBatch(
        packed=packed,
        advantages_T=torch.randn(TOKENS // length, generator=generator).repeat_interleave(length),
        old_logprobs_T=old_T + noise_T,
        rollout_logprobs_T=old_T,
        reference_logprobs_T=old_T - noise_T,
    )


def build_run(config: AlgorithmConfig, batch: RolloutBatch, logprobs_T: torch.Tensor) -> Callable[[], None]:
    """Returns a function that computes the loss of a pack, its gradient and its metrics."""
    loss = build_policy_loss(config, RESPONSE)

    def run() -> None:
        torch.autograd.grad(loss(logprobs_T, batch).loss_sum, logprobs_T)

    return run


if __name__ == "__main__":
    main()
