"""What a study found so far: OUT/NAME/results.json and table.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean

from data_pipeline.files import read_json, write_json
from data_pipeline.shards.index import ShardIndex
from data_pipeline.verify.record import read_responses
from launch.report.load import accuracy_by_id
from launch.studies.compare import Accuracies, Gain, compare_cells, describe, format_interval, judge
from launch.studies.lab import Lab
from launch.studies.study import Cell, Sft, Study
from launch.summary import find_versions
from rl.evaluation.answers import RESPONSES


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """A cell's evaluations that are done, and the paper's mean."""

    paper: float
    accuracy: dict[int, float]  # by seed
    tokens: dict[int, float]  # of a response, by seed
    mean_accuracy: float | None  # over the seeds; None without any
    mean_tokens: float | None
    samples: int | None
    """What a cell of SFT learns from; None of others, and where they were deleted."""
    against_baseline: Gain | None


@dataclass(frozen=True, kw_only=True)
class ClaimResult:
    """What became of a finding."""

    better: str
    worse: str
    paper: float
    gain: Gain
    verdict: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that a study has found."""

    cells: dict[str, CellResult]
    claims: tuple[ClaimResult, ...]


def collect(study: Study, lab: Lab) -> Results:
    """Reads the evaluations that are done, and compares them."""
    accuracies = {cell.name: _read_accuracies(lab, cell) for cell in study.cells}
    cells = {}
    for cell in study.cells:
        found = accuracies[cell.name]
        against = None if cell.name == study.baseline else compare_cells(found, accuracies[study.baseline])
        accuracy = {seed: fmean(by_id.values()) for seed, by_id in found.items()}
        tokens = {seed: _read_summary(lab, cell, seed)["length"]["mean"] for seed in found}
        cells[cell.name] = CellResult(
            paper=cell.paper_mean,
            accuracy=accuracy,
            tokens=tokens,
            mean_accuracy=fmean(accuracy.values()) if found else None,
            mean_tokens=fmean(tokens.values()) if found else None,
            samples=_count_samples(lab, cell) if found else None,
            against_baseline=against,
        )
    gains = [
        (claim, compare_cells(accuracies[claim.better], accuracies[claim.worse])) for claim in study.claims
    ]
    claims = [
        ClaimResult(
            better=claim.better,
            worse=claim.worse,
            paper=study.read_points(claim),
            gain=gain,
            verdict=judge(gain),
            sentence=describe(study, claim, gain),
        )
        for claim, gain in gains
        if gain is not None
    ]
    return Results(cells=cells, claims=tuple(claims))


def _read_accuracies(lab: Lab, cell: Cell) -> Accuracies:
    folders = {seed: lab.root / lab.evaluation(cell, seed) for seed in lab.find_done(cell)}
    return {seed: accuracy_by_id(read_responses(folder / RESPONSES)) for seed, folder in folders.items()}


def _count_samples(lab: Lab, cell: Cell) -> int | None:
    if not isinstance(cell.training, Sft) or not (folder := lab.root / lab.samples(cell)).exists():
        return None
    return sum(source.count for source in ShardIndex.load(folder).sources)


def _read_summary(lab: Lab, cell: Cell, seed: int) -> Mapping:
    return read_json(lab.root / lab.evaluation(cell, seed) / "summary.json")


def write_results(name: str, study: Study, lab: Lab, results: Results) -> str:
    """Writes the results to OUT/NAME; returns the text that stands there in table.md."""
    folder, text = lab.root / name, format_text(study, results)
    write_json(
        folder / "results.json",
        {
            "study": name,
            "finding": study.finding,
            "size": asdict(lab.size),
            **asdict(results),
            "versions": find_versions(),
        },
    )
    (folder / "table.md").write_text(text)
    return text


def format_text(study: Study, results: Results) -> str:
    """Returns the paper's finding, the table and the sentences, in Markdown."""
    baseline = study.cell(study.baseline).title
    lines = [
        f"The paper ({study.table.source}, means of {len(study.table.columns)} columns): {study.finding}",
        "",
        f"| cell | samples | held-out accuracy | seeds | against {baseline} | tokens | paper |",
        "|---|---|---|---|---|---|---|",
        *(_row(cell, results.cells[cell.name]) for cell in study.cells),
        "",
        *(claim.sentence for claim in results.claims),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(cell: Cell, found: CellResult) -> str:
    if found.mean_accuracy is None or found.mean_tokens is None:
        return f"| {cell.title} | | | | | | {found.paper:.1f} |"
    samples, gain = f"{found.samples:,}" if found.samples else "", found.against_baseline
    seeds = ", ".join(f"{seed}: {100 * accuracy:.1f}" for seed, accuracy in found.accuracy.items())
    against = f"{100 * gain.value:+.1f} {format_interval(gain.ci95)}" if gain else ""
    return (
        f"| {cell.title} | {samples} | {100 * found.mean_accuracy:.1f} % | {seeds} | {against} "
        f"| {found.mean_tokens:.1f} | {found.paper:.1f} |"
    )
