"""The first page: a card for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock

from markupsafe import Markup

from launch.config import RL_STAGES
from launch.report.axes import Scale, format_number, format_seconds
from launch.report.compare import name_runs
from launch.report.lines import smooth, thin
from launch.watch.parts import Parts
from launch.watch.run_page import ENVIRONMENT, RunPage, describe

STAGES = ("sft", *RL_STAGES)
SPARK_WIDTH, SPARK_HEIGHT = 280, 48
FILES = ("config.json", "metrics.jsonl", "status.json")


class IndexPage:
    """The runs of the given folders, which may come later; a demo's folder stands for each of its runs."""

    def __init__(self, given: Sequence[Path]) -> None:
        folders = [path.absolute() for path in given]
        self._given = dict(zip(folders, name_runs(folders), strict=True))
        self._runs: dict[Path, tuple[int, RunPage]] = {}  # with the number in the address
        self._parts = Parts()
        self._lock = Lock()

    def runs(self) -> dict[int, RunPage]:
        """Returns the runs that are there now, by number, in the order in which they were given."""
        with self._lock:
            for folder, name in list_runs(self._given):
                if folder not in self._runs:
                    self._runs[folder] = (len(self._runs), RunPage(folder, name))
            return dict(self._runs[folder] for folder, _ in list_runs(self._given) if folder in self._runs)

    def find_run(self, number: int) -> RunPage | None:
        """Returns a run by its number, also one that is there no more."""
        self.runs()
        with self._lock:
            return next((page for at, page in self._runs.values() if at == number), None)

    def refresh(self) -> Parts:
        """Brings all runs up to date and returns the parts of this page."""
        cards = []
        for number, page in self.runs().items():
            page.look()
            cards.append(make_card(number, page))
        going = sum(page.progress.state == "running" for page in self.runs().values())
        self._parts.put("title", f"{going} of {len(cards)} running · omr watch")
        self._parts.put("runs", ENVIRONMENT.get_template("runs.html").render(cards=cards))
        return self._parts

    def render(self) -> str:
        """Returns the whole page."""
        revision, parts = self.refresh().since(-1)
        return ENVIRONMENT.get_template("index_page.html").render(
            title=parts["title"], revision=revision, parts=parts, root=""
        )


def make_card(number: int, page: RunPage) -> dict[str, object]:
    """Returns what the template shows of a run."""
    run, progress = page.run, page.progress
    row = run.recent[-1][1] if run.recent else {}
    names = (
        {"reward": "reward", "reward_accuracy": "accuracy", "loss": "loss"} if run.is_rl else {"loss": "loss"}
    )
    return {
        "number": number,
        "run": run,
        "progress": progress,
        "lead": describe(run, progress),
        "kind": "reinforcement learning" if run.is_rl else "fine-tuning" if run.recent or run.config else "",
        "speed": format_seconds(progress.step_seconds) if progress.step_seconds is not None else "",
        "eta": format_seconds(progress.eta) if progress.eta is not None else "",
        "numbers": [f"{name} {format_number(row[key])}" for key, name in names.items() if key in row],
        "spark": draw_spark(page),
    }


def list_runs(given: Mapping[Path, str]) -> list[tuple[Path, str]]:
    """Returns folder and name of each run; a folder in which there is none yet stands for itself."""
    found: list[tuple[Path, str]] = []
    for folder, name in given.items():
        stages = [] if is_run(folder) else [stage for stage in STAGES if is_run(folder / stage)]
        found += [(folder / stage, f"{name}/{stage}") for stage in stages] or [(folder, name)]
    return found


def is_run(folder: Path) -> bool:
    """Returns whether there are files of a run in this folder itself."""
    return any((folder / name).is_file() for name in FILES)


def draw_spark(page: RunPage) -> Markup:
    """Draws the reward or the loss of a run as a small line; nothing of less than two steps."""
    metrics = page.run.metrics
    points = metrics.points("reward" if page.run.is_rl else "loss") if metrics else ()
    if len(points) < 2:
        return Markup()
    points = thin(smooth(points), 80)
    values = [value for _, value in points]
    low, high = min(values), max(values)
    x = Scale(low=points[0][0], high=points[-1][0], start=2, end=SPARK_WIDTH - 2)
    y = Scale(low=low, high=high if high > low else low + 1, start=SPARK_HEIGHT - 4, end=4)
    places = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
    box = f'viewBox="0 0 {SPARK_WIDTH} {SPARK_HEIGHT}" preserveAspectRatio="none" aria-hidden="true"'
    return Markup(f'<svg class="spark" {box}><path class="smooth c0" d="M{places}"/></svg>')
