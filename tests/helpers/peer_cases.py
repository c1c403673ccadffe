"""One set of tensors for our losses and for those of other projects: matrices for them, packed end to end for us.

Legend: B responses, the columns L of the longest one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from data_pipeline.types import PackedBatch
from megatron_omr.train.losses import LossOutput
from rl.algorithms.config import AlgorithmConfig, KLConfig
from rl.algorithms.policy_loss import build_policy_loss
from rl.types import RolloutBatch

MAX_TOKENS = 20
PROMPT, PADDING = 2, 3  # tokens around each packed response
GARBAGE = float("nan")  # what stands outside the response must not matter
GOLDEN = Path(__file__).parents[1] / "golden" / "peers.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """What a loss takes. Where mask_BL is 0, the other tensors are 0, as peers have them."""

    logprobs_BL: Tensor
    old_logprobs_BL: Tensor
    reference_logprobs_BL: Tensor
    rollout_logprobs_BL: Tensor  # of the engine that sampled
    advantages_BL: Tensor
    mask_BL: Tensor

    def part(self, first: int, last: int) -> Case:
        """Returns responses first..last-1."""
        return Case(**{f.name: getattr(self, f.name)[first:last] for f in fields(self)})

    def without_empty(self) -> Case:
        """Returns the responses that have a token in the loss."""
        keep_B = self.mask_BL.any(1)
        return Case(**{f.name: getattr(self, f.name)[keep_B] for f in fields(self)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What a loss gives for a case; None is what the implementation does not say."""

    loss: float
    gradient_BL: Tensor
    clip_fraction: float | None = None  # of tokens
    dual_clip_fraction: float | None = None


def random_case(
    seed: int,
    *,
    spread: float = 0.3,
    largest: float | None = None,
    dtype: torch.dtype = torch.float64,
    by_token: bool = False,
    empty: int = 1,
) -> Case:
    """Returns six ragged responses with holes, of which the last `empty` have no token in the loss.

    Args:
        spread: standard deviation of the log ratios to the old and to the reference policy.
        largest: scales each log ratio to the old policy so that it is uniform up to this, either way.
        by_token: gives each token an advantage of its own rather than each response.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (6,), generator=generator)
    shape = (6, int(lengths.max()))

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    mask_BL = torch.arange(shape[1]) < lengths[:, None]
    mask_BL &= torch.rand(shape, generator=generator) > 0.2
    mask_BL[6 - empty :] = False
    old_BL = -3 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1e-3
    shift_BL = spread * normal()
    if largest is not None:
        shift_BL = largest * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)
    advantages_BL = normal() if by_token else normal()[:, :1].expand(shape)
    tensors = {
        "logprobs_BL": old_BL + shift_BL,
        "old_logprobs_BL": old_BL,
        "reference_logprobs_BL": old_BL + spread * normal(),
        "advantages_BL": advantages_BL,
        "mask_BL": torch.ones(shape),
        "rollout_logprobs_BL": old_BL + 0.3 * normal(),
    }
    return Case(**{name: torch.where(mask_BL, values, 0.0).to(dtype) for name, values in tensors.items()})


def pack(values_BL: Tensor, lengths: list[int], outside: float = GARBAGE) -> Tensor:
    """Returns responses end to end, each between a prompt and padding: [B, L] -> [T]."""
    rows = [row[:n] for row, n in zip(values_BL, lengths, strict=True)]
    return torch.cat([pad(row, (PROMPT, PADDING), value=outside) for row in rows])


def pack_case(case: Case, logprobs_BL: Tensor) -> tuple[Tensor, RolloutBatch]:
    """Returns the arguments of our losses: logprobs_T with the gradient of `logprobs_BL`, and the batch."""
    columns = torch.arange(1, case.mask_BL.shape[1] + 1)
    lengths = (case.mask_BL * columns).amax(1).int().tolist()

    def packed(values_BL: Tensor, outside: float = GARBAGE) -> Tensor:
        hidden_BL = torch.where(case.mask_BL != 0, values_BL, outside)
        return pack(hidden_BL, lengths, outside)

    cu_seqlens = torch.tensor([0, *(PROMPT + n + PADDING for n in lengths)]).cumsum(0).int()
    ids_T = torch.zeros(int(cu_seqlens[-1]), dtype=torch.long)
    batch = RolloutBatch(
        packed=PackedBatch(
            ids=tuple(map(str, range(len(lengths)))),
            input_ids=ids_T,
            labels=ids_T,
            loss_mask=packed(case.mask_BL, 0.0),
            position_ids=ids_T.expand(3, -1),
            cu_seqlens=cu_seqlens,
            real_lens=cu_seqlens.diff(),
            pixels=torch.zeros(0, 1),
            image_grid_thw=torch.zeros(0, 3),
        ),
        advantages_T=packed(case.advantages_BL, 0.0),
        old_logprobs_T=packed(case.old_logprobs_BL),
        rollout_logprobs_T=packed(case.rollout_logprobs_BL),
        reference_logprobs_T=packed(case.reference_logprobs_BL),
    )
    return packed(logprobs_BL), batch


def evaluate_ours(config: AlgorithmConfig, case: Case) -> tuple[LossOutput, Tensor]:
    """Returns the output of our loss, and the leaf [B, L] that its gradient reaches."""
    logprobs_BL = case.logprobs_BL.clone().requires_grad_()
    return build_policy_loss(config, MAX_TOKENS)(*pack_case(case, logprobs_BL)), logprobs_BL


def run_ours(config: AlgorithmConfig, case: Case) -> Result:
    """Returns the loss of our code, and its gradient."""
    output, logprobs_BL = evaluate_ours(config, case)
    loss = output.loss_sum / output.count
    (gradient_BL,) = torch.autograd.grad(loss, logprobs_BL)

    def mean(name: str) -> float | None:
        total, count = output.metrics.get(name, (None, None))
        return None if total is None else float(total / count)

    return Result(
        loss=float(loss.detach()),
        gradient_BL=gradient_BL,
        clip_fraction=mean("clip_fraction"),
        dual_clip_fraction=mean("dual_clip_fraction"),
    )


def check_equal(ours: Result, theirs: Result, rtol: float = 1e-6) -> None:
    """Fails where loss, gradient or fractions of clipped tokens differ by more than `rtol`, relative to each value."""
    smallest = theirs.gradient_BL.abs().max() * rtol * 1e-3  # of a gradient that is not rounding
    torch.testing.assert_close(ours.gradient_BL, theirs.gradient_BL, rtol=rtol, atol=float(smallest))
    expected = torch.tensor(theirs.loss, dtype=torch.float64)
    # a loss near 0 is a difference of larger terms, of which verl's are off by the 1e-8 it adds to numbers of tokens
    size = float(theirs.gradient_BL.abs().sum())
    torch.testing.assert_close(
        torch.tensor(ours.loss, dtype=torch.float64), expected, rtol=rtol, atol=rtol * 1e-2 * size
    )
    for name in ("clip_fraction", "dual_clip_fraction"):
        if (fraction := getattr(theirs, name)) is not None:
            mine = getattr(ours, name)
            assert mine is not None and abs(mine - fraction) <= 1e-6, f"{name}: {mine} against {fraction}"


CONFIGS = {
    "gspo": AlgorithmConfig(name="gspo", clip_low=0.05, clip_high=0.08),
    "gspo_token": AlgorithmConfig(name="gspo_token", clip_low=0.05, clip_high=0.08),
    "grpo": AlgorithmConfig(name="grpo"),
    "grpo_without_dual_clip": AlgorithmConfig(name="grpo", dual_clip=0.0),
    "grpo_over_tokens": AlgorithmConfig(name="grpo", loss_mean="tokens"),
    "dapo": AlgorithmConfig(name="dapo"),
    "dr_grpo": AlgorithmConfig(name="dr_grpo"),
    "cispo": AlgorithmConfig(name="cispo", clip_high=0.3),
    "sapo": AlgorithmConfig(name="sapo"),
    "sapo_hot": AlgorithmConfig(name="sapo", sapo_temperatures=(3.0, 0.7)),
}
"""Clips that take effect at a log ratio of about 0.3."""
CONFIGS |= {
    f"{name}_k3": replace(CONFIGS[name], kl=KLConfig(coefficient=0.1))
    for name in ("gspo", "dapo", "dr_grpo", "sapo")
}
CONFIGS |= {
    "gspo_token_corrected": replace(CONFIGS["gspo_token"], correction="token", correction_high=1.2),
    "gspo_sequence_corrected": replace(CONFIGS["gspo"], correction="sequence", correction_high=1.05),
    "grpo_sequence_rejected": replace(
        CONFIGS["grpo"], correction="sequence_reject", correction_low=0.9, correction_high=1.05
    ),
    "dapo_token_rejected": replace(
        CONFIGS["dapo_k3"], correction="token_reject", correction_low=0.8, correction_high=1.3
    ),
    "dr_grpo_token_rejected": replace(
        CONFIGS["dr_grpo"], correction="token_reject", correction_low=0.8, correction_high=1.3
    ),
    "cispo_token_corrected": replace(CONFIGS["cispo"], correction="token", correction_high=1.2),
    "sapo_sequence_corrected": replace(CONFIGS["sapo"], correction="sequence", correction_high=1.05),
}


def to_json(config: AlgorithmConfig) -> dict:
    """Returns the fields of a config that a loss reads."""
    low, high = config.clip
    return {
        "name": config.name,
        **({} if config.name == "sapo" else {"clip_low": low, "clip_high": high}),
        "dual_clip": config.dual_clip_ratio,
        "sapo_temperatures": list(config.gate_temperatures),
        "loss_mean": config.mean_of_losses,
        "kl": {"coefficient": config.kl.coefficient, "estimator": config.kl.estimator},
        **({config.correction: list(config.correction_bounds)} if config.is_decoupled else {}),
    }


def read_golden() -> dict:
    """Returns the numbers that the peers gave."""
    return json.loads(GOLDEN.read_text())
