"""What a mode works with."""

from __future__ import annotations

from dataclasses import dataclass

from rl.config import RLConfig
from rl.held_out import HeldOut
from rl.learning import Learner
from rl.rewards.scorer import Scorer
from rl.rollout.manager import RolloutManager


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """The parts of a run, all of them started, and the checkpoint loaded."""

    config: RLConfig
    learner: Learner
    engines: RolloutManager
    scorer: Scorer
    held_out: HeldOut
