"""Folders of evaluations as `omr eval` writes them, from accuracies or records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rl.types import AskedResponse

SETTINGS = {
    "model": "one",
    "sampling.max_tokens": 64,
    "reward.correct_by": "accuracy",
    "reward.checker.mode": "strict",
    "reward.checker.deadline": 5.0,
    "reward.checker.workers": 2,
    "reward.use_judge": False,
    "reward.judge.model": "",
}


def write_evaluation(
    folder: Path,
    records: Sequence[AskedResponse],
    *,
    settings: Mapping[str, object] | None = None,
    shards: Path | str = "",
) -> Path:
    """Writes the files of an evaluation that is finished, its summary without numbers; returns the folder."""
    folder.mkdir(parents=True)
    (folder / "asked.json").write_text(json.dumps(SETTINGS | dict(settings or {})))
    (folder / "config.json").write_text(json.dumps({"shards": str(shards)}))
    (folder / "summary.json").write_text("{}")
    (folder / "responses.jsonl").write_bytes(b"".join(record.to_json() for record in records))
    return folder


def make_records(
    accuracies: Mapping[str, Sequence[float]], *, source: str = "digits", length: int = 20
) -> list[AskedResponse]:
    """Returns the responses to questions by id; one without accuracies could not be asked."""
    return [
        AskedResponse(
            id=name,
            source=source,
            answer="7",
            rollout=number,
            accuracy=accuracy,
            format=1.0,
            response="<think>so</think><answer>7</answer>"
            if accuracy
            else "<think>so</think><answer>8</answer>",
            extracted="7" if accuracy else "8",
            decided_by="exact" if accuracy else "none",
            response_len=length,
            finish_reason="stop",
        )
        for name, values in accuracies.items()
        for number, accuracy in enumerate(values)
    ] + [
        AskedResponse(id=name, source=source, answer="7", fault="image: broken")
        for name, values in accuracies.items()
        if not values
    ]
