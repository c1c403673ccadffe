"""A user's own reward: found, tried at once, and kept with the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.rewards.config import RewardConfig
from rl.rewards.own import save_own
from rl.rewards.registry import load_functions
from tests.helpers.rewards import make_input

GOOD = """
from dataclasses import dataclass

@dataclass
class Limit:
    most: float = 10

def shortness(given):
    return max(0, 1 - given.response_len / Limit().most)
"""


def own(name: str) -> RewardConfig:
    return RewardConfig(weights=(("accuracy", 1.0), (name, 0.5)))


def test_function_of_a_file_is_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    for name in ("mine.py:shortness", f"{tmp_path}/mine.py:shortness", "./mine.py:shortness"):
        functions = load_functions(own(name))
        assert list(functions) == ["accuracy", "shortness"]
        assert functions["shortness"](make_input(response_len=4)) == 0.6


def test_file_that_is_not_here_is_looked_for_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # as a job of `omr launch`, whose code is elsewhere
    assert "shortness" in load_functions(own("docs/example_reward.py:shortness"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no file .*mine.py, and none in "),
        ("def shortness(:", "cannot be imported: SyntaxError"),
        ("import no_such_module", "cannot be imported: ModuleNotFoundError.*no_such_module"),
        ("raise SystemExit(0)", "cannot be imported: SystemExit"),
        ("x = 1", "shortness is not there in .*mine.py"),
        ("shortness = 1", "shortness is no function in .*mine.py"),
        ("def shortness(): return 1", "fails on the response .*TypeError.*takes 0 positional"),
        ("def shortness(given): return given.tokens", "AttributeError.*'tokens'"),
        ("def shortness(given): pass", "returned NoneType instead of a number"),
        ("async def shortness(given): return 1", "returned coroutine instead of a number"),
        ("def shortness(given): return float('nan')", "returned nan, which is not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
def test_what_cannot_work_is_said_at_once(text: str | None, words: str, tmp_path: Path):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=rf"reward.weights: .*{words}"):
        load_functions(own(f"{tmp_path}/mine.py:shortness"))


def test_file_is_kept_with_the_run_each_version_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file, run = tmp_path / "mine.py", tmp_path / "run"
    for text in (GOOD, GOOD, GOOD + "# better\n"):
        file.write_text(text)
        save_own(own(f"{file}:shortness"), run)
    kept = {path.read_text() for path in (run / "rewards").glob("shortness-*.py")}
    assert kept == {GOOD, GOOD + "# better\n"}
    (said,) = caplog.messages
    assert "has changed since this run began" in said
