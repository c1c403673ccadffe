"""Writes what shows why engine and trainer disagree: RUN/mismatch/step-N/samples.jsonl and tensors.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipeline.files import atomic_writer, to_json, without_nan, write_json
from megatron_omr.train.run_folder import checkpoint_name
from rl.mismatch.measure import Compared
from rl.mismatch.watch import EnginesDisagree

Digests = Mapping[str, str]
"""Name of a tensor of the engine -> digest of its bytes."""


class ResendsWeights(Protocol):
    """The method of RolloutManager that find_tensors calls."""

    def resend_weights(self) -> Mapping[int, tuple[Digests, Digests] | str]: ...


def evidence_folder(run: Path, step: int) -> Path:
    return run / "mismatch" / checkpoint_name(step)


def write_samples(
    folder: Path, compared: Sequence[Compared], name_tokens: Callable[[Sequence[int]], list[str]]
) -> None:
    """Writes each response with tokens and logprobs of both, the one with the largest difference first.

    Args:
        name_tokens: returns the text of each token.
    """
    with atomic_writer(folder / "samples.jsonl") as file:
        for each in sorted(compared, key=lambda each: -each.largest):
            file.write(to_json(without_nan(_describe(each, name_tokens))).encode() + b"\n")


def _describe(each: Compared, name_tokens: Callable[[Sequence[int]], list[str]]) -> dict[str, Any]:
    rollout, ids = each.rollout, each.rollout.token_ids.tolist()
    assert rollout.logprobs is not None, "an engine sampled it"
    gaps = np.where(each.is_fresh, np.abs(each.differences), -1.0)
    worst = int(np.nan_to_num(gaps, nan=np.inf).argmax())
    texts = name_tokens(ids)
    return {
        "id": rollout.ref.id,
        "largest": each.largest,
        "worst": {"place": worst, "token_id": ids[worst], "token": texts[worst]},
        "versions": [list(span) for span in rollout.versions],
        "token_ids": ids,
        "tokens": texts,
        "engine_logprobs": rollout.logprobs.tolist(),
        "trainer_logprobs": each.trainer_logprobs.tolist(),
        "is_fresh": each.is_fresh.tolist(),
    }


def compare_digests(before: Digests, after: Digests) -> list[str]:
    """Returns the tensors that the same weights, sent again, have changed: they were not those of the trainer."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


@contextmanager
def naming_tensors(engines: ResendsWeights) -> Iterator[None]:
    """Where EnginesDisagree is raised, sends the engines their weights again, and adds to it which tensors changed."""
    try:
        yield
    except EnginesDisagree as error:
        try:
            verdict = find_tensors(engines, error.folder)
        # RuntimeErrors are also RankErrors, ValueErrors also WeightErrors; a full disk, too, must not hide the reason
        except (RuntimeError, ValueError, OSError) as failure:
            verdict = f"Its weights could not be sent again: {failure}"
        raise EnginesDisagree(f"{error}. {verdict}", error.folder) from error


def find_tensors(engines: ResendsWeights, folder: Path) -> str:
    """Writes tensors.json, and returns what it says in a sentence."""
    found: dict[str, Any] = {}
    changed: dict[int, list[str]] = {}
    for number, digests in engines.resend_weights().items():
        if isinstance(digests, str):
            found[str(number)] = {"failure": digests}
            continue
        before, after = digests
        changed[number] = names = compare_digests(before, after)
        found[str(number)] = {
            "changed": {name: [before.get(name), after.get(name)] for name in names},
            "unchanged": len(after) - len([name for name in names if name in after]),
        }
    verdict = _conclude(changed)
    write_json(folder / "tensors.json", {"verdict": verdict, "engines": found})
    return verdict


def _conclude(changed: Mapping[int, Sequence[str]]) -> str:
    if not changed:
        return "No engine could be asked for its tensors"
    if not any(changed.values()):
        return (
            "None of the engines' tensors differ once the same weights are sent again: inputs or numerics do"
        )
    parts = []
    for number, names in changed.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"engine {number} had other weights in {', '.join(names[:3])}{more}")
    return "; ".join(parts)
