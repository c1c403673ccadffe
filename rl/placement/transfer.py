"""Brings the trainer's weights to engines that are Ray actors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ray
from ray.actor import ActorHandle

from rl.placement.actors import take_reply
from rl.rollout.manager import EngineDied
from rl.weight_sync.manifest import WeightManifest


class WeightTransfer:
    """Sends each version once; engines that ask for it later read what was sent."""

    def __init__(self, send: Callable[[int], WeightManifest]) -> None:
        """Takes TrainerGroup.send_weights."""
        self._send = send
        self._sent: WeightManifest | None = None

    def update(self, engines: Sequence[ActorHandle], version: int) -> list[EngineDied | None]:
        """Gives these engines the weights of `version`; returns for each None, or how it died.

        Raises:
            WeightError: an engine refused the weights.
        """
        if self._sent is None or self._sent.version != version:
            self._sent = self._send(version)
        replies = [engine.update_weights.remote(self._sent) for engine in engines]
        return [_outcome(reply) for reply in replies]


def _outcome(reply: ray.ObjectRef) -> EngineDied | None:
    try:
        take_reply(reply)
    except EngineDied as died:
        return died
    return None
