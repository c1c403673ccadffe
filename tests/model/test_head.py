"""An output layer that computes in float32 in a model in bf16."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_omr.config import ComputeConfig, ParallelConfig
from tests.helpers.ranks import init_ranks, run_ranks
from tests.helpers.trainers import OPTIM, random_micro_batches

HEAD = ComputeConfig(fp32_head=True)


@pytest.mark.heavy
def test_head_in_float32_is_exact_and_its_weights_learn(tiny_tied_hf: Path) -> None:
    """Tied weights, whose gradient is that of both ends; two tensor-parallel ranks with sequence parallelism."""
    ((exact, rounded),) = run_ranks(_train, 1, str(tiny_tied_hf), ParallelConfig())
    assert exact["is_exact"] and not rounded["is_exact"]
    for name in ("loss", "grad_norm"):  # bf16 rounds by 0.4 %
        assert exact[name] == pytest.approx(rounded[name], rel=0.02)
    divided = run_ranks(_train, 2, str(tiny_tied_hf), ParallelConfig(tp=2, sp=True))
    for (other, _), name in zip(divided, ("loss", "grad_norm"), strict=True):
        assert other["is_exact"] and other[name] == pytest.approx(exact[name], rel=0.02)


def _train(folder: str, parallel: ParallelConfig) -> list[dict[str, float]]:
    """Returns loss and gradient norm of a step with and without it, and whether logits were not rounded."""
    import torch

    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer, unwrap_chunks

    ranks, seen = init_ranks(parallel), []
    for compute in (HEAD, ComputeConfig()):
        trainer = build_trainer(folder, parallel, ranks, OPTIM, precision="bf16", steps=8, compute=compute)
        (chunk,) = unwrap_chunks(trainer)
        made: list[torch.Tensor] = []
        chunk.language_model.output_layer.register_forward_hook(
            lambda *call, made=made: made.append(call[2][0])
        )
        result = train_step(trainer, random_micro_batches(trainer, parallel, seed=1))
        logits = torch.cat([each.detach().flatten() for each in made]).float()
        is_exact = not torch.equal(logits, logits.bfloat16().float())
        seen.append({"is_exact": is_exact, "loss": result.loss, "grad_norm": result.grad_norm})
    with pytest.raises(ValueError, match="compute.fp32_head=True changes nothing with precision=fp32"):
        build_trainer(folder, parallel, ranks, OPTIM, precision="fp32", steps=8, compute=HEAD)
    return seen
