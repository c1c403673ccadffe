"""Runs a study, as one page: what cells share, then every cell at every seed, then the table."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from launch.arguments import pick
from launch.studies.config import StudyConfig
from launch.studies.lab import Lab
from launch.studies.recipes import STUDIES
from launch.studies.study import Cell, Study


def run_study(name: str, config: StudyConfig) -> None:
    """Runs what is not done of the study's cells, and prints its table beside the paper's.

    Raises:
        ValueError: `config.only` names a cell that the study lacks, or the folder holds studies of other sizes.
    """
    study = STUDIES[name]
    tasks = [(cell, seed) for seed in config.seeds for cell in choose_cells(study, config.only)]
    lab = Lab(config)
    if config.on and not config.dry_run:
        run_side_by_side(lab, tasks)
    else:
        for cell, seed in tasks:
            lab.share(cell, seed)
            lab.run(cell, seed)
    if not config.dry_run:
        from launch.studies.results import collect, write_results

        print(f"\n{write_results(name, study, lab, collect(study, lab))}\nin {lab.root / name}")


def choose_cells(study: Study, only: tuple[str, ...]) -> list[Cell]:
    """Returns the cells of these names, or all."""
    known = {cell.name: cell for cell in study.cells}
    return [pick("cell", known, name) for name in only] or list(study.cells)


def run_side_by_side(lab: Lab, tasks: list[tuple[Cell, int]]) -> None:
    """Makes what cells share, then submits all cells at once and waits for them; a failure is raised at the end."""
    for cell, seed in tasks:
        lab.share(cell, seed)
    with ThreadPoolExecutor(max_workers=len(tasks)) as pool:
        running = [pool.submit(lab.run, cell, seed) for cell, seed in tasks]
    for each in running:
        each.result()
