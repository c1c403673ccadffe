"""Writes the folder of a run: plausible numbers, real shards, and text that tries to break a page."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

from data_pipeline.curate.funnel import FUNNEL, Funnel, FunnelRow
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.verify.record import ScoredResponse

HOSTILE = (
    "<script>window.pwned=1</script><img src=http://example.invalid/x.png onerror='window.pwned=1'>$body \"'&"
)


def write_run(run: Path) -> Path:
    """Writes SFT of 120 steps, RL of 60, two evaluations, rollouts with images in real shards."""
    write_lines(run / "sft/metrics.jsonl", [sft_row(step) for step in range(1, 121)])
    write_lines(run / "rl/metrics.jsonl", [rl_row(step) | logged_more(step) for step in range(1, 61)])
    index = write_shards(digit_samples("train", 24, 0), run / "shards", ShardConfig(samples_per_shard=10))
    questions = [sample.messages[1].content for sample in digit_samples("train", 24, 0)]
    kinds = [str(sample.metadata["kind"]) for sample in digit_samples("train", 24, 0)]
    groups = [
        _group(step, index, questions, kinds, number) for step in range(1, 61, 6) for number in range(5)
    ]
    write_lines(run / "rl/rollouts.jsonl", groups)
    write_json(run / "rl/config.json", {"shards": str(run / "shards"), "steps": 60})
    make_funnel().save(run / FUNNEL)
    _write_evaluation(run / "eval/sft", 0.435, right=175)
    _write_evaluation(run / "eval/rl", 0.672, right=270)
    write_json(
        run / "summary.json",
        {
            "sft": {"accuracy": 0.435, "ci95": [0.387, 0.484]},
            "rl": {"accuracy": 0.672, "ci95": [0.626, 0.719]},
            "difference": {"value": 0.237, "ci95": [0.182, 0.291]},
            "seconds": {"data": 6.2, "sft": 141.0, "sft eval": 24.5, "rl": 233.0, "rl eval": 22.1},
            "versions": {"python": "3.11.7", "torch": "2.13.0", "vllm": "0.32.0"},
            "seed": 42,
        },
    )
    return run


def make_funnel() -> Funnel:
    """Returns two sources through all six stages; a name and a reason try to break a page."""
    funnel = Funnel()
    counts = {"raw": 103_000, "filtered": 102_400, "distilled": 819_200, "verified": 583_211}
    for stage, count in (counts | {"selected": 560_000, "mixed": 874_357}).items():
        drops = {"wrong": 235_989} if stage == "verified" else {}
        if stage == "selected":
            drops = {"near": 12_345, "exact": 10_000, HOSTILE: 866}
        funnel = funnel.with_row(FunnelRow(stage=stage, source="llava_cot", count=count, dropped=drops))
        funnel = funnel.with_row(FunnelRow(stage=stage, source=HOSTILE, count=count // 1000))
    return funnel


def _noise(step: int, salt: int) -> float:
    return math.sin(12.9898 * step + 78.233 * salt) * 43758.5453 % 1 - 0.5


def sft_row(step: int) -> dict[str, float]:
    return {
        "step": step,
        "loss": 0.35 + 4.2 * math.exp(-step / 22) + 0.25 * _noise(step, 1) * math.exp(-step / 90),
        "grad_norm": 1.1 + 6 * math.exp(-step / 12) + 0.5 * _noise(step, 2),
        "lr": 1e-3 * min(step / 10, 1.0) * (0.5 + 0.5 * math.cos(math.pi * step / 120)),
        "tokens_per_second": 5200 + 600 * _noise(step, 3),
        "step_seconds": 1.15 + 0.1 * _noise(step, 4),
        "skipped_steps": 0,
    }


def rl_row(step: int) -> dict[str, float]:
    accuracy = 0.4 + 0.28 * (1 - math.exp(-step / 25)) + 0.12 * _noise(step, 1)
    form = min(1.0, 0.995 - 0.08 * math.exp(-step / 8) + 0.01 * _noise(step, 2))
    generate, train = 1.7 + 0.3 * _noise(step, 3), 1.0 + 0.1 * _noise(step, 4)
    return {
        "step": step,
        "reward": 0.9 * accuracy + 0.1 * form,
        "reward_accuracy": accuracy,
        "reward_format": form,
        "entropy": 0.21 * math.exp(-step / 50) + 0.03 * _noise(step, 5),
        "clip_fraction": 0.13 + 0.05 * _noise(step, 6),
        "mismatch_mean": 1.2e-6 * (1 + 0.6 * _noise(step, 7)),
        "mismatch_max": 2.4e-4 * (1 + 0.9 * _noise(step, 8)),
        "response_len_mean": 21 + 2 * _noise(step, 9),
        "response_len_max": 37 + round(12 * _noise(step, 10)),
        "truncated": 0.02 * max(0.0, _noise(step, 11)),
        "groups_kept": 18 + round(6 * _noise(step, 12)),
        "groups_total": 32,
        "grad_norm": 2.2 + 0.8 * _noise(step, 13),
        "lr": 1e-4,
        "policy_version": step,
        "seconds_generate": generate,
        "seconds_reward": 0.06,
        "seconds_train": train,
        "seconds_sync": 0.14,
        "seconds_step": generate + train + 0.32,
        "tokens_per_second": 1900 + 300 * _noise(step, 14),
    }


def logged_more(step: int) -> dict[str, float]:
    """Returns metrics that depend on settings: a part of the reward, ratios, held-out accuracy now and then."""
    row = {
        "reward_overlong": -0.1 * max(0.0, _noise(step, 15)),
        "pass_at_1": 0.5 + 0.1 * _noise(step, 16),
        "pass_at_8": 0.8 + 0.1 * _noise(step, 16),
        "response_len_right": 19 + _noise(step, 9),
        "response_len_wrong": 25 + _noise(step, 10),
        "reflection_words": 0.002 * step,
        "sequence_ratio_p01": 1 - 4e-4 * (1 + _noise(step, 17)),
        "sequence_ratio_p50": 1 + 1e-5 * _noise(step, 18),
        "sequence_ratio_p99": 1 + 5e-4 * (1 + _noise(step, 19)),
        "clip_fraction_low": 0.05 + 0.02 * _noise(step, 20),
        "clip_fraction_high": 0.08 + 0.02 * _noise(step, 21),
        "policy_kl": 1e-4 * (1 + _noise(step, 22)),
        "reference_kl": 2e-3 * step / 60,
        "judge_failures": float(step == 30),
    }
    if step % 16:
        return row
    accuracy = 0.45 + step / 400
    return row | {
        "held_out_accuracy": accuracy,
        "held_out_low": accuracy - 0.05,
        "held_out_high": accuracy + 0.04,
    }


def _group(
    step: int, index: ShardIndex, questions: list[str], kinds: list[str], number: int
) -> dict[str, object]:
    place = (step * 5 + number) % len(index)
    ref = index[place]
    responses = [
        {
            **_response(place % 12 + (i + step) % 3 - 1, i, right=(i + step) % 3 == 1),
            "id": ref.id,
            "rollout": i,
            "source": "digits",
            "kind": kinds[place] if number != 2 else HOSTILE,
            "answer": str(place % 12),
        }
        for i in range(8)
    ]
    if number == 1:
        responses[0] |= {"response": HOSTILE, "extracted": HOSTILE}
    return {
        "step": step,
        "ref": asdict(ref),
        "question": questions[place] if number != 2 else HOSTILE,
        "policy_version": step - 1,
        "responses": responses,
    }


def _response(answer: int, number: int, *, right: bool) -> dict[str, object]:
    text = f"<think>3 {number} 9. 3+{number}+9={12 + number}</think><answer>{answer}</answer>"
    return {
        "response": text if number != 5 else text.removesuffix("</answer>") * 3,
        "reward": 0.9 * right + 0.1 * (number != 5),
        "accuracy": float(right),
        "format": float(number != 5),
        "extracted": str(answer) if number != 5 else "",
        "decided_by": "exact" if right else "none",
        "response_len": 20 + number,
        "finish_reason": "stop" if number != 5 else "length",
    }


def make_baseline(*, is_complete: bool = True, questions_seen: int = 0) -> dict[str, object]:
    """Returns the baseline of a summary.json."""
    return {
        "train_samples": 24,
        "is_complete": is_complete,
        "by_text": {"accuracy": 0.25, "ci95": [0.2, 0.3], "count": 402},
        "by_kind": {"accuracy": 0.2, "ci95": [0.15, 0.25], "count": 402},
        "questions_seen": questions_seen,
        "sentence": "The most frequent training answer is right 25.0% of the time; the model beats it.",
    }


def _write_evaluation(out: Path, accuracy: float, *, right: int) -> None:
    kinds = ("count", "difference", "largest", "position", "smallest", "sum")
    by_kind = {}
    for i, kind in enumerate(kinds):
        value = min(0.97, max(0.05, accuracy + 0.07 * (i - 2.5)))
        by_kind[kind] = {"accuracy": value, "ci95": [value - 0.08, min(1.0, value + 0.08)], "count": 67}
    length = {"mean": 21.4, "p50": 21, "p95": 30}
    total = {"accuracy": accuracy, "ci95": [accuracy - 0.048, accuracy + 0.047], "count": 402, "truncated": 3}
    write_json(
        out / "summary.json", total | {"by_kind": by_kind, "length": length, "baseline": make_baseline()}
    )
    records = [
        ScoredResponse(id=f"q{i}", kind=kinds[i % 6], accuracy=float(i * 37 % 402 < right))
        for i in range(402)
    ]
    write_lines(out / "responses.jsonl", [asdict(record) for record in records])


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
