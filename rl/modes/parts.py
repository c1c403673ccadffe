"""What a mode works with."""

from __future__ import annotations

from dataclasses import dataclass

from rl.config import RLConfig
from rl.held_out import HeldOut
from rl.learning import Learner
from rl.modes.status import StatusWriter
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
    status: StatusWriter

    def start_engines(self) -> None:
        """Gives the engines the weights of the checkpoint, and waits for them."""
        self.engines.update_weights(self.learner.first_step)
        self.engines.take_idle()  # that of their start

    def measure_engines(self) -> dict[str, float]:
        """Returns the metrics of the engines since the last call."""
        return self.engines.counts | {"seconds_engines_idle": self.engines.take_idle()}
