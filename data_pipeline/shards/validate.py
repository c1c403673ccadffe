"""Checks a folder of shards: its index, its shards one by one, and ids that occur twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from itertools import accumulate
from pathlib import Path

import numpy as np

from data_pipeline.files import to_json
from data_pipeline.parts import run_parts
from data_pipeline.shards.check_sample import KEPT, Findings, Problem, printable
from data_pipeline.shards.check_shard import ShardJob, check_shard, sample_ids
from data_pipeline.shards.config import ValidateConfig
from data_pipeline.shards.index import INDEX, MIXTURE, Shard, ShardIndex, rows_path

SHOWN = 5
"""Problems of a kind that are printed; --json has more."""
_LEFTOVERS = ("*.partial", "part-*.json", "part-*.lock", "import_report-*.json")


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """Numbers and problems of a folder."""

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
        lines = [f"{self.folder}: {found}", *(["nothing is broken"] if self.ok else [])]
        for kind, count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0])):
            first = [problem for problem in self.problems if problem.kind == kind][:SHOWN]
            lines += [f"{kind}: {count:,}", *(f"  {_line(problem)}" for problem in first)]
            lines += [f"  ... and {count - len(first):,} more"] if count > len(first) else []
        return lines

    @property
    def json(self) -> str:
        return to_json(asdict(self), indent=1)


def validate(config: ValidateConfig) -> ValidationReport:
    """Checks a folder of shards, or all of a local mixture; reports broken data, raises ValueError without a folder."""
    folder = Path(config.shards)
    if not folder.is_dir():
        raise ValueError(f"shards={folder} is not a folder; give one of .tar shards")
    if config.model and not config.quick:
        from data_pipeline.encode.limits import load_limits

        load_limits(config)  # finds a wrong folder before any shard is read
    listed, problems = _read_index(folder)
    if listed is None:
        tars = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tar"))
        shards = [(tar, None) for tar in tars]
    else:
        shards = [(shard.file, shard) for shard in listed]
    if not shards and not problems:
        problems.append(Problem(kind="empty", detail="the folder holds no shard"))
    jobs = [
        ShardJob(
            folder=folder, file=file, listed=shard, quick=config.quick, images=config.images, limits=config
        )
        for file, shard in shards
    ]
    found = run_parts(check_shard, jobs, work=config.work, desc="validate")
    counts = Counter(problem.kind for problem in problems)
    for findings in found:
        counts += findings.counts
        problems += findings.problems
    num_repeated, repeated = _find_repeated_ids(jobs, found)
    counts += Counter({"duplicate": num_repeated})
    return ValidationReport(
        folder=str(folder),
        has_index=listed is not None,
        shards=len(jobs),
        samples=sum(findings.samples for findings in found),
        images=sum(findings.images for findings in found),
        counts=dict(counts),
        problems=(*problems, *repeated),
    )


def _read_index(folder: Path) -> tuple[Sequence[Shard] | None, list[Problem]]:
    """Returns the index's shards, None without a readable index; and problems of the folder around them."""
    names = sorted(path.name for path in folder.iterdir())
    leftovers = [name for name in names if any(fnmatch(name, pattern) for pattern in _LEFTOVERS)]
    rows = {name for name in names if fnmatch(name, "shard-*.index.json")}
    detail = "of a write that did not end"
    problems = [Problem(kind="leftover", shard=printable(name), detail=detail) for name in leftovers]
    if not {INDEX, MIXTURE} & set(names):
        if rows or any(fnmatch(name, "part-*.json") for name in names):
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
        if name not in known and (name.endswith(".tar") or name in rows):
            problems.append(Problem(kind="extra-shard", shard=printable(name), detail="not in the index"))
    return shards, problems


def _find_repeated_ids(jobs: Sequence[ShardJob], found: Sequence[Findings]) -> tuple[int, list[Problem]]:
    """Returns how many samples have the id of an earlier one, and the first of these ids.

    Compares 64 bits of each id, which takes 16 bytes a sample, then the ids themselves where these agree.
    """
    hashes = np.concatenate([findings.id_hashes for findings in found] or [np.empty(0, np.uint64)])
    in_order = np.sort(hashes)
    repeated = in_order[1:][in_order[1:] == in_order[:-1]]
    if not len(repeated):
        return 0, []
    numbers = np.flatnonzero(np.isin(hashes, np.unique(repeated)[:KEPT]))
    ends = list(accumulate(len(findings.id_hashes) for findings in found))
    shards = np.searchsorted(ends, numbers, side="right")
    places: dict[str, list[tuple[str, int]]] = {}  # id -> shard and row of each sample
    for shard in np.unique(shards):
        ids = sample_ids(jobs[shard])
        for number in numbers[shards == shard]:
            row = int(number) - (ends[shard] - len(found[shard].id_hashes))
            places.setdefault(ids[row], []).append((jobs[shard].file, row))
    problems = [
        Problem(
            kind="duplicate",
            shard=rows[1][0],
            sample=printable(name),
            detail=f"the id of {len(rows)} samples: {', '.join(f'{file} sample {row}' for file, row in rows[:4])}",
        )
        for name, rows in places.items()
        if len(rows) > 1
    ]
    return len(repeated), problems


def _line(problem: Problem) -> str:
    places = [problem.shard, problem.place, f"sample {problem.sample}" if problem.sample else ""]
    return f"{', '.join(filter(None, places))}: {problem.detail}".removeprefix(": ")
