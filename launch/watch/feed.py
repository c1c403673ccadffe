"""Follows the files of one run: its config, metrics.jsonl, rollouts.jsonl and status.json. No HTML."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data_pipeline.types import SampleRef
from launch.report.compare import flatten, read_config
from launch.report.load import Metrics, RolloutGroup, load_metrics, load_thumbnails, parse_metrics
from launch.watch.bins import BinnedMetrics
from launch.watch.follow import LineFollower
from launch.watch.records import PlacedGroup, RunStatus, Snapshot

RECENT = 50
"""Steps whose own rows are kept, for rates and warnings."""
SHOWN_GROUPS = 6
ROLLOUTS_WINDOW = 16_000_000
"""Bytes at the end of rollouts.jsonl that are read: it may be of any size."""
MAX_IMAGES = 64
"""Samples whose images are kept."""
FILES = ("metrics.jsonl", "rollouts.jsonl", "status.json", "config.json")

_STATUS = TypeAdapter(RunStatus)


class RunFeed:
    """Reads what is new in a run's folder, which may not exist yet, begin anew or vanish."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.metrics_changes = 0  # counts, for whoever draws them
        self.groups_changes = 0
        self._metrics = LineFollower(folder / "metrics.jsonl")
        self._rollouts = LineFollower(folder / "rollouts.jsonl", window=ROLLOUTS_WINDOW)
        self._images: dict[tuple[str, int, str], tuple[bytes, ...] | None] = {}
        self._config: tuple[float, dict[str, object]] = (0.0, {})
        self._known: tuple[int, Metrics | None] = (-1, None)
        self._reset_metrics()
        self._groups = deque[PlacedGroup](maxlen=SHOWN_GROUPS)
        self._refs: dict[tuple[int, int], SampleRef] = {}  # by step and place

    def poll(self) -> None:
        """Reads what has been written since the last call."""
        self._poll_metrics()
        self._poll_rollouts()

    def snapshot(self) -> Snapshot:
        """Returns the run as far as poll() has read it, with its status as it is now."""
        return Snapshot(
            name=self.name,
            config=self._read_config(),
            metrics=self._means(),
            recent=tuple(self._recent),
            groups=tuple(self._groups),
            status=self._read_status(),
            written=max(_mtime(self.folder / name) for name in FILES),
            bad_lines=self._bad_lines,
        )

    def images(self, ref: SampleRef) -> tuple[bytes, ...] | None:
        """Returns the images of a question as PNG files; None where they cannot be read."""
        shards, key = self._config[1].get("shards"), (ref.shard, ref.offset, ref.id)
        if key not in self._images:
            _drop_oldest(self._images)
            self._images[key] = load_thumbnails(shards, ref) if isinstance(shards, str) else None
        return self._images[key]

    def find_ref(self, step: int, place: int) -> SampleRef | None:
        """Returns the question of a group that is, or was a moment ago, among the newest."""
        return self._refs.get((step, place))

    def _poll_metrics(self) -> None:
        begins, lines = self._metrics.poll()
        if begins:
            self._reset_metrics()
        is_ordered = True
        for line in lines:
            try:
                step, row = parse_metrics(line)
            except ValueError:
                self._bad_lines += 1
                continue
            is_ordered = is_ordered and (not self._recent or step > self._recent[-1][0])
            if is_ordered:
                self._binned.add(step, row)
                self._recent.append((step, row))
            self.metrics_changes += 1
        if not is_ordered:
            self._load_all_metrics()

    def _load_all_metrics(self) -> None:
        """Reads the whole file at once: a step that comes twice counts as its last, as in a report."""
        bad_lines = self._bad_lines
        self._reset_metrics()
        self._bad_lines = bad_lines
        found = load_metrics(self.folder, [])
        for step, row in found.rows if found else ():
            self._binned.add(step, row)
            self._recent.append((step, row))

    def _reset_metrics(self) -> None:
        self._binned, self._bad_lines = BinnedMetrics(), 0
        self._recent = deque[tuple[int, dict[str, float]]](maxlen=RECENT)
        self.metrics_changes += 1

    def _means(self) -> Metrics | None:
        if self._known[0] != self.metrics_changes:
            self._known = (self.metrics_changes, self._binned.metrics())
        return self._known[1]

    def _poll_rollouts(self) -> None:
        begins, lines = self._rollouts.poll()
        if begins:
            self._groups.clear()
            self.groups_changes += 1
        for line in lines:
            try:
                group = RolloutGroup.from_json(line)
            except ValueError:
                continue
            while self._groups and self._groups[-1].group.step > group.step:  # of a run that went back
                self._groups.pop()
            last = self._groups[-1] if self._groups else None
            place = last.place + 1 if last is not None and last.group.step == group.step else 0
            self._groups.append(PlacedGroup(place, group))
            _drop_oldest(self._refs)
            self._refs[group.step, place] = group.ref
            self.groups_changes += 1

    def _read_config(self) -> dict[str, object]:
        path = self.folder / "config.json"
        changed = _mtime(path)
        if changed != self._config[0]:
            self._config = (changed, dict(flatten(read_config(path, []))))
        return self._config[1]

    def _read_status(self) -> RunStatus | None:
        try:
            return _STATUS.validate_json((self.folder / "status.json").read_bytes())
        except (OSError, ValidationError):  # not there, or of another version
            return None


def _drop_oldest(kept: dict[Any, Any]) -> None:
    if len(kept) >= MAX_IMAGES:
        del kept[next(iter(kept))]


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
