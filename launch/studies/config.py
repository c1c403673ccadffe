"""Config of `omr study` (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_pipeline.config import check_at_least


@dataclass(frozen=True, kw_only=True)
class SizeConfig:
    """How much everything trains. A folder of studies keeps the sizes that it began with."""

    train: int = 16_384
    """Worked questions of the base models and of the teachers: those of `omr demo`."""
    test: int = 512
    """Held-out questions."""
    base_steps: int = 400
    """Steps of SFT that make a base model, which every cell starts from: those of `omr demo`."""
    teacher_steps: int = 600
    """Further steps that make the strong teacher of the weak one, which has had base_steps."""
    questions: int = 1_024
    """Questions that teachers answer for the students."""
    sft_steps: int = 150
    """Steps of SFT in a cell, the same whatever the number of its samples."""
    rl_steps: int = 80
    """Steps of RL in a cell; its 32 questions a step are asked once."""

    def __post_init__(self) -> None:
        check_at_least(self, "size.", **dict.fromkeys(vars(self), 1))


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Cells of a study at several seeds."""

    out: str = "runs/studies"
    """Folder of all studies, which share data, teachers, base models and cells; the same folder resumes."""
    seeds: tuple[int, ...] = (42, 7, 11)
    """A seed decides the base model and everything that is trained from it. Data and teachers are the same."""
    only: tuple[str, ...] = ()
    """Cells to run now, by name; the table has all that are done."""
    on: str = ""
    """Cluster file of `omr launch`: cells run side by side as its jobs, once what they share is made here."""
    dry_run: bool = False
    """Print the commands of what is not done yet, and run none."""
    size: SizeConfig = field(default_factory=SizeConfig)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} must be one or more, all different, e.g. 42 7 11")
