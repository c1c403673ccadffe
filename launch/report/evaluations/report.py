"""What `omr report EVAL` does: reads evaluations, cuts their responses at budgets, writes page and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from data_pipeline.encode.chat_format import ChatFormat
from data_pipeline.files import write_json
from data_pipeline.tables import text_table
from data_pipeline.verify.config import CheckerConfig
from data_pipeline.verify.pool import VerifyPool
from launch.report.evaluations.page import write_evaluation_page
from rl.results.budgets import Sweep, choose_evaluations, sweep_budgets
from rl.results.stored import StoredEvaluation, load_evaluations
from rl.results.units import choose_metric

BUDGETS = "budgets.json"


def report_evaluation(folder: Path, budgets: Sequence[int], model: Path | None, seed: int) -> Path:
    """Writes folder/report.html, with budgets also folder/budgets.json; prints the sweep and returns the page's path.

    Raises:
        ValueError: as load_evaluations() and choose_evaluations(), or there is no tokenizer to cut with.
    """
    evaluations, notes = load_evaluations(folder), list[str]()
    sweeps: dict[str, Sweep] = {}
    if budgets:
        chosen = choose_evaluations(evaluations, budgets, notes)
        sweeps = {name: _sweep(each, budgets, model, notes, seed) for name, each in chosen.items()}
        write_json(folder / BUDGETS, {name: asdict(sweep) for name, sweep in sweeps.items()})
        print("\n".join([_describe(sweeps), *notes]))
    return write_evaluation_page(folder, evaluations, sweeps, notes, seed)


def _sweep(
    evaluation: StoredEvaluation, budgets: Sequence[int], model: Path | None, notes: list[str], seed: int
) -> Sweep:
    """Cuts with the tokenizer of the model that was evaluated, and checks as the evaluation did."""
    folder = model or Path(str(evaluation.config.get("model", "")))
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"--budgets needs a tokenizer, and {folder} has none; give the model's folder with --model"
        )
    mode = evaluation.settings.get("reward.checker.mode", "strict")
    deadline = evaluation.settings.get("reward.checker.deadline")
    config = CheckerConfig(
        mode="released" if mode == "released" else "strict",
        deadline=float(deadline) if isinstance(deadline, int | float) else CheckerConfig.deadline,
    )
    metric = choose_metric([evaluation], notes)
    with VerifyPool(config) as pool:
        return sweep_budgets(
            evaluation, budgets, ChatFormat.from_hf(folder), pool.check_many, metric, seed=seed
        )


def _describe(sweeps: dict[str, Sweep]) -> str:
    rows = [
        [
            name,
            f"{point.budget:,}",
            f"{point.score.accuracy:.1%}",
            f"{100 * point.score.ci95[0]:.1f} to {100 * point.score.ci95[1]:.1f}",
            f"{point.mean_tokens:,.0f}",
            f"{point.truncated:.1%}",
        ]
        for name, sweep in sweeps.items()
        for point in sweep.points
    ]
    return text_table(["", "limit", "accuracy", "95% CI", "mean tokens", "truncated"], rows)
