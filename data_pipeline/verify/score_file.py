"""Scores a file of answers: one JSON object a line in, the same with a verdict out, in constant memory."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TextIO

from tqdm import tqdm

from data_pipeline.served.config import ServerConfig
from data_pipeline.served.judge import judge_pairs
from data_pipeline.verify.check import Verdict
from data_pipeline.verify.config import VerifyConfig
from data_pipeline.verify.pool import VerifyPool

CHUNK = 512  # lines in memory


@dataclass(frozen=True, kw_only=True)
class VerifySummary:
    """What was found in all lines."""

    answers: int
    right: int
    format: float  # mean score of the format
    decided_by: dict[str, int]
    bad_lines: int
    not_judged: int = 0  # answers on which the judge gave no clear word


def verify_file(config: VerifyConfig) -> VerifySummary:
    """Write each line of `source` to `out` with accuracy, format, extracted and decided_by; `out` appears when whole.

    Raises:
        ValueError: `source` is no file or is `out`, or has more than `max_bad_lines` bad lines.
    """
    source, out = Path(config.source), Path(config.out)
    if not source.is_file():
        raise ValueError(f"source={source} is not a file; give JSON lines with response and answer")
    if source.resolve() == out.resolve():
        raise ValueError(f"out={out} is the source; write to another file")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    try:
        with (
            source.open("rb") as lines,
            part.open("w") as verified,
            VerifyPool(config.checker) as pool,
        ):
            summary = _verify(config, lines, verified, pool)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    part.replace(out)
    return summary


def _verify(config: VerifyConfig, lines: BinaryIO, verified: TextIO, pool: VerifyPool) -> VerifySummary:
    bad: list[str] = []
    counts: Counter[str] = Counter()
    decided_by: Counter[str] = Counter()
    judge = config.judge.server
    form, not_judged = 0.0, 0
    size = Path(config.source).stat().st_size
    with tqdm(total=size, desc="verify", unit="B", unit_scale=True, dynamic_ncols=True) as bar:
        rows = _rows(lines, config, bad, bar)
        while chunk := list(islice(rows, CHUNK)):
            verdicts = pool.check_many([(row["response"], str(row["answer"])) for row in chunk])
            if judge:
                verdicts, unclear = _judged(judge, chunk, verdicts)
                not_judged += unclear
            decided_by.update(verdict.decided_by for verdict in verdicts)
            verified.writelines(_line(row, verdict) for row, verdict in zip(chunk, verdicts, strict=True))
            counts.update(answers=len(verdicts), right=sum(v.accuracy > 0 for v in verdicts))
            form += sum(verdict.format for verdict in verdicts)
            bar.set_postfix(answers=counts["answers"], right=counts["right"], bad=len(bad))
    return VerifySummary(
        answers=counts["answers"],
        right=counts["right"],
        format=form / max(1, counts["answers"]),
        decided_by=dict(decided_by.most_common()),
        bad_lines=len(bad),
        not_judged=not_judged,
    )


def _judged(judge: ServerConfig, rows: Sequence[dict], verdicts: list[Verdict]) -> tuple[list[Verdict], int]:
    """The verdicts, by the judge where it found right what the rules had not; and on how many it gave no word."""
    asked = [i for i, verdict in enumerate(verdicts) if not verdict.accuracy and verdict.extracted]
    pairs = [(str(rows[i].get("question", "")), str(rows[i]["answer"]), verdicts[i].extracted) for i in asked]
    judged = list(verdicts)
    found = judge_pairs(judge, pairs)
    for i, is_equal in zip(asked, found, strict=True):
        if is_equal:
            judged[i] = replace(verdicts[i], accuracy=1.0, decided_by="judge")
    return judged, found.count(None)


def _rows(lines: BinaryIO, config: VerifyConfig, bad: list[str], bar: tqdm) -> Iterator[dict]:
    """The good lines' objects; says which lines are bad and why, and stops at too many."""
    for number, line in enumerate(lines, 1):
        bar.update(len(line))
        row = _parse(line)
        if isinstance(row, dict):
            yield row
        elif row:
            bad.append(f"{config.source}:{number}: {row}")
            bar.write(bad[-1], file=sys.stderr)
        if len(bad) > config.max_bad_lines:
            raise ValueError(
                f"{config.source} has more than max_bad_lines={config.max_bad_lines} bad lines, the last at "
                f"{bad[-1]}; mend it, or raise the option"
            )


def _parse(line: bytes) -> dict | str:
    """A line's object, or what is wrong with it; "" of a blank line."""
    if not line.strip():
        return ""
    try:
        row = json.loads(line)
    except RecursionError:
        return "nested too deep"
    except ValueError:  # of JSON, or of UTF-8
        return "not JSON"
    if not isinstance(row, dict):
        return "not a JSON object"
    if not isinstance(row.get("response"), str):
        return "no text in the field response"
    answer = row.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return "neither text nor a number in the field answer"
    return row


def _line(row: dict, verdict: Verdict) -> str:
    return json.dumps(row | asdict(verdict)) + "\n"
