"""Decides when too many engines have died for the run to go on."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.failures import RankError
from rl.rollout.calls import EngineDied
from rl.rollout.members import Job

MAX_DEATHS = 3
"""Engines that may die one after another, without an answer or an update between them, or with the same prompt. Where
there are more engines, each may die once without an answer, as a node is lost with all of its engines."""


class Deaths:
    """Counts deaths without an answer or an update between them, and those with the same prompt."""

    def __init__(self, num_engines: int) -> None:
        self.last = EngineDied("no engine has the current weights")
        self._allowed = max(MAX_DEATHS, num_engines)
        self._count = 0

    def forget(self) -> None:
        """Begins anew: an engine has answered, or got weights."""
        self._count = 0

    def add(self, jobs: Sequence[Job], doing: str, error: EngineDied) -> None:
        """Counts an engine that died with these jobs.

        Raises:
            RankError: there were too many; says what the last one was doing, and how it died.
        """
        self.last = error
        self._count += 1
        for job in jobs:
            job.deaths += 1
        with_one = max((job.deaths for job in jobs), default=0)
        if self._count <= self._allowed and with_one <= MAX_DEATHS:
            return
        many = (
            f"{self._count} engines died one after another, allowed {self._allowed}"
            if self._count > self._allowed
            else f"{with_one} engines died with the same prompt, allowed {MAX_DEATHS}"
        )
        raise RankError(
            f"{many}; the last {doing} ({error}). If memory ran out, lower engine.max_num_seqs, "
            "engine.gpu_memory_utilization or engine.cpu_kv_cache_gib"
        ) from error
