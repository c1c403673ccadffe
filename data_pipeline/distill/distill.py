"""Distillation: a teacher's answers to the questions of some shards, checked, and the right ones as new shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from data_pipeline.distill.answers import Answer, ShardSummary, Yield, read_answers
from data_pipeline.distill.asking import ask_all, ask_shards, read_yields
from data_pipeline.distill.config import AskConfig, DistillConfig, parse_extra_body
from data_pipeline.distill.teacher import distilled_samples, teacher_messages
from data_pipeline.errors import BadSample
from data_pipeline.files import read_json, write_json
from data_pipeline.served.client import ChatClient
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.stage import MANIFEST, Drop, run_stage
from data_pipeline.types import Sample

YIELDS = "yields.json"


def distill(config: AskConfig) -> dict[str, Yield]:
    """distill_shards of all shards, on the executor that `config` names."""
    return ask_all(distill_shards, config)


def distill_shards(config: AskConfig, numbers: Sequence[int]) -> dict[str, Yield]:
    """Ask for `config.teacher.k` answers to each question of the shards of these numbers, and check them.

    Returns: what came of it by source.

    Raises:
        ValueError: the folder holds answers to something else, the server is down or refuses everybody, or
            more fails than `max_bad_samples` allows.
    """

    async def ask(client: ChatClient, sample: Sample, rollout: int) -> Answer:
        return await ask_question(client, config, sample, rollout)

    return ask_shards(config, numbers, ask, kind="answers")


async def ask_question(client: ChatClient, config: AskConfig, sample: Sample, rollout: int) -> Answer:
    """Ask a question for the n-th time; which answer comes depends on the seed, its id and n.

    Raises:
        BadSample: it cannot be asked, or no answer could be checked.
        NoAnswer: the server gave none.
    """
    if not sample.answer:
        raise BadSample("no_reference", "no reference answer to check against")
    key = f"{config.teacher.seed}/{sample.id}/{rollout}"
    body: dict[str, object] = {
        "messages": teacher_messages(sample, config.teacher.system_prompt),
        "temperature": config.teacher.temperature,
        "max_tokens": config.teacher.max_tokens,
        "seed": int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) >> 1,  # 31 bits suit every server
    }
    if config.teacher.top_p is not None:
        body["top_p"] = config.teacher.top_p
    reply = await client.ask(body | parse_extra_body(config.teacher.extra_body), key)
    return Answer(
        id=sample.id,
        rollout=rollout,
        source=sample.source,
        answer=sample.answer,
        teacher=client.model,
        response=reply.text,
        finish_reason=reply.finish_reason,
        tokens_in=reply.tokens_in,
        tokens_out=reply.tokens_out,
        seconds=round(reply.seconds, 3),
        attempts=reply.attempts,
        hedged=reply.hedged,
    )


def finish_distill(config: DistillConfig) -> tuple[dict[str, Yield], ShardIndex]:
    """Once all shards are asked: yields.json, and the kept answers as samples in OUT/shards.

    The same call again changes nothing; other answers, or another `per_question`, replace OUT/shards. Returns both.

    Raises:
        ValueError: not all shards were asked, no answer was kept, or OUT/shards is none of this function's.
    """
    index, out = ShardIndex.load(config.shards), Path(config.out)
    yields = read_yields(out, index, range(len(index.shards)))
    write_json(out / YIELDS, {source: asdict(found) for source, found in yields.items()})
    if not sum(found.kept for found in yields.values()):
        raise ValueError(f"no answer was kept; look at them in {out / 'answers'}")
    settings: dict[str, object] = {
        "per_question": config.per_question,
        "answers": answers_digest(config.out, index),
    }
    report = run_stage(
        partial(_distilled, config),
        config.shards,
        str(out / "shards"),
        settings=settings,
        limits=ShardConfig(),
        rewrite=_is_ours(out / "shards", index, settings),
        work=config.work,
    )
    return yields, report.index


def _is_ours(folder: Path, index: ShardIndex, settings: Mapping[str, object]) -> bool:
    """The folder holds kept answers to these questions, of whatever settings."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        return False
    found = read_json(manifest)
    common = {"input": index.digest, **asdict(ShardConfig())}
    return found == common | {name: found.get(name) for name in settings}


def yields_table(yields: Mapping[str, Yield]) -> str:
    """A line per source, and one for all; then why answers did not come, and why others were not kept."""
    total = Yield()
    for found in yields.values():
        total.merge(found)
    head = (
        "source",
        "questions",
        "solved",
        "asked",
        "answered",
        "right",
        "kept",
        "tokens in",
        "tokens out",
        "hours",
    )
    rows = [head, *(_cells(source, found) for source, found in sorted(yields.items())), _cells("all", total)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    for what, counts in (("not answered", total.failed), ("not kept", total.reasons)):
        reasons = sorted(counts.items(), key=lambda item: -item[1])
        if reasons:
            lines.append(f"{what}: " + ", ".join(f"{reason} {count:,}" for reason, count in reasons))
    return "\n".join(lines)


def _cells(source: str, found: Yield) -> tuple[str, ...]:
    counts = (found.questions, found.solved, found.asked, found.answered, found.right, found.kept)
    tokens = (found.tokens_in, found.tokens_out)
    return source, *(f"{count:,}" for count in (*counts, *tokens)), f"{found.seconds / 3600:.2f}"


def answers_digest(out: str | Path, index: ShardIndex) -> str:
    """Identifies the checked answers to all shards of `index`.

    Raises:
        ValueError: not all shards were asked.
    """
    digest = hashlib.sha256()
    for number, shard in enumerate(index.shards):
        summary = ShardSummary.load(out, index, number)
        if summary is None:
            raise ValueError(f"{out} lacks answers to {shard.file}; distill again: it continues")
        digest.update(summary.digest.encode())
    return digest.hexdigest()[:16]


def _distilled(config: DistillConfig, samples: Iterator[Sample], drop: Drop, part: int) -> Iterator[Sample]:
    answers = read_answers(config.out, ShardIndex.load(config.shards), part)
    return distilled_samples(samples, answers, config.per_question, drop)
