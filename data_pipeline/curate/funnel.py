"""The funnel: how many samples each stage of the recipe left, as a manifest beside the data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from data_pipeline.files import write_json

FUNNEL = "funnel.json"
STAGES = ("raw", "standardised", "distilled", "verified", "selected", "mixed")


@dataclass(frozen=True, kw_only=True)
class FunnelRow:
    """One source after one stage."""

    stage: str  # of STAGES
    source: str
    count: int  # samples that left the stage
    dropped: Mapping[str, int] = field(default_factory=dict)  # by the stage, by reason
    digest: str = ""  # of the data that left it

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
        """Read what `save` wrote; an empty funnel where there is no file.

        Raises:
            ValueError: the file is no funnel.
        """
        path = Path(path)
        if not path.is_file():
            return cls()
        try:
            rows = tuple(FunnelRow(**row) for row in json.loads(path.read_text())["rows"])
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is not a funnel ({error!r}); delete it and run the stages again"
            ) from error
        return cls(rows=rows)

    def save(self, path: str | Path) -> None:
        """Write the rows; the file is replaced as a whole."""
        write_json(Path(path), {"version": 1, "rows": [asdict(row) for row in self.rows]})

    def with_row(self, row: FunnelRow) -> Funnel:
        """With `row` in place of the one of the same stage and source, if there is one."""
        others = [old for old in self.rows if (old.stage, old.source) != (row.stage, row.source)]
        return replace(self, rows=tuple(sorted([*others, row], key=lambda r: STAGES.index(r.stage))))

    @property
    def totals(self) -> dict[str, int]:
        """Samples by stage, of the stages that there are."""
        counts: Counter[str] = Counter()
        for row in self.rows:
            counts[row.stage] += row.count
        return dict(counts)

    def dropped(self) -> dict[str, dict[str, int]]:
        """Drops by stage and reason, the most frequent first."""
        counts: dict[str, Counter[str]] = {}
        for row in self.rows:
            counts.setdefault(row.stage, Counter()).update(row.dropped)
        return {stage: dict(reasons.most_common()) for stage, reasons in counts.items() if reasons}

    def table(self) -> str:
        """A line per source, a column per stage; then what was dropped, by stage and reason."""
        stages = list(self.totals)
        counts = {(row.source, row.stage): row.count for row in self.rows}
        names = list(dict.fromkeys(row.source for row in self.rows))
        lines = [["source", *stages]]
        lines += [
            [name, *(f"{counts[name, s]:,}" if (name, s) in counts else "" for s in stages)] for name in names
        ]
        lines += [["all", *(f"{total:,}" for total in self.totals.values())]]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        ]
        for stage, reasons in self.dropped().items():
            text.append(
                f"{stage} without " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
            )
        return "\n".join(text)
