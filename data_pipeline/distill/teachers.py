"""Asks several teachers, each the questions that are assigned to it.

Teachers of a cascade are asked one after the other, so that they may be served in turn by the same machine; others are
asked at the same time. What each is asked follows from the questions, the settings and the earlier teachers' checked
responses alone, so the same command continues.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from data_pipeline.distill.asking import MANIFEST, Asked, ask_together
from data_pipeline.distill.assignment import exclude, is_asked
from data_pipeline.distill.config import DistillConfig
from data_pipeline.distill.responses import (
    ResponseStats,
    add_stats,
    read_shard_responses,
    read_stats,
    stats_table,
)
from data_pipeline.distill.scoring import read_all_scores
from data_pipeline.shards.index import ShardIndex

Rates = Callable[[ShardIndex, int], Mapping[str, float]]
"""Returns the student's pass rates of questions of a shard; a module's function, or a functools.partial of one."""
TeacherStats = dict[str, dict[str, ResponseStats]]
"""Counts by teacher and source."""


def ask_teachers(config: DistillConfig, rates: Rates | None = None) -> TeacherStats:
    """Asks each teacher its questions, and checks the responses; returns the counts.

    Args:
        rates: pass rates, where `config.assign` needs them; by default those of `config.scores`.

    Raises:
        ValueError: as ask_together, or no question has a pass rate.
    """
    rates = rates or _rates_of(config)
    if config.assign.needs_pass_rates:
        _check_rates(config, rates)
    if config.teachers[0].name and (Path(config.out) / MANIFEST).exists():
        raise ValueError(
            f"{config.out} holds the responses of a teacher without a name; move {MANIFEST}, config.json and responses "
            f"to {config.asks[0].out}, if it is that one, or choose another folder"
        )
    asked = [
        Asked(config=ask, wanted=partial(_wanted, config, rates, number))
        for number, ask in enumerate(config.asks)
    ]
    if config.assign.way == "cascade":
        for one in asked:
            ask_together([one])
    else:
        ask_together(asked)
    return read_teacher_stats(config)


def read_teacher_stats(config: DistillConfig) -> TeacherStats:
    """Returns the counts of what was asked so far."""
    index = ShardIndex.load(config.shards)
    return {
        ask.teacher.name or ask.teacher.server.model or "teacher": read_stats(ask.out, index)
        for ask in config.asks
    }


def count_excluded(config: DistillConfig, rates: Rates | None = None) -> dict[str, int]:
    """Returns the number of questions that their pass rates leave to no teacher, by reason: unscored, too_easy.

    Args:
        rates: as in ask_teachers.
    """
    if not config.assign.needs_pass_rates or (rates := rates or _rates_of(config)) is None:
        return {}
    counts: Counter[str] = Counter()
    index = ShardIndex.load(config.shards)
    for number in range(len(index.shards)):
        found = rates(index, number)
        counts.update(exclude(config.assign, found.get(id)) for id in index.rows(number).ids)
    return {reason: count for reason, count in sorted(counts.items()) if reason}


def _check_rates(config: DistillConfig, rates: Rates | None) -> None:
    if rates is None:
        raise ValueError(
            f"assign.way={config.assign.way} with assign.max_pass_rate={config.assign.max_pass_rate} needs pass rates: "
            "give the scores.jsonl that `omr data score` wrote of these questions as --scores"
        )
    index = ShardIndex.load(config.shards)
    if len(index) and count_excluded(config, rates).get("unscored") == len(index):
        fix = (
            f"{', '.join(config.scores)} holds others; give what `omr data score` wrote of these questions as --scores"
            if config.scores
            else "the student responded to none; set student.ask_failed_again"
        )
        first = next(id for number in range(len(index.shards)) for id in index.rows(number).ids)
        raise ValueError(f"no question in {config.shards}, such as {first!r}, has a pass rate: {fix}")


def teachers_table(
    config: DistillConfig, stats: TeacherStats, excluded: Mapping[str, int] | None = None
) -> str:
    """Returns the counts: by source of one teacher; by teacher, with their costs, of several.

    A question counts once for each teacher that was asked it.

    Args:
        excluded: questions that no teacher was asked, by reason, for a last line.
    """
    totals = {name: add_stats(found.values()) for name, found in stats.items()}
    spent = {
        name: teacher.cost(total.prompt_len, total.response_len)
        for teacher, (name, total) in zip(config.teachers, totals.items(), strict=True)
    }
    if len(totals) == 1 and not any(spent.values()):
        table = stats_table(next(iter(stats.values())))
    else:
        table = stats_table(totals, "teacher", spent)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in (excluded or {}).items())
    return f"{table}\nnot asked: {reasons}" if reasons else table


def _wanted(
    config: DistillConfig, rates: Rates | None, teacher: int, index: ShardIndex, number: int
) -> list[str]:
    """Returns the ids of a shard's questions that this teacher is asked."""
    found = rates(index, number) if rates else {}
    earlier = config.asks[:teacher] if config.assign.way == "cascade" else ()
    solved = {
        response.id
        for ask in earlier
        for response in read_shard_responses(ask.out, index, number)
        if not response.reason
    }
    count = len(config.teachers)
    return [
        id
        for id in index.rows(number).ids
        if is_asked(config.assign, teacher, count, id, rate=found.get(id), solved=id in solved)
    ]


def _rates_of(config: DistillConfig) -> Rates | None:
    return partial(_read_rates, config.scores) if config.scores else None


def _read_rates(paths: tuple[str, ...], index: ShardIndex, number: int) -> Mapping[str, float]:
    return read_all_scores(paths)
