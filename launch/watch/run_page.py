"""The page of one run, in parts: state, warnings, engines, curves, answers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from threading import Lock

from launch.report.axes import format_number, format_seconds, format_span
from launch.report.curves import VALIDATION_LOSS, draw_curve
from launch.report.page import Section, ShownImage, Tile, build_environment, png_image
from launch.report.sections import (
    IDLE,
    MFU,
    RL_TOKENS,
    TOKENS,
    draw_phases,
    make_card,
    make_section,
    rl_section,
    sft_section,
    updates_section,
)
from launch.watch.feed import RunFeed
from launch.watch.parts import Parts
from launch.watch.progress import Progress, judge
from launch.watch.records import EngineStatus, PlacedGroup, Snapshot
from launch.watch.signs import find_signs, mismatch_limits

ENVIRONMENT = build_environment(Path(__file__).parent / "templates")
MIN_POLL = 0.5
"""Seconds between two looks at the files, however many pages ask."""
MIN_REDRAW = 1.0
REDRAW_SHARE = 20
"""Drawing the curves takes at most one part in so many of the time."""
MAX_ENGINES = 48
"""Engines that are listed; of more, those that do not work first."""
ORDER = ("lost", "starting", "updating", "idle", "generating")


class RunPage:
    """A run's page, brought up to date when it is asked for; any thread may ask."""

    def __init__(self, folder: Path, name: str) -> None:
        self.feed = RunFeed(folder, name)
        self.parts = Parts()
        self.run = Snapshot(name=name)
        self.progress = judge(self.run, time.time())
        self._lock = Lock()
        self._polled = self._drawn = self._cost = float("-inf")
        self._drawn_changes = self._shown_changes = -1
        self._titles: list[str] = []  # of the sections with curves

    def look(self) -> None:
        """Reads what is new, for a card of the run: nothing is drawn."""
        with self._lock:
            self._read()

    def refresh(self) -> Parts:
        """Reads what is new, renders the parts that it changes, and returns all parts."""
        with self._lock:
            self._read()
            self._put_state()
            self._put_charts()
            self._put_answers()
            answers = ["Latest answers"] if self.run.groups else []
            engines = ["Engines"] if list_engines(self.run, self.progress) else []
            self._put("nav", titles=[*engines, *self._titles, *answers])
        return self.parts

    def render(self) -> str:
        """Returns the whole page."""
        revision, parts = self.refresh().since(-1)
        return ENVIRONMENT.get_template("run_page.html").render(
            title=parts["title"],
            name=self.run.name,
            folder=self.feed.folder,
            revision=revision,
            parts=parts,
            root="../../",
        )

    def find_image(self, step: int, sample: int, number: int) -> bytes | None:
        """Returns an image of a question that is shown, as a PNG file, by its place on the page."""
        with self._lock:
            ref = self.feed.find_ref(step, sample)
            images = (self.feed.images(ref) if ref else None) or ()
        return images[number] if 0 <= number < len(images) else None

    def _read(self) -> None:
        if time.monotonic() - self._polled < MIN_POLL:
            return
        self._polled = time.monotonic()
        self.feed.poll()
        self.run = self.feed.snapshot()
        self.progress = judge(self.run, time.time())

    def _put_state(self) -> None:
        """Renders what changes from second to second."""
        run, progress = self.run, self.progress
        total = f"/{run.steps}" if run.steps else ""
        self.parts.put("title", f"{run.name} · {progress.state} {run.steps_done}{total}")
        self._put(
            "state", run=run, progress=progress, lead=describe(run, progress), tiles=make_tiles(run, progress)
        )
        logged = run.status.warnings[::-1] if run.status else ()
        self._put("signs", signs=find_signs(run, progress), logged=logged)
        engines = run.status.engines if run.status else ()
        newest = max((each.version for each in engines if each.version is not None), default=None)
        shown, groups = list_engines(run, progress), describe_groups(run)
        self._put("engines", engines=shown, newest=newest, intro=describe_engines(engines), groups=groups)

    def _put_charts(self) -> None:
        now, changes, busy = time.monotonic(), self.feed.metrics_changes, time.thread_time()
        if changes == self._drawn_changes or now - self._drawn < max(MIN_REDRAW, REDRAW_SHARE * self._cost):
            return
        sections = [section for section in make_sections(self.run) if section.figures]
        self._put("charts", sections=sections)
        self._titles = [section.title for section in sections]
        self._drawn, self._drawn_changes, self._cost = now, changes, time.thread_time() - busy

    def _put_answers(self) -> None:
        if self.feed.groups_changes == self._shown_changes:
            return
        self._shown_changes = self.feed.groups_changes
        by_step = groupby(reversed(self.run.groups), key=lambda placed: placed.group.step)
        steps = [
            (step, [make_card(placed.group, self._images(placed)) for placed in reversed(list(members))])
            for step, members in by_step
        ]
        self._put("answers", steps=steps)

    def _images(self, placed: PlacedGroup) -> list[ShownImage]:
        ref = placed.group.ref
        images = self.feed.images(ref)
        if images is None:
            return [ShownImage("image", problem="not readable from its shard")]
        address = (
            f"image/{placed.group.step}/{placed.place}"  # the offset tells apart what a resumed run asks
        )
        return [png_image(data, address=f"{address}/{i}?{ref.offset}") for i, data in enumerate(images)]

    def _put(self, name: str, **values: object) -> None:
        self.parts.put(name, ENVIRONMENT.get_template(f"{name}.html").render(**values))


def describe(run: Snapshot, progress: Progress) -> str:
    """Returns what the run does, in a sentence."""
    age = format_seconds(progress.age)
    status = run.status
    match progress.state:
        case "waiting":
            return "Its folder has no files yet."
        case "done":
            return f"Done: {run.steps_done:,} steps. Last write {age} ago."
        case "failed" | "stopped" as ended:
            return f"It has {ended} after {run.steps_done:,} steps, {age} ago. The same command resumes it."
        case "stalled":
            return f"Nothing was written for {age}: the driver was killed, or hangs."
    if status is None:
        return f"Last write {age} ago."
    since = format_seconds(max(0.0, status.time - status.phase_since))
    phases = {"start": "Starting trainers and engines", "": "Between phases"}
    doing = phases.get(status.phase, f"Phase {status.phase}")
    return f"{doing} for {since}." if status.step < 0 else f"Step {status.step}. {doing} for {since}."


def make_tiles(run: Snapshot, progress: Progress) -> list[Tile]:
    """Returns the newest numbers."""
    if not run.recent:
        return []
    row = run.recent[-1][1]
    total = f"of {run.steps:,}" if run.steps else ""
    tiles = [Tile(f"{run.steps_done:,}", "steps done", total)]
    if run.is_rl:
        held_out = [each["held_out_accuracy"] for _, each in run.recent if "held_out_accuracy" in each]
        more = f"held out {held_out[-1]:.1%}" if held_out else "of training questions"
        tiles.append(
            Tile(format_number(row["reward"]) if "reward" in row else "–", "reward", "mean of the step")
        )
        tiles += [Tile(f"{row['reward_accuracy']:.1%}", "accuracy", more)] if "reward_accuracy" in row else []
    elif "loss" in row:
        held_out = run.metrics.points(VALIDATION_LOSS) if run.metrics else ()
        more = f"validation {format_number(held_out[-1][1])}" if held_out else "nats per response token"
        tiles.append(Tile(format_number(row["loss"]), "loss", more))
    if progress.step_seconds is not None:
        speed = f"{format_number(row['tokens_per_second'])} tokens/s" if "tokens_per_second" in row else ""
        tiles.append(Tile(format_seconds(progress.step_seconds), "a step", speed))
    if progress.eta is not None:
        tiles.append(Tile(format_span(progress.eta), "to go", "at the speed of the last steps"))
    return tiles


def make_sections(run: Snapshot) -> list[Section]:
    """Returns the curves of a run of RL or of SFT."""
    metrics = run.metrics
    if not run.is_rl:
        speed = [draw_curve(TOKENS, metrics, "sft"), draw_curve(MFU, metrics, "sft")]
        return [sft_section(metrics), make_section("Speed", "", speed)]
    speed = [draw_phases(metrics), *(draw_curve(curve, metrics, "rl") for curve in (RL_TOKENS, IDLE))]
    return [
        rl_section(metrics),
        updates_section(metrics, mismatch_limits(run)),
        make_section("Speed", "Where the time goes.", speed),
    ]


def list_engines(run: Snapshot, progress: Progress) -> list[EngineStatus]:
    """Returns the engines that are listed: all, or of many those that do not work first; none of an ended run."""
    engines = run.status.engines if run.status else ()
    if progress.state in ("stopped", "failed", "done"):
        return []
    if len(engines) <= MAX_ENGINES:
        return list(engines)
    place = {state: number for number, state in enumerate(ORDER)}
    return sorted(engines, key=lambda each: (place.get(each.state, len(ORDER)), each.number))[:MAX_ENGINES]


def describe_engines(engines: Sequence[EngineStatus]) -> str:
    """Returns how many engines are in which state, and what they do together."""
    counts = Counter(each.state for each in engines)
    states = ", ".join(f"{counts[state]:,} {state}" for state in ORDER[::-1] if counts[state])
    speed = format_number(sum(each.tokens_per_second for each in engines))
    running = sum(each.running for each in engines)
    rest = f" {MAX_ENGINES} of {len(engines):,} are listed." if len(engines) > MAX_ENGINES else ""
    return f"{states}; {running:,} responses run, {speed} tokens/s together.{rest}"


def describe_groups(run: Snapshot) -> str:
    """Returns how many groups a mode that asks ahead has."""
    groups = run.status.groups if run.status else {}
    return ", ".join(f"{count:,} {name}" for name, count in groups.items())
