"""A user's own reward function, FILE.py:FUNCTION: found, loaded, tried, and kept with the run.

The file is the user's own code, like the command that names it; nothing else is loaded so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import sys
from pathlib import Path

from data_pipeline.files import atomic_writer
from data_pipeline.types import SampleRef
from data_pipeline.verify.check import check_answer
from rl.rewards.compute import to_value
from rl.rewards.config import RewardConfig, is_own, part_name
from rl.rewards.inputs import RewardFunction, RewardInput
from rl.types import Prompt

log = logging.getLogger(__name__)

CODE = Path(__file__).parents[2]
"""The checkout of this code; `omr launch` packs it with all new files."""

_RESPONSE = "<think>2 and 3 are 5.</think><answer>5</answer>"
EXAMPLE = RewardInput(
    prompt=Prompt(ref=SampleRef(id="example", shard="", offset=0, size=0), question="2 + 3?", answer="5"),
    response=_RESPONSE,
    response_len=16,
    finish_reason="stop",
    verdict=check_answer(_RESPONSE, "5"),
    max_tokens=1_024,
)
"""The response on which a function is tried before anything starts."""


def find_file(name: str) -> Path:
    """Returns the file of FILE.py:FUNCTION, from the current folder or, where it is not there, from this checkout.

    Raises:
        ValueError: it is in neither.
    """
    file = Path(name.rpartition(":")[0]).expanduser()
    for path in (file, CODE / file):
        if path.is_file():
            return path.absolute()
    raise ValueError(f"reward.weights: {name}: there is no file {file.absolute()}, and none in {CODE}")


def load_own(name: str) -> RewardFunction:
    """Returns the function of FILE.py:FUNCTION, which has been tried on an example.

    Raises:
        ValueError: there is no such file or function, or the example gives no finite number.
    """
    path = find_file(name)
    module_name = f"omr_reward_{_digest(path.read_bytes())}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"reward.weights: {path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    function: RewardFunction | None = getattr(module, part_name(name), None)
    if not callable(function):
        found = "is no function" if hasattr(module, part_name(name)) else "is not there"
        raise ValueError(f"reward.weights: {name}: {part_name(name)} {found} in {path}")
    try:
        to_value(function(EXAMPLE))
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"reward.weights: {name} fails on the response {_RESPONSE!r}: {type(error).__name__}: {error}"
        ) from error
    return function


def save_own(config: RewardConfig, run: Path) -> None:
    """Copies the files of the user's functions to RUN/rewards; a name holds the file's sum, so that none is lost."""
    for name in (name for name, _ in config.weights if is_own(name)):
        content = find_file(name).read_bytes()
        path = run / "rewards" / f"{part_name(name)}-{_digest(content)}.py"
        if path.exists():
            continue
        if any(path.parent.glob(f"{part_name(name)}-*.py")):
            log.warning(f"{name} has changed since this run began; {path} is its new file")
        with atomic_writer(path) as file:
            file.write(content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
