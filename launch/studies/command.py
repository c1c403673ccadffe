"""`omr study`: a study of the paper at the demo's size."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from tyro.conf import Suppress

from launch.arguments import FLAT, Command, CommandGroup
from launch.studies.config import StudyConfig
from launch.studies.recipes import STUDIES


def run_named(config: Annotated[StudyConfig, FLAT], *, name: Suppress[str]) -> None:
    """Run an ablation of the paper at the demo's size, and print its table beside the paper's: omr study NAME.

    Every cell runs at each seed, and the table says how far it is from the first, with an interval over seeds
    and questions; a sentence says whether the paper's direction shows at this size. Studies of one folder share data,
    teachers, base models and cells, and the same command continues. Results are in OUT/NAME/; see docs/studies.md.

    Examples:
      omr study answer_diversity
      omr study temperature --dry_run
      omr study rollouts --seeds 42 7 11 23 5
      omr study algorithms --only gspo grpo
      omr study curriculum --on mine
    """
    from launch.studies.run import run_study

    run_study(name, config)


def _commands() -> dict[str, Command]:
    bound: dict[str, Command] = {}
    for name, study in STUDIES.items():
        bound[name] = partial(run_named, name=name)
        bound[name].__doc__ = f"{study.summary} About {study.minutes} minutes.\n\nThe paper: {study.finding}"
    return bound


STUDY = CommandGroup(doc=run_named.__doc__ or "", commands=_commands(), kind="study")
