"""Policy losses against verl's, finite differences, values by hand, and each other."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_omr.train.losses import sft_loss
from rl.algorithms.config import AlgorithmConfig, KLConfig
from rl.algorithms.policy_loss import POLICY_LOSSES, PolicyLossInputs, build_policy_loss, engine_mismatch
from tests.helpers.losses import configure, evaluate, gradient, mean, part, random_inputs, rollout_batch

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "policy_loss.json").read_text())
ALGORITHMS = sorted(POLICY_LOSSES)
K1, K3 = (KLConfig(coefficient=0.1, estimator=name) for name in ("k1", "k3"))
PENALTIES = {"": KLConfig(), "k1": K1, "k3": K3}
PROMPT, PADDING = 2, 3  # tokens outside the loss around each response
GARBAGE = float("nan")  # what stands outside the response must not matter

every_loss = pytest.mark.parametrize("algorithm", ALGORITHMS)
every_penalty = pytest.mark.parametrize("kl", PENALTIES.values(), ids=PENALTIES.keys())
every_mean = pytest.mark.parametrize("loss_mean", ["sequences", "tokens", "constant"])


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
        dual_clip=3.0,
    )


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['algorithm']}: {case['name']}")
def test_equals_verl(case):
    inputs = golden_inputs(case)
    loss_mean = {"gspo": "sequences", "grpo": "tokens"}[case["algorithm"]]
    output = evaluate(inputs, case["algorithm"], loss_mean=loss_mean)
    assert mean((output.loss_sum.detach(), output.count)) == pytest.approx(case["loss"], rel=1e-6)
    expected_T = packed(case["gradient"], outside=0.0)
    torch.testing.assert_close(gradient(output, inputs), expected_T, rtol=1e-6, atol=1e-12)
    assert mean(output.metrics["clip_fraction"]) == pytest.approx(case["clip_fraction"], rel=1e-6)
    if case["algorithm"] == "grpo":
        assert mean(output.metrics["dual_clip_fraction"]) == pytest.approx(
            case["dual_clip_fraction"], rel=1e-6
        )
    if case["k3"] is not None:
        assert mean(output.metrics["policy_kl"]) == pytest.approx(case["k3"], rel=1e-6)


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "cispo"])
@pytest.mark.parametrize("kl", [KLConfig(), K3], ids=["", "k3"])
@every_mean
def test_gradient_equals_finite_differences(algorithm, kl, loss_mean):
    for seed in range(3):
        inputs = random_inputs(seed)
        batch = rollout_batch(inputs)
        loss = build_policy_loss(configure(inputs, algorithm, kl=kl, loss_mean=loss_mean), 9)
        assert torch.autograd.gradcheck(
            lambda logprobs_T, loss=loss, batch=batch: loss(logprobs_T, batch).loss_sum,
            inputs.logprobs_T,
            eps=1e-7,
            atol=1e-5,
        )


def two_tokens(log_ratio: float, advantage: float, dtype: torch.dtype = torch.float32) -> PolicyLossInputs:
    """A sequence of two response tokens, each with this log-ratio; float32 as in training."""
    old_T = torch.tensor([-2.0, -1.0], dtype=dtype)
    return PolicyLossInputs(
        logprobs_T=(old_T + log_ratio).requires_grad_(),
        old_logprobs_T=old_T,
        advantages_T=torch.full((2,), advantage),
        mask_T=torch.ones(2),
        cu_seqlens=torch.tensor([0, 2]),
        clip_low=0.1,
        clip_high=0.2,
        dual_clip=3.0,
    )


E = math.exp
PPO = [  # log-ratio, advantage -> loss, its derivative by the log-ratio
    (0.1, 1.0, -E(0.1), -E(0.1)),
    (0.3, 1.0, -1.2, 0.0),  # clipped from above
    (-0.3, 1.0, -E(-0.3), -E(-0.3)),  # below, where a good response is pulled back
    (0.3, -1.0, E(0.3), E(0.3)),
    (-0.3, -1.0, 0.9, 0.0),  # clipped from below
]
SEQUENCE = [*PPO, (9.9, -1.0, E(9.9), E(9.9)), (1e4, 1.0, -1.2, 0), (1e4, -1.0, E(10), 0), (-1e4, 1.0, 0, 0)]
TOKEN = [
    *PPO,
    (0.9, -1.0, E(0.9), E(0.9)),
    (1.2, -1.0, 3.0, 0),  # dual clip
    (1e4, 1.0, -1.2, 0),
    (1e4, -1.0, 3.0, 0),
    (-1e4, 1.0, -E(-20), 0),  # clamped
    (-1e4, -1.0, 0.9, 0),
]


def gate(ratio: float, tau: float) -> tuple[float, float]:
    """SAPO's f(r) = 4 / tau sigmoid(tau (r - 1)), and r f'(r)."""
    p = 1 / (1 + E(-tau * (ratio - 1)))
    return 4 / tau * p, 4 * p * (1 - p) * ratio


SAPO = [
    (x, a, -a * gate(E(x), tau)[0], -a * gate(E(x), tau)[1])
    for x in (0, 0.1, 0.7, -0.7, -3)
    for a, tau in ((1.0, 1), (-0.5, 1.05))
]
BY_HAND = {
    "gspo": SEQUENCE,
    "gspo_token": SEQUENCE,
    "grpo": TOKEN,
    "dapo": TOKEN,
    "dr_grpo": TOKEN,
    # the loss is -weight * A * mean logprob = -weight * A * (log-ratio - 1.5); learns at every ratio
    "cispo": [
        (x, a, -w * a * (x - 1.5), -w * a)
        for x, w in ((0.1, E(0.1)), (0.3, 1.2), (-0.3, 0.9), (1e4, 1.2), (-1e4, 0.9))
        for a in (1.0, -0.5)
    ],
    "sapo": [*SAPO, (1e4, 1.0, -4.0, 0), (1e4, -1.0, 4 / 1.05, 0), (-1e4, 1.0, -gate(0, 1)[0], 0)],
}


@every_loss
def test_values_and_gradients_by_hand_and_at_extreme_ratios(algorithm):
    for log_ratio, advantage, loss, derivative in BY_HAND[algorithm]:
        inputs = two_tokens(log_ratio, advantage)
        output = evaluate(inputs, algorithm, loss_mean="tokens")
        case = f"{log_ratio=} {advantage=}"
        assert mean((output.loss_sum.detach(), output.count)) == pytest.approx(loss, rel=1e-5), case
        assert gradient(output, inputs).tolist() == pytest.approx([derivative / 2] * 2, rel=1e-5), case


@every_loss
@every_penalty
@pytest.mark.parametrize("log_ratio", [1e4, -1e4, 100.0, -100.0])
def test_extreme_ratios_leave_all_finite(algorithm, kl, log_ratio):
    for advantage in (3.0, -3.0, 0.0):
        inputs = two_tokens(log_ratio, advantage)
        loss = build_policy_loss(configure(inputs, algorithm, kl=kl), 2)
        batch = replace(rollout_batch(inputs), reference_logprobs_T=inputs.old_logprobs_T)
        output = loss(inputs.logprobs_T, batch)
        assert gradient(output, inputs).isfinite().all()
        assert all(math.isfinite(mean(pair)) for pair in output.metrics.values())
        bound = math.copysign(20, log_ratio)
        assert mean(output.metrics["policy_kl"]) == pytest.approx(math.expm1(bound) - bound, rel=1e-5)


@every_loss
@every_mean
def test_on_policy_every_gradient_is_that_of_reinforce(algorithm, loss_mean):
    inputs = replace(random_inputs(4), old_logprobs_T=None)
    output = evaluate(inputs, algorithm, loss_mean=loss_mean)
    bounds = inputs.cu_seqlens.tolist()
    responses = [slice(a, b) for a, b in pairwise(bounds) if inputs.mask_T[a:b].any()]
    lens = [inputs.mask_T[s].sum() for s in responses]
    weights = {
        "sequences": [1 / n / len(lens) for n in lens],
        "tokens": [1 / sum(lens)] * len(lens),
        "constant": [1 / 9 / len(lens)] * len(lens),
    }[loss_mean]
    reinforce = -sum(
        weight * (inputs.advantages_T[s] * inputs.logprobs_T[s] * inputs.mask_T[s]).sum()
        for weight, s in zip(weights, responses, strict=True)
    )
    (expected_T,) = torch.autograd.grad(reinforce, inputs.logprobs_T)
    torch.testing.assert_close(gradient(output, inputs), expected_T, rtol=1e-12, atol=1e-15)
    assert mean(output.metrics["ratio"]) == 1.0
    assert mean(output.metrics["policy_kl"]) == 0.0
    assert output.samples["sequence_ratio"].tolist() == [1.0] * len(responses)
    if algorithm == "sapo":
        assert mean(output.metrics["gate"]) == 1.0
    else:
        assert mean(output.metrics["clip_fraction"]) == 0.0


def test_gspo_and_gspo_token_differ_where_tokens_have_advantages_of_their_own():
    inputs = random_inputs(5)
    same = [gradient(evaluate(inputs, name), inputs) for name in ("gspo", "gspo_token")]
    torch.testing.assert_close(*same, rtol=1e-12, atol=1e-15)
    apart = [gradient(evaluate(inputs, name, kl=K1), inputs) for name in ("gspo", "gspo_token")]
    assert (apart[0] - apart[1]).abs().max() > 1e-3


def test_grpo_dapo_and_dr_grpo_differ_in_their_settings_alone():
    inputs = random_inputs(6)
    for name in ("dapo", "dr_grpo"):
        published = AlgorithmConfig(name=name)
        low, high = published.clip
        loss_mean = published.mean_of_losses
        assert gradient(evaluate(inputs, name, clip_low=low, clip_high=high), inputs).equal(
            gradient(evaluate(inputs, "grpo", clip_low=low, clip_high=high, loss_mean=loss_mean), inputs)
        )
    losses = {name: evaluate(inputs, name) for name in ALGORITHMS if name != "gspo_token"}
    values = {float(output.loss_sum.detach() / output.count) for output in losses.values()}
    assert len(values) == len(losses)


@every_loss
@every_penalty
def test_what_stands_outside_the_response_does_not_matter(algorithm, kl):
    inputs = random_inputs(7)
    expected = evaluate(inputs, algorithm, kl=kl)
    outside_T = inputs.mask_T == 0
    batch, garbage = rollout_batch(inputs), {"value": GARBAGE, "mask": outside_T}
    batch = replace(
        batch,
        old_logprobs_T=batch.old_logprobs_T.masked_fill(**garbage),
        rollout_logprobs_T=batch.rollout_logprobs_T.masked_fill(**garbage),
        reference_logprobs_T=batch.reference_logprobs_T.masked_fill(**garbage),
    )
    logprobs_T = inputs.logprobs_T.detach().masked_fill(**garbage).requires_grad_()
    output = build_policy_loss(configure(inputs, algorithm, kl=kl), 9)(logprobs_T, batch)
    inputs_seen = replace(inputs, logprobs_T=logprobs_T)
    assert gradient(output, inputs_seen).equal(gradient(expected, inputs))
    assert output.metrics == expected.metrics


@every_loss
@every_penalty
@every_mean
@pytest.mark.parametrize("cuts", [(0, 1, 6), (0, 2, 3, 5, 6), tuple(range(7))], ids=str)
def test_any_split_into_micro_batches_or_ranks_adds_up_to_the_whole(algorithm, kl, loss_mean, cuts):
    whole_inputs = random_inputs(8)
    options = {"kl": kl, "loss_mean": loss_mean}
    whole = evaluate(whole_inputs, algorithm, **options)
    parts = [part(whole_inputs, a, b) for a, b in pairwise(cuts)]
    outputs = [evaluate(p, algorithm, **options) for p in parts]
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
    for name, values in whole.samples.items():
        torch.testing.assert_close(torch.cat([output.samples[name] for output in outputs]), values)


@every_loss
@every_penalty
@every_mean
def test_a_batch_without_responses_counts_nothing_and_has_no_gradient(algorithm, kl, loss_mean):
    inputs = random_inputs(9, empty=6)
    output = evaluate(inputs, algorithm, kl=kl, loss_mean=loss_mean)
    output.loss_sum.backward()
    assert float(output.loss_sum.detach()) == float(output.count) == 0.0
    assert not inputs.logprobs_T.grad.any()
    assert all(float(total) == float(count) == 0.0 for total, count in output.metrics.values())
    assert output.samples["sequence_ratio"].numel() == 0


@every_loss
def test_bfloat16_logprobs_are_computed_with_in_float32(algorithm):
    narrow = random_inputs(10, dtype=torch.bfloat16)
    wide = replace(
        narrow,
        logprobs_T=narrow.logprobs_T.detach().double().requires_grad_(),
        old_logprobs_T=narrow.old_logprobs_T.double(),
    )
    output, expected = evaluate(narrow, algorithm), evaluate(wide, algorithm)
    assert output.loss_sum.dtype == torch.float32
    assert float(output.loss_sum.detach()) == pytest.approx(float(expected.loss_sum.detach()), rel=1e-5)
    rounded_T = gradient(expected, wide).bfloat16()
    torch.testing.assert_close(gradient(output, narrow), rounded_T, rtol=1e-2, atol=1e-9)


@every_loss
def test_lengths_from_1_to_30_000_keep_float32_precision(algorithm):
    lens = [1, 2, 117, 30_000]
    advantages_S = torch.tensor([0.3, -1.7, 0.9, 0.7])
    generator = torch.Generator().manual_seed(0)
    inputs = PolicyLossInputs(
        logprobs_T=(-3 * torch.rand(sum(lens), generator=generator)).requires_grad_(),
        old_logprobs_T=None,
        advantages_T=advantages_S.repeat_interleave(torch.tensor(lens)),
        mask_T=torch.ones(sum(lens)),
        cu_seqlens=torch.tensor([0, *lens]).cumsum(0).int(),
        clip_low=3e-4,
        clip_high=4e-4,
        dual_clip=3.0,
    )
    output = evaluate(inputs, algorithm, loss_mean="sequences")
    weight_S = advantages_S / torch.tensor(lens) / len(lens)
    expected_T = -weight_S.repeat_interleave(torch.tensor(lens))
    torch.testing.assert_close(gradient(output, inputs), expected_T, rtol=1e-6, atol=0)
    for old_T in (inputs.logprobs_T.detach() - 1e-3, inputs.logprobs_T.detach() + 1e-3):
        ratio_S = evaluate(replace(inputs, old_logprobs_T=old_T), algorithm).samples["sequence_ratio"]
        log_ratio_T = (inputs.logprobs_T.detach() - old_T).double()
        exact_S = torch.stack([part_T.mean().exp() for part_T in log_ratio_T.split(lens)])
        torch.testing.assert_close(ratio_S, exact_S, rtol=1e-12, atol=0)


@every_loss
def test_metrics_and_samples(algorithm):
    inputs = random_inputs(11, num_sequences=30)
    output = evaluate(inputs, algorithm, kl=K3)
    assert mean(output.metrics["mismatch"]) == pytest.approx(0.01)  # old against engine, not the moved policy
    assert mean(output.metrics["mismatch_kl"]) == pytest.approx(0.01**2 / 2, rel=0.01)
    assert all(not tensor.requires_grad for pair in output.metrics.values() for tensor in pair)
    assert not output.samples["sequence_ratio"].requires_grad
    assert output.samples["sequence_ratio"].shape == (29,)  # of 30, one is empty
    assert mean(output.metrics["reference_kl"]) > 0
    if algorithm != "sapo":
        sides = [mean(output.metrics[f"clip_fraction_{side}"]) for side in ("low", "high")]
        assert min(sides) > 0
        assert sum(sides) == pytest.approx(mean(output.metrics["clip_fraction"]))
    assert ("dual_clip_fraction" in output.metrics) == (algorithm in ("grpo", "dapo", "dr_grpo"))
    on_policy = evaluate(replace(inputs, old_logprobs_T=None), algorithm)
    assert mean(on_policy.metrics["mismatch"]) == pytest.approx(0.01)
    assert "reference_kl" not in on_policy.metrics


def test_engine_mismatch_looks_at_responses_only():
    logprobs_T = torch.tensor([-1.0, -2.0, -3.0, GARBAGE])
    mismatch = engine_mismatch(
        logprobs_T, torch.tensor([-1.0, -2.5, -3.25, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    )
    assert [float(value) for value in mismatch["mismatch"]] == [0.75, 3.0]
    expected = sum(torch.tensor(d).exp() - 1 - d for d in (0.5, 0.25))
    assert float(mismatch["mismatch_kl"][0]) == pytest.approx(float(expected), rel=1e-5)


def test_sft_loss_is_the_sum_of_cross_entropies_over_supervised_tokens():
    inputs = random_inputs(12)
    batch = rollout_batch(inputs).packed
    output = sft_loss(inputs.logprobs_T, torch.zeros_like(inputs.logprobs_T), batch)
    supervised = batch.loss_mask.bool()
    assert output.count == supervised.sum()
    torch.testing.assert_close(output.loss_sum, -inputs.logprobs_T[supervised].sum())
