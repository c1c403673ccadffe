"""Responses on disk: every response of a teacher to the questions of a shard, with its verdict.

    OUT/responses/000012.jsonl         all responses to shard 12 of the questions, by question and rollout
    OUT/responses/000012.log           the same while asking, see response_log.py
    OUT/responses/000012.summary.json  counts of the shard, so that its responses need not be read for them

Files are named by the shard's number in the index, because the sources of a mixture may have shards of equal names.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

from data_pipeline.files import read_json
from data_pipeline.shards.index import ShardIndex
from data_pipeline.tables import text_table
from data_pipeline.verify.record import ScoredResponse, read_responses


@dataclass(frozen=True, kw_only=True)
class TeacherResponse(ScoredResponse):
    """One response of a teacher to one question, or the reason why there is none."""

    teacher: str = ""  # its name among several, or the model
    prompt_len: int = 0  # tokens
    seconds: float = 0.0
    attempts: int = 0
    answer_logprob: float | None = None  # mean over the tokens of its answer; None where it was not asked for
    mean_logprob: float | None = None  # mean over all of its tokens
    checker: str = ""  # whose verdict it is; "" before the check
    reason: str = ""  # why it is not kept: truncated, no_think, no_answer, wrong, ..., or why none came
    detail: str = ""  # a failure in words, or what the judge said
    judge_prompt_len: int = 0  # tokens that the judge read for its verdict; 0 where it was not asked
    judge_response_len: int = 0  # tokens that it wrote

    @property
    def key(self) -> tuple[str, int]:
        return self.id, self.rollout

    @property
    def is_failed(self) -> bool:
        return self.response is None

    @property
    def decisive(self) -> list[object]:
        """The fields that scores and samples are made of."""
        kept = None if self.reason else self.response
        likelihood = [self.answer_logprob, self.mean_logprob]
        return [self.teacher, *self.key, self.is_failed, self.accuracy, self.decided_by, kept, *likelihood]


@dataclass(kw_only=True)
class ResponseStats:
    """Counts of the responses to the questions of one source."""

    questions: int = 0
    solved: int = 0  # questions with a response that was kept
    asked: int = 0  # responses asked for
    received: int = 0
    right: int = 0
    kept: int = 0  # right, complete and in form
    prompt_len: int = 0  # tokens of all prompts
    response_len: int = 0  # tokens of all responses
    judge_prompt_len: int = 0  # tokens of all requests to the judge
    judge_response_len: int = 0  # tokens of all its replies
    seconds: float = 0.0  # of requests, many of which ran at once
    failed: dict[str, int] = field(default_factory=dict)  # reasons why no response came
    rejected: dict[str, int] = field(default_factory=dict)  # reasons why a response was not kept
    first_failed: dict[str, str] = field(default_factory=dict)  # the first case of each reason in `failed`

    def add(self, responses: Sequence[TeacherResponse]) -> None:
        """Counts the responses to one question."""
        self.questions += 1
        self.solved += any(not response.reason for response in responses)
        for response in responses:
            self.asked += 1
            self.received += not response.is_failed
            self.right += response.accuracy > 0
            self.kept += not response.reason
            self.prompt_len += response.prompt_len
            self.response_len += response.response_len
            self.judge_prompt_len += response.judge_prompt_len
            self.judge_response_len += response.judge_response_len
            self.seconds += response.seconds
            if response.reason:
                counts = self.failed if response.is_failed else self.rejected
                counts[response.reason] = counts.get(response.reason, 0) + 1
            if response.is_failed:
                self.first_failed.setdefault(response.reason, f"{response.id!r}: {response.detail}")

    def merge(self, other: ResponseStats) -> None:
        for name, value in asdict(other).items():
            mine = getattr(self, name)
            if name == "first_failed":
                self.first_failed = value | mine
            elif isinstance(mine, dict):
                mine |= {reason: mine.get(reason, 0) + count for reason, count in value.items()}
            else:
                setattr(self, name, mine + value)


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """The state of a shard whose questions have all been asked, and its counts by source."""

    sha256: str  # of the shard with the questions
    k: int
    checker: str
    questions: str = ""  # a digest of those that were asked; "" where all were
    failed: int  # responses that did not come, or were not judged
    digest: str  # of the verdicts and the kept responses
    stats: dict[str, ResponseStats]

    @classmethod
    def load(cls, out: str | Path, index: ShardIndex, number: int) -> ShardSummary | None:
        """Returns a shard's summary, None while responses are missing; raises ValueError if they are to others."""
        path = summary_path(responses_path(out, number))
        if not path.exists():
            return None
        fields = read_json(path)
        if fields["sha256"] != (shard := index.shards[number]).sha256:
            raise ValueError(
                f"{path} is of other questions than {shard.file} holds now; choose another folder for the "
                "responses to these"
            )
        fields["stats"] = {source: ResponseStats(**found) for source, found in fields["stats"].items()}
        return cls(**fields)


def responses_path(out: str | Path, number: int) -> Path:
    """Returns the file of the responses to the `number`-th shard."""
    return Path(out) / "responses" / f"{number:06d}.jsonl"


def summary_path(path: Path) -> Path:
    """Returns the summary beside the responses at `path`."""
    return path.with_suffix(".summary.json")


def read_shard_responses(out: str | Path, index: ShardIndex, number: int) -> Iterator[TeacherResponse]:
    """Yields the checked responses to the `number`-th shard, by question and rollout.

    Raises:
        ValueError: responses are missing, or are to other questions.
    """
    path = responses_path(out, number)
    if ShardSummary.load(out, index, number) is None or not path.exists():
        raise ValueError(f"{path} is not complete; run the command that writes it again: it continues")
    yield from read_responses(path, TeacherResponse)


def merge_responses(outs: Sequence[str], index: ShardIndex, number: int) -> Iterator[TeacherResponse]:
    """Yields the checked responses of several folders to the `number`-th shard: by question, rollout and folder.

    Raises:
        ValueError: responses are missing, or are to other questions.
    """
    places = {id: place for place, id in enumerate(index.rows(number).ids)}
    streams = [read_shard_responses(out, index, number) for out in outs]
    return heapq.merge(*streams, key=lambda response: (places[response.id], response.rollout))


def read_stats(out: str | Path, index: ShardIndex) -> dict[str, ResponseStats]:
    """Returns the counts by source of the shards that are complete."""
    total: dict[str, ResponseStats] = {}
    for number in range(len(index.shards)):
        summary = ShardSummary.load(out, index, number)
        for source, found in summary.stats.items() if summary else ():
            total.setdefault(source, ResponseStats()).merge(found)
    return dict(sorted(total.items()))


def responses_digest(outs: Sequence[str], index: ShardIndex) -> str:
    """Returns a digest of the checked responses in these folders; raises ValueError if some are missing."""
    digest = hashlib.sha256()
    for out, (number, shard) in product(outs, enumerate(index.shards)):
        summary = ShardSummary.load(out, index, number)
        if summary is None:
            raise ValueError(f"{out} lacks responses to {shard.file}; ask again: it continues")
        digest.update(summary.digest.encode())
    return digest.hexdigest()[:16]


def add_stats(stats: Iterable[ResponseStats]) -> ResponseStats:
    """Returns the sum of the counts."""
    total = ResponseStats()
    for found in stats:
        total.merge(found)
    return total


def stats_table(
    stats: Mapping[str, ResponseStats], first: str = "source", costs: Mapping[str, float] | None = None
) -> str:
    """Returns a line per source and one for all, then the reasons of failed and of rejected responses.

    Args:
        first: head of the first column, where the lines are of something else than sources.
        costs: a last column, where a price is known.
    """
    total, costs = add_stats(stats.values()), costs or {}
    columns = ["questions", "solved", "asked", "received", "right", "kept", "prompt_len", "response_len"]
    columns += ["judge_prompt_len", "judge_response_len"] if total.judge_prompt_len else []
    priced = ["cost"] if any(costs.values()) else []
    spent = {**costs, "all": sum(costs.values())}
    rows = [
        [
            name,
            *(f"{getattr(found, column):,}" for column in columns),
            f"{found.seconds / 3600:.2f}",
            *(f"{spent[name]:,.2f}" for _ in priced),
        ]
        for name, found in [*stats.items(), ("all", total)]
    ]
    lines = [text_table([first, *columns, "hours", *priced], rows)]
    for name, counts in (("failed", total.failed), ("not kept", total.rejected)):
        reasons = sorted(counts.items(), key=lambda item: -item[1])
        if reasons:
            lines.append(f"{name}: " + ", ".join(f"{reason} {count:,}" for reason, count in reasons))
    return "\n".join(lines)
