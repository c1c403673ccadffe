"""Rewards from the command line, and what is refused at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.served.config import JudgeConfig
from launch.arguments import recipes, run
from megatron_omr.train.run_folder import save_config
from rl.config import EvalConfig, RLConfig, SamplingConfig
from rl.rewards.config import RewardConfig

JUDGE = JudgeConfig(base_url="http://host/v1", model="m")


def parse(*words: str) -> RLConfig:
    seen: list[RLConfig] = []

    def command(config: RLConfig) -> None:
        seen.append(config)

    group = recipes(command, {"own": lambda: RLConfig(run="r", model="m", shards="s")})
    run(group, ["own", *(f"--config.{word[2:]}" if word.startswith("--") else word for word in words)])
    return seen[0]


def test_weights_on_the_command_line_are_pairs_of_any_number():
    reward = parse(
        *["--reward.weights", "accuracy", "0.9", "format", "0.1", "mine.py:shortness", "0.2"]
    ).reward
    assert reward.weights == (("accuracy", 0.9), ("format", 0.1), ("mine.py:shortness", 0.2))
    assert reward.names == ("accuracy", "format", "shortness")


def weights(*pairs: tuple[str, float]) -> dict[str, Sequence[tuple[str, float]]]:
    return {"weights": pairs}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (weights(), "weights is empty; give functions and weights: accuracy 0.9 format 0.1"),
        (weights(("accuracy", 1), ("format", -0.1)), "format has the weight -0.1, which must be 0 or more"),
        (weights(("accuracy", float("nan"))), "accuracy has the weight nan"),
        (weights(("accuracy", float("inf"))), "accuracy has the weight inf"),
        (weights(("accuracy", 0)), "all 0, so nothing is learned"),
        (weights(("accuracy", 1), ("accuracy", 2)), "holds accuracy 2 times"),
        (weights(("format", 1), ("mine.py:format", 2)), "holds format 2 times"),
        (weights(("accuracy_", 1)), "no function 'accuracy_'; did you mean 'accuracy'? there are accuracy, format"),
        (weights(("mine.py", 1)), "no function 'mine.py'; there are .* your own as FILE.py:FUNCTION"),
        (weights(("mine.py:", 1)), "mine.py: must be FILE.py:FUNCTION"),
        (weights(("mine.py:errors", 1)), "and not errors or timeouts"),
        ({"correct_by": "box_iou"}, "correct_by=box_iou must be accuracy or a function of .*: accuracy, format"),
        ({"correct_by": "format"}, "takes the place of the answer checker; leave accuracy out"),
        ({"overlong_buffer": 64}, "overlong_buffer=64 is of overlong, which reward.weights does not hold"),
        ({"use_judge": True}, "use_judge needs reward.judge.base_url"),
        ({"judge": JUDGE}, "base_url=http://host/v1 is not used without reward.use_judge"),
        ({"max_errors": -1}, "reward.max_errors=-1 must be at least 0"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_the_fix(fields: dict[str, object], words: str):
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        RewardConfig(**fields)  # pyright: ignore


@pytest.mark.parametrize("buffer", [0, 100, None])
def test_overlong_falls_within_what_a_response_may_have(buffer: int | None):
    reward = RewardConfig(weights=(("accuracy", 1.0), ("overlong", 1.0)), overlong_buffer=buffer)
    named = rf"overlong_buffer={reward.buffer} must be between 1 and 99, below sampling.max_tokens=100"
    sampling = SamplingConfig(max_tokens=100)
    with pytest.raises(ValueError, match=named):
        RLConfig(run="r", model="m", shards="s", reward=reward, sampling=sampling)
    with pytest.raises(ValueError, match=named):
        EvalConfig(model="m", shards="s", out="o", reward=reward, sampling=sampling)


def test_the_reward_is_said_in_a_line():
    assert RewardConfig().describe() == (
        "reward: 0.9 accuracy + 0.1 format; right by the strict checker, no judge"
    )
    judged = RewardConfig(use_judge=True, judge=JUDGE).describe()
    assert re.search("strict checker, then the judge$", judged)


def test_resumed_run_may_find_the_judge_elsewhere_but_not_leave_it_out_or_take_another(tmp_path: Path):
    begun = RLConfig(run="r", model="m", shards="s", reward=RewardConfig(use_judge=True, judge=JUDGE))
    save_config(begun, tmp_path, resumes=False)
    moved = replace(JUDGE, base_url="http://other/v1", concurrency=8, when_down="count")
    save_config(replace(begun, reward=replace(begun.reward, judge=moved)), tmp_path, resumes=True)
    with pytest.raises(ValueError, match="reward.use_judge was True, is False"):
        save_config(replace(begun, reward=RewardConfig()), tmp_path, resumes=True)
    another = replace(begun.reward, judge=replace(JUDGE, model="weaker"))
    with pytest.raises(ValueError, match="reward.judge.model was 'm', is 'weaker'"):
        save_config(replace(begun, reward=another), tmp_path, resumes=True)
