"""Asks the questions of an evaluation: one engine in this process, or several as Ray actors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from rl.config import EvalConfig
from rl.rollout.calls import Request
from rl.types import Responses

Answer = Callable[[Sequence[Request]], Iterator[tuple[int, Responses]]]
"""Yields the numbers of requests and their responses as they finish."""


@contextmanager
def start_engines(config: EvalConfig) -> Iterator[Answer]:
    """Yields the function that asks the engines; ends them at the end of the block.

    With several, each takes a question as soon as it has room, and one that dies is replaced.
    """
    if config.engine.num_engines == 1:
        from rl.rollout.engine import Engine

        with closing(Engine(config)) as engine:
            yield engine.answer
        return
    from data_pipeline.ray_session import start_ray, stop_ray
    from rl.placement.engines import build_engine_calls
    from rl.placement.places import Placement
    from rl.rollout.manager import RolloutManager

    start_ray()
    try:
        placement = Placement(config)
        print(placement.plan.describe(), flush=True)
        with closing(RolloutManager(build_engine_calls(config, placement), config.engine)) as manager:
            yield manager.answer
    finally:
        stop_ray()
