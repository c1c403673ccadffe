"""Which ends of a call mean that an engine must be replaced, and which are its answer."""

from __future__ import annotations

from typing import Any, cast

import pytest
import ray
from ray.exceptions import LocalRayletDiedError, ObjectLostError, RayTaskError

from rl.placement.actors import take_reply
from rl.rollout.calls import EngineDied
from rl.weight_sync.layout import WeightError


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (ObjectLostError("0" * 28, b"", ""), EngineDied, "its reply was lost: ObjectLostError: Failed to"),
        (LocalRayletDiedError(), EngineDied, "its reply was lost: LocalRayletDiedError: "),
        (RayTaskError("collect", "lines", EngineDied("CUDA")), EngineDied, "^CUDA$"),
        (RayTaskError("update", "lines", WeightError("not all")), WeightError, "^not all$"),
        (RayTaskError("call", "lines", LookupError("a fault")), LookupError, "lines"),
    ],
)
def test_reply_that_is_lost_is_a_death(
    raised: Exception, expected: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(reply: object) -> Any:
        raise raised.as_instanceof_cause() if isinstance(raised, RayTaskError) else raised

    monkeypatch.setattr(ray, "get", get)  # Ray raises these where a node is lost
    with pytest.raises(expected, match=message):
        take_reply(cast(ray.ObjectRef, None))
