"""Scores a file of responses: JSON lines in, the same lines with a verdict out, in constant memory."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from data_pipeline.errors import BadSample, ErrorBudget, column_error
from data_pipeline.files import atomic_writer, parse_json, to_json
from data_pipeline.served.config import JudgeConfig
from data_pipeline.served.judge import judge_pairs
from data_pipeline.verify.check import Verdict, check_reference
from data_pipeline.verify.config import VerifyConfig
from data_pipeline.verify.pool import VerifyPool

CHUNK = 512
"""Lines in memory at once."""


@dataclass(kw_only=True)
class ScoreSummary:
    """Counts over all lines that were scored."""

    responses: int = 0
    right: int = 0
    format_sum: float = 0.0
    decided_by: Counter[str] = field(default_factory=Counter)
    bad_lines: int = 0
    not_judged: int = 0  # responses on which the judge gave no clear verdict

    @property
    def format(self) -> float:
        """Mean format score."""
        return self.format_sum / max(1, self.responses)

    def add(self, verdicts: Sequence[Verdict]) -> None:
        self.responses += len(verdicts)
        self.right += sum(verdict.accuracy > 0 for verdict in verdicts)
        self.format_sum += sum(verdict.format for verdict in verdicts)
        self.decided_by.update(verdict.decided_by for verdict in verdicts)


def score_file(config: VerifyConfig) -> ScoreSummary:
    """Writes each line of `source` to `out` with accuracy, format, extracted and decided_by.

    Bad lines are printed and left out; `out` appears when all lines are scored.

    Raises:
        ValueError: `source` is no file, is `out`, or has more bad lines than `max_bad_lines` allows.
    """
    source, out = Path(config.source), Path(config.out)
    if not source.is_file():
        raise ValueError(f"source={source} is not a file; give JSON lines with response and answer")
    if source.resolve() == out.resolve():
        raise ValueError(f"out={out} is the source; write to another file")
    summary = ScoreSummary()
    fix = f"fix these lines of {source}, or raise max_bad_lines"
    budget = ErrorBudget(limit=config.max_bad_lines, option="max_bad_lines", fix=fix, records="lines")
    bar = tqdm(total=source.stat().st_size, desc="verify", unit="B", unit_scale=True, dynamic_ncols=True)
    with bar, source.open("rb") as lines, atomic_writer(out) as scored, VerifyPool(config.checker) as pool:
        rows = _read_rows(source, lines, budget, bar)
        while chunk := list(islice(rows, CHUNK)):
            verdicts = pool.check_many([(row["response"], str(row["answer"])) for row in chunk])
            if config.judge.base_url:
                summary.not_judged += _ask_judge(config.judge, chunk, verdicts)
            summary.add(verdicts)
            for row, verdict in zip(chunk, verdicts, strict=True):
                scored.write(to_json(row | asdict(verdict)).encode() + b"\n")
            bar.set_postfix(responses=summary.responses, right=summary.right, bad=budget.total)
    summary.bad_lines = budget.total
    return summary


def _read_rows(source: Path, lines: BinaryIO, budget: ErrorBudget, bar: tqdm) -> Iterator[dict]:
    """Yields the objects of good lines; prints and counts bad ones, and skips blank ones."""
    for number, line in enumerate(lines, 1):
        bar.update(len(line))
        if not line.strip():
            continue
        budget.seen += 1
        try:
            row = _parse(line)
        except BadSample as error:
            bar.write(f"{source}:{number}: {error}", file=sys.stderr)
            budget.add(f"{source}:{number}", error)
        else:
            yield row
    budget.check(at_end=True)


def _parse(line: bytes) -> dict:
    """Returns a line's object; raises BadSample if it is not JSON, or lacks a response or an answer."""
    try:
        row = parse_json(line)
    except ValueError as error:  # of JSON, or of UTF-8
        raise BadSample("unreadable", f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise BadSample("schema", "not a JSON object")
    response, answer = row.get("response"), row.get("answer")
    if not isinstance(response, str):
        raise column_error("response", "a text", response, "put the model's response there")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise column_error("answer", "a text or a number", answer, "put the reference answer there")
    check_reference(str(answer))
    return row


def _ask_judge(judge: JudgeConfig, rows: Sequence[dict], verdicts: list[Verdict]) -> int:
    """Replaces wrong verdicts that the judge finds right, and returns the number without a clear judgement."""
    asked = [i for i, verdict in enumerate(verdicts) if not verdict.accuracy and verdict.extracted]
    pairs = [(str(rows[i].get("question", "")), str(rows[i]["answer"]), verdicts[i].extracted) for i in asked]
    found = judge_pairs(judge, pairs)
    for i, is_equal in zip(asked, found, strict=True):
        if is_equal:
            verdicts[i] = replace(verdicts[i], accuracy=1.0, decided_by="judge")
    return found.count(None)
