"""A folder of shards looked through for what is broken: its index, its shards one by one, ids that occur twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from itertools import accumulate
from pathlib import Path

import numpy as np

from data_pipeline.parts import run_parts
from data_pipeline.shards.check_shard import ShardJob, check_shard, sample_ids
from data_pipeline.shards.config import ValidateConfig
from data_pipeline.shards.findings import KEPT, Findings, Problem, printable
from data_pipeline.shards.index import INDEX, MIXTURE, ShardIndex, rows_path

SHOWN = 5
"""Problems of a kind that are printed; --json has more."""
_LEFT = ("*.partial", "part-*.json", "tally-*.json")  # of a write that did not end


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """What is broken in a folder."""

    folder: str
    has_index: bool
    shards: int
    samples: int
    images: int
    counts: dict[str, int]  # problems by kind
    problems: tuple[Problem, ...]  # the first hundred of each kind and shard

    @property
    def ok(self) -> bool:
        return not self.counts

    @property
    def lines(self) -> list[str]:
        """A summary, and the first problems of each kind."""
        what = "" if self.has_index else ", as a plain WebDataset: it has no index that could be read"
        found = f"{self.shards:,} shards, {self.samples:,} samples, {self.images:,} images{what}"
        lines = [f"{self.folder}: {found}", "nothing is broken" if self.ok else ""]
        for kind, count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0])):
            first = [problem for problem in self.problems if problem.kind == kind][:SHOWN]
            lines += [f"{kind}: {count:,}", *(f"  {_line(problem)}" for problem in first)]
            lines += [f"  ... and {count - len(first):,} more"] if count > len(first) else []
        return [line for line in lines if line]

    @property
    def json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def validate(config: ValidateConfig) -> ValidationReport:
    """Look through a folder of shards, or all of a mixture of local folders; what is broken is reported, not raised.

    Raises:
        ValueError: it is no folder, or there is nothing in it to look at.
    """
    folder = Path(config.shards)
    if not folder.is_dir():
        raise ValueError(f"shards={folder} is not a folder; give one of .tar shards")
    listed, problems = _read_index(folder)
    files = [shard.file for shard in listed] if listed is not None else _tars(folder)
    if not files and not problems:
        problems.append(Problem(kind="empty", detail="the folder holds no shard"))
    rows = listed if listed is not None else [None] * len(files)
    jobs = [
        ShardJob(folder=folder, file=file, listed=row, quick=config.quick, images=config.images)
        for file, row in zip(files, rows, strict=True)
    ]
    found = run_parts(check_shard, jobs, work=config.work, desc="validate")
    counts = Counter(problem.kind for problem in problems)
    for findings in found:
        counts += findings.counts
        problems += findings.problems
    num_twice, named = _find_duplicates(jobs, found)
    counts += Counter({"duplicate": num_twice})
    return ValidationReport(
        folder=str(folder),
        has_index=listed is not None,
        shards=len(files),
        samples=sum(findings.samples for findings in found),
        images=sum(findings.images for findings in found),
        counts=dict(counts),
        problems=(*problems, *named),
    )


def _read_index(folder: Path) -> tuple[Sequence | None, list[Problem]]:
    """The index's shards, None where there is none to read; and what is wrong in the folder around it."""
    names = sorted(path.name for path in folder.iterdir())
    ours = {name for name in names if fnmatch(name, "shard-*.index.json") or fnmatch(name, "part-*.json")}
    left = [name for name in names if any(fnmatch(name, pattern) for pattern in _LEFT)]
    problems = [
        Problem(kind="leftover", shard=printable(name), detail="of a write that did not end") for name in left
    ]
    if not {INDEX, MIXTURE} & set(names):
        if ours:
            problems.append(Problem(kind="index", detail=f"there is no {INDEX}: the write did not end"))
        return None, problems
    try:
        shards = ShardIndex.load(folder).shards
    except (ValueError, ConnectionError) as error:
        return None, [*problems, Problem(kind="index", detail=printable(str(error)))]
    files = Counter(shard.file for shard in shards)
    if not shards:
        problems.append(Problem(kind="empty", detail="the index lists no shard"))
    for name in [name for name, count in files.items() if count > 1]:
        problems.append(Problem(kind="index", shard=name, detail="listed more than once"))
    known = {*files, *(rows_path(folder / file).name for file in files)}
    for name in names:
        if name not in known and (name.endswith(".tar") or name in ours) and name not in left:
            problems.append(Problem(kind="extra-shard", shard=printable(name), detail="not in the index"))
    return shards, problems


def _tars(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tar"))


def _find_duplicates(jobs: Sequence[ShardJob], found: Sequence[Findings]) -> tuple[int, list[Problem]]:
    """How many samples have the id of an earlier one, and the first of them by name.

    Compares 64 bits of each id, which takes 16 bytes a sample, and then the ids themselves where these agree.
    """
    hashes = np.concatenate([findings.id_hashes for findings in found] or [np.empty(0, np.uint64)])
    in_order = np.sort(hashes)
    twice = in_order[1:][in_order[1:] == in_order[:-1]]
    if not len(twice):
        return 0, []
    places = np.flatnonzero(np.isin(hashes, np.unique(twice)[:KEPT]))
    ends = list(accumulate(len(findings.id_hashes) for findings in found))
    shards = np.searchsorted(ends, places, side="right")
    where: dict[str, list[str]] = {}
    for shard in np.unique(shards):
        ids = sample_ids(jobs[shard])
        for place in places[shards == shard]:
            row = int(place) - (ends[shard] - len(found[shard].id_hashes))
            where.setdefault(ids[row], []).append(f"{jobs[shard].file} sample {row}")
    problems = [
        Problem(
            kind="duplicate",
            shard=places[1].partition(" ")[0],
            sample=printable(name),
            detail=f"the id of {len(places)} samples: {', '.join(places[:4])}",
        )
        for name, places in where.items()
        if len(places) > 1
    ]
    return len(twice), problems


def _line(problem: Problem) -> str:
    places = [problem.shard, problem.place, f"sample {problem.sample}" if problem.sample else ""]
    return f"{', '.join(filter(None, places))}: {problem.detail}".removeprefix(": ")
