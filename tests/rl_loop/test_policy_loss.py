"""Policy losses against verl's, against finite differences, and under every way to split a batch."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_pipeline.types import PackedBatch
from megatron_omr.train.losses import LossOutput, sft_loss
from rl.algorithms.config import AlgorithmConfig
from rl.algorithms.policy_loss import POLICY_LOSSES, PolicyLossInputs, build_policy_loss, engine_mismatch
from rl.types import RolloutBatch

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "policy_loss.json").read_text())
ALGORITHMS = sorted(POLICY_LOSSES)
PROMPT, PADDING = 2, 3  # tokens outside the loss around each response
GARBAGE = float("nan")  # what stands outside the response must not matter


def packed(rows: list[list[float]], outside: float = GARBAGE) -> Tensor:
    """Responses end to end, as a packed batch has them: prompt, response, padding."""
    return torch.tensor(
        [x for row in rows for x in [outside] * PROMPT + row + [outside] * PADDING], dtype=torch.float64
    )


def golden_inputs(case: dict) -> PolicyLossInputs:
    lens = [len(row) for row in case["logprobs"]]
    return PolicyLossInputs(
        logprobs_T=packed(case["logprobs"]).requires_grad_(),
        old_logprobs_T=packed(case["old_logprobs"]),
        advantages_T=packed([[a] * n for a, n in zip(case["advantages"], lens, strict=True)], outside=0.0),
        mask_T=packed(case["mask"], outside=0.0),
        cu_seqlens=torch.tensor([0] + [PROMPT + n + PADDING for n in lens]).cumsum(0).int(),
        clip_low=case["clip_low"],
        clip_high=case["clip_high"],
    )


def mean(pair: tuple[Tensor, Tensor]) -> float:
    return float(pair[0] / pair[1])


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['algorithm']}: {case['name']}")
def test_equals_verl(case):
    inputs = golden_inputs(case)
    output = POLICY_LOSSES[case["algorithm"]](inputs)
    (output.loss_sum / output.count).backward()
    assert float(output.loss_sum.detach() / output.count) == pytest.approx(case["loss"], rel=1e-6)
    gradient_T, expected_T = inputs.logprobs_T.grad, packed(case["gradient"], outside=0.0)
    torch.testing.assert_close(gradient_T, expected_T, rtol=1e-6, atol=1e-12)
    assert mean(output.metrics["clip_fraction"]) == pytest.approx(case["clip_fraction"], rel=1e-6)
    if case["algorithm"] == "grpo":
        assert mean(output.metrics["dual_clip_fraction"]) == pytest.approx(
            case["dual_clip_fraction"], rel=1e-6
        )
    if case["k3"] is not None:
        assert mean(output.metrics["policy_kl"]) == pytest.approx(case["k3"], rel=1e-6)


def random_batch(seed: int, *, empty: int = 1) -> PolicyLossInputs:
    """Six ragged random sequences, of which the first `empty` have no response token."""
    generator = torch.Generator().manual_seed(seed)
    lens = torch.randint(3, 12, (6,), generator=generator)
    total = int(lens.sum())
    old_T = -3 * torch.rand(total, generator=generator, dtype=torch.float64)
    noise_T = 0.3 * torch.randn(total, generator=generator, dtype=torch.float64)
    mask_T = (torch.rand(total, generator=generator) > 0.3).double()
    mask_T[: int(lens[:empty].sum())] = 0
    advantages_S = torch.randn(6, generator=generator, dtype=torch.float64)
    return PolicyLossInputs(
        logprobs_T=(old_T + noise_T).requires_grad_(),
        old_logprobs_T=old_T,
        advantages_T=advantages_S.repeat_interleave(lens) * mask_T,
        mask_T=mask_T,
        cu_seqlens=torch.cat([torch.zeros(1, dtype=torch.long), lens.cumsum(0)]).int(),
        clip_low=0.05,
        clip_high=0.08,
    )


def gradient(output: LossOutput, inputs: PolicyLossInputs) -> Tensor:
    (gradient_T,) = torch.autograd.grad(output.loss_sum / output.count, inputs.logprobs_T)
    return gradient_T


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("seed", range(3))
def test_gradient_equals_finite_differences(algorithm, seed):
    inputs = random_batch(seed)

    def loss_sum(logprobs_T: Tensor) -> Tensor:
        return POLICY_LOSSES[algorithm](replace(inputs, logprobs_T=logprobs_T)).loss_sum

    assert torch.autograd.gradcheck(loss_sum, inputs.logprobs_T, eps=1e-7, atol=1e-5)


def test_on_policy_gspo_is_reinforce_with_the_mean_over_sequences_of_token_means():
    inputs = replace(random_batch(4), old_logprobs_T=None)
    output = POLICY_LOSSES["gspo"](inputs)
    bounds = inputs.cu_seqlens.tolist()
    responses = [slice(a, b) for a, b in pairwise(bounds) if inputs.mask_T[a:b].any()]
    reinforce = -sum(
        (inputs.advantages_T[s] * inputs.logprobs_T[s] * inputs.mask_T[s]).sum() / inputs.mask_T[s].sum()
        for s in responses
    ) / len(responses)
    (expected_T,) = torch.autograd.grad(reinforce, inputs.logprobs_T)
    torch.testing.assert_close(gradient(output, inputs), expected_T, rtol=1e-12, atol=1e-15)
    assert mean(output.metrics["ratio"]) == 1.0
    assert mean(output.metrics["clip_fraction"]) == mean(output.metrics["policy_kl"]) == 0.0


def test_on_policy_grpo_is_reinforce_with_the_mean_over_tokens():
    inputs = replace(random_batch(5), old_logprobs_T=None)
    expected_T = -inputs.advantages_T * inputs.mask_T / inputs.mask_T.sum()
    torch.testing.assert_close(gradient(POLICY_LOSSES["grpo"](inputs), inputs), expected_T)


def part(inputs: PolicyLossInputs, first: int, last: int) -> PolicyLossInputs:
    """Sequences first..last-1 as a batch of their own."""
    a, b = int(inputs.cu_seqlens[first]), int(inputs.cu_seqlens[last])
    return replace(
        inputs,
        logprobs_T=inputs.logprobs_T.detach()[a:b].clone().requires_grad_(),
        old_logprobs_T=inputs.old_logprobs_T[a:b],
        advantages_T=inputs.advantages_T[a:b],
        mask_T=inputs.mask_T[a:b],
        cu_seqlens=inputs.cu_seqlens[first : last + 1] - a,
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("cuts", [(0, 1, 6), (0, 3, 6), (0, 2, 3, 5, 6), tuple(range(7))], ids=str)
def test_any_split_into_micro_batches_or_ranks_adds_up_to_the_whole(algorithm, cuts):
    whole_inputs = random_batch(6)
    whole = POLICY_LOSSES[algorithm](whole_inputs)
    parts = [part(whole_inputs, a, b) for a, b in pairwise(cuts)]
    outputs = [POLICY_LOSSES[algorithm](p) for p in parts]
    count = sum(output.count for output in outputs)
    assert count == whole.count
    for output in outputs:
        output.loss_sum.backward()
    gradient_T = torch.cat([p.logprobs_T.grad for p in parts]) / count
    torch.testing.assert_close(gradient_T, gradient(whole, whole_inputs), rtol=1e-12, atol=1e-15)
    for name, (total, counted) in whole.metrics.items():
        pairs = [output.metrics[name] for output in outputs]
        torch.testing.assert_close(sum(pair[0] for pair in pairs), total)
        assert sum(pair[1] for pair in pairs) == counted


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_batch_without_responses_counts_nothing_and_has_no_gradient(algorithm):
    inputs = random_batch(7, empty=6)
    output = POLICY_LOSSES[algorithm](inputs)
    output.loss_sum.backward()
    assert float(output.loss_sum.detach()) == float(output.count) == 0.0
    assert not inputs.logprobs_T.grad.any()
    assert all(float(total) == float(count) == 0.0 for total, count in output.metrics.values())


def test_the_algorithms_differ():
    losses = [POLICY_LOSSES[name](random_batch(8)) for name in ALGORITHMS]
    assert len({float(output.loss_sum.detach() / output.count) for output in losses}) == len(ALGORITHMS)


def rollout_batch(inputs: PolicyLossInputs, *, on_policy: bool) -> RolloutBatch:
    total = inputs.logprobs_T.numel()
    ids_T = torch.zeros(total, dtype=torch.long)
    return RolloutBatch(
        packed=PackedBatch(
            ids=tuple("abcdef"),
            input_ids=ids_T,
            labels=ids_T,
            loss_mask=inputs.mask_T,
            position_ids=ids_T.expand(3, -1),
            cu_seqlens=inputs.cu_seqlens,
            real_lens=inputs.cu_seqlens.diff(),
            pixels=torch.zeros(0, 1),
            image_grid_thw=torch.zeros(0, 3),
        ),
        advantages_T=inputs.advantages_T,
        old_logprobs_T=None if on_policy else inputs.old_logprobs_T,
        rollout_logprobs_T=inputs.old_logprobs_T + 0.01,
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_policy_loss_runs_the_configured_algorithm_and_reports_the_mismatch(algorithm):
    inputs = random_batch(9)
    config = AlgorithmConfig(name=algorithm, clip_low=inputs.clip_low, clip_high=inputs.clip_high)
    output = build_policy_loss(config)(inputs.logprobs_T, rollout_batch(inputs, on_policy=False))
    torch.testing.assert_close(output.loss_sum, POLICY_LOSSES[algorithm](inputs).loss_sum)
    assert mean(output.metrics["mismatch"]) == pytest.approx(0.01)  # old against engine, not the moved policy
    assert mean(output.metrics["mismatch_kl"]) == pytest.approx(0.01**2 / 2, rel=0.01)
    assert all(not tensor.requires_grad for pair in output.metrics.values() for tensor in pair)

    on_policy = build_policy_loss(config)(inputs.logprobs_T, rollout_batch(inputs, on_policy=True))
    assert mean(on_policy.metrics["ratio"]) == 1.0
    assert mean(on_policy.metrics["mismatch"]) > 0.05


def test_engine_mismatch_looks_at_responses_only():
    logprobs_T = torch.tensor([-1.0, -2.0, -3.0, GARBAGE])
    mismatch = engine_mismatch(
        logprobs_T, torch.tensor([-1.0, -2.5, -3.25, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    )
    assert [float(value) for value in mismatch["mismatch"]] == [0.75, 3.0]
    expected = sum(torch.tensor(d).exp() - 1 - d for d in (0.5, 0.25))
    assert float(mismatch["mismatch_kl"][0]) == pytest.approx(float(expected), rel=1e-5)


def test_sft_loss_is_the_sum_of_cross_entropies_over_supervised_tokens():
    inputs = random_batch(10)
    batch = rollout_batch(inputs, on_policy=True).packed
    output = sft_loss(inputs.logprobs_T, torch.zeros_like(inputs.logprobs_T), batch)
    supervised = batch.loss_mask.bool()
    assert output.count == supervised.sum()
    torch.testing.assert_close(output.loss_sum, -inputs.logprobs_T[supervised].sum())


def extreme_inputs(log_ratio: float, advantage: float) -> PolicyLossInputs:
    """A sequence of two response tokens, each with this log-ratio; float32 as in training."""
    old_T = torch.tensor([-2.0, -1.0])
    return PolicyLossInputs(
        logprobs_T=(old_T + log_ratio).requires_grad_(),
        old_logprobs_T=old_T,
        advantages_T=torch.full((2,), advantage),
        mask_T=torch.ones(2),
        cu_seqlens=torch.tensor([0, 2]),
        clip_low=0.1,
        clip_high=0.2,
    )


@pytest.mark.parametrize(
    ("algorithm", "log_ratio", "advantage", "loss", "ratio"),
    [
        ("gspo", 1e4, 1.0, -1.2, math.exp(10)),  # clipped
        ("gspo", 1e4, -1.0, math.exp(10), math.exp(10)),  # clamped
        ("gspo", -1e4, 1.0, 0.0, 0.0),
        ("gspo", -1e4, -1.0, 0.9, 0.0),  # clipped
        ("grpo", 1e4, 1.0, -1.2, math.exp(20)),  # clipped
        ("grpo", 1e4, -1.0, 3.0, math.exp(20)),  # dual clip
        ("grpo", -1e4, 1.0, -math.exp(-20), math.exp(-20)),  # clamped
        ("grpo", -1e4, -1.0, 0.9, math.exp(-20)),  # clipped
    ],
)
def test_extreme_ratio_is_clamped_and_has_no_gradient(algorithm, log_ratio, advantage, loss, ratio):
    inputs = extreme_inputs(log_ratio, advantage)
    output = POLICY_LOSSES[algorithm](inputs)
    assert float(output.loss_sum.detach() / output.count) == pytest.approx(loss, rel=1e-5)
    assert mean(output.metrics["ratio"]) == pytest.approx(ratio, rel=1e-5)
    bound = math.copysign(20, log_ratio)
    assert mean(output.metrics["policy_kl"]) == pytest.approx(math.expm1(bound) - bound, rel=1e-5)
    assert gradient(output, inputs).tolist() == [0, 0]


@pytest.mark.parametrize(("algorithm", "log_ratio"), [("gspo", 9.9), ("grpo", 0.9)])
def test_ratio_below_the_clamp_keeps_its_gradient(algorithm, log_ratio):
    inputs = extreme_inputs(log_ratio, -1.0)
    expected = math.exp(log_ratio) / 2  # half of the sequence, or of the tokens
    assert gradient(POLICY_LOSSES[algorithm](inputs), inputs).tolist() == pytest.approx(
        [expected] * 2, rel=1e-5
    )
