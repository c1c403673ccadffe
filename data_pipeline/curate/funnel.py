"""The funnel: counts of samples after each stage of a curation, in a file beside the data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_pipeline.files import write_json
from data_pipeline.tables import text_table

FUNNEL = "funnel.json"
STAGES = ("raw", "filtered", "scored", "distilled", "verified", "selected", "mixed")


@dataclass(frozen=True, kw_only=True)
class TeacherRow:
    """What one teacher, or the student, was asked, what came of it, and what it cost."""

    teacher: str
    questions: int  # that it was asked
    solved: int  # with a response of its that was kept
    responses: int  # that came
    right: int  # of them
    prompt_len: int  # tokens of all prompts
    response_len: int  # tokens of all responses
    cost: float  # without the judge's; 0 where no price is set
    judge_prompt_len: int = 0  # tokens of all requests to its judge
    judge_response_len: int = 0  # tokens of all the judge's replies

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "teacher" and not (type(value) in (int, float) and value >= 0):
                raise ValueError(
                    f"funnel {name}={value!r} of teacher {self.teacher!r} must be a number from 0 on"
                )


@dataclass(frozen=True, kw_only=True)
class FunnelRow:
    """Counts of one source after one stage."""

    stage: str  # of STAGES
    source: str
    count: int  # samples that the stage kept
    # by reason; requests that failed in scored and distilled
    dropped: Mapping[str, int] = field(default_factory=dict)
    digest: str = ""  # of these samples
    teachers: tuple[TeacherRow, ...] = ()  # in the order of their settings

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"funnel stage={self.stage!r} must be one of {', '.join(STAGES)}")
        if not all(type(count) is int and count >= 0 for count in (self.count, *self.dropped.values())):
            raise ValueError(
                f"funnel counts of {self.stage} {self.source!r} must be whole numbers from 0 on: "
                f"count={self.count!r}, dropped={dict(self.dropped)}"
            )


@dataclass(frozen=True, kw_only=True)
class Funnel:
    """Rows in the order of the stages, and within a stage in the order they were added."""

    rows: tuple[FunnelRow, ...] = ()

    @classmethod
    def load(cls, path: str | Path) -> Funnel:
        """Reads what `save` wrote; raises ValueError if the file holds something else."""
        path = Path(path)
        if not path.is_file():
            return cls()
        try:
            rows = tuple(map(_read_row, json.loads(path.read_text())["rows"]))
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a funnel ({error!r}); delete it and run again") from error
        return cls(rows=rows)

    def save(self, path: str | Path) -> None:
        """Writes the rows atomically."""
        write_json(Path(path), {"rows": [asdict(row) for row in self.rows]})

    def with_row(self, row: FunnelRow) -> Funnel:
        """Returns the funnel with `row` instead of an earlier one of the same stage and source."""
        others = [old for old in self.rows if (old.stage, old.source) != (row.stage, row.source)]
        return replace(self, rows=tuple(sorted([*others, row], key=lambda r: STAGES.index(r.stage))))

    @property
    def totals(self) -> dict[str, int]:
        """Returns the samples of all sources by stage."""
        counts: Counter[str] = Counter()
        for row in self.rows:
            counts[row.stage] += row.count
        return dict(counts)

    def dropped(self) -> dict[str, dict[str, int]]:
        """Returns drops by stage and reason, the most frequent first."""
        counts: dict[str, Counter[str]] = {}
        for row in self.rows:
            counts.setdefault(row.stage, Counter()).update(row.dropped)
        return {stage: dict(reasons.most_common()) for stage, reasons in counts.items() if reasons}

    def teachers(self) -> list[TeacherRow]:
        """Returns the sums over all sources, by teacher; a student may have the name of one."""
        found: dict[tuple[str, str], TeacherRow] = {}
        for stage, row in ((each.stage, row) for each in self.rows for row in each.teachers):
            known = asdict(found[stage, row.teacher]) if (stage, row.teacher) in found else {}
            sums = {
                name: value + known.get(name, 0) for name, value in asdict(row).items() if name != "teacher"
            }
            found[stage, row.teacher] = replace(row, **sums)
        return list(found.values())

    def table(self) -> str:
        """Returns a line per source and a column per stage, what stages dropped, and a line per teacher."""
        totals = self.totals
        counts = {(row.source, row.stage): row.count for row in self.rows}
        names = dict.fromkeys(row.source for row in self.rows)
        rows = [[name, *(counts.get((name, stage), "") for stage in totals)] for name in names]
        rows.append(["all", *totals.values()])
        cells = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows]
        drops = [
            f"{stage} dropped " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
            for stage, reasons in self.dropped().items()
        ]
        tables = [text_table(["source", *totals], cells), *drops]
        if teachers := self.teachers():
            tables.append(text_table(TEACHER_HEADS, [teacher_cells(row) for row in teachers]))
        return "\n".join(tables)


TEACHER_HEADS = [
    "teacher",
    "questions",
    "solved",
    "responses",
    "right",
    "tokens in",
    "tokens out",
    "cost",
    "judge in",
    "judge out",
]


def teacher_cells(row: TeacherRow) -> list[str]:
    """Returns a teacher's row of a table with these heads."""
    counts = (row.questions, row.solved, row.responses, row.right, row.prompt_len, row.response_len)
    judged = (f"{count:,}" if count else "–" for count in (row.judge_prompt_len, row.judge_response_len))
    return [
        row.teacher,
        *(f"{count:,}" for count in counts),
        f"{row.cost:,.2f}" if row.cost else "–",
        *judged,
    ]


def _read_row(row: dict[str, Any]) -> FunnelRow:
    fields = dict(row)
    teachers = tuple(TeacherRow(**teacher) for teacher in fields.pop("teachers", ()))
    return FunnelRow(**fields, teachers=teachers)
