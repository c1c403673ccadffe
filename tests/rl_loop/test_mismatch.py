"""How far engine and trainer are apart: numbers by hand, the trend over steps, probes, and the evidence of a stop."""

from __future__ import annotations

import json
import logging
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.failures import RankError
from data_pipeline.types import SampleRef
from rl.config import EngineConfig
from rl.mismatch.evidence import evidence_folder, find_tensors, naming_tensors, write_samples
from rl.mismatch.measure import Compared, measure_mismatch
from rl.mismatch.watch import FAST, FEW, SLOW, EnginesDisagree, MismatchWatch
from rl.rollout.manager import RolloutManager
from rl.trainer_group import PROBE_GROUPS, PROBE_ROLLOUTS, choose_probes
from rl.types import TrainRollout
from rl.weight_sync.layout import WeightError
from tests.helpers.echo_engines import EchoEngines

VERSION = 5


def rollout(*spans: tuple[int, int], name: str = "a") -> TrainRollout:
    length = sum(count for _, count in spans)
    return TrainRollout(
        ref=SampleRef(id=name, shard="", offset=0, size=0),
        token_ids=np.arange(10, 10 + length, dtype=np.int32),
        logprobs=-np.ones(length, np.float32),
        versions=spans,
        advantage=1.0,
    )


def compare(own: TrainRollout, differences: list[float]) -> Compared:
    """Returns the rollout compared with a trainer whose logprobs are lower by these differences."""
    assert own.logprobs is not None
    logprobs = own.logprobs - np.array(differences, np.float32)
    return Compared(rollout=own, trainer_logprobs=logprobs, is_fresh=own.find_fresh(VERSION))


def test_metrics_by_hand_over_the_fresh_tokens_of_all_responses() -> None:
    """Three tokens of older weights, 9 apart, are measured by themselves."""
    compared = [
        compare(rollout((4, 2), (VERSION, 2)), [9.0, 9.0, 0.5, -0.25]),
        compare(rollout((VERSION, 1), (4, 1)), [0.0, -9.0]),
    ]
    metrics = measure_mismatch(compared)
    d = [0.5, -0.25, 0.0]
    assert metrics["mismatch_tokens"] == 3
    assert metrics["mismatch_mean"] == pytest.approx(0.25)
    assert metrics["mismatch_p50"] == pytest.approx(0.25)
    assert metrics["mismatch_p99"] == pytest.approx(0.25 + 0.98 * 0.25)
    assert metrics["mismatch_max"] == pytest.approx(0.5)
    assert metrics["mismatch_stale"] == pytest.approx(9)
    assert metrics["mismatch_k1"] == pytest.approx(sum(d) / 3)
    assert metrics["mismatch_k3"] == pytest.approx(sum(math.exp(-x) - 1 + x for x in d) / 3)


def test_k1_and_k3_estimate_the_divergence_of_the_engine_from_the_trainer() -> None:
    """Over draws of a small vocabulary: both are KL(engine || trainer), k3 with less noise."""
    random = np.random.default_rng(0)
    engine, trainer = random.dirichlet(np.full(20, 5.0), 2)
    drawn = random.choice(20, 40_000, p=engine)
    own = rollout((VERSION, len(drawn)))
    own = replace(own, logprobs=np.log(engine[drawn]).astype(np.float32))
    logprobs = np.log(trainer[drawn]).astype(np.float32)
    metrics = measure_mismatch(
        [Compared(rollout=own, trainer_logprobs=logprobs, is_fresh=own.find_fresh(VERSION))]
    )
    exact = float((engine * np.log(engine / trainer)).sum())
    assert metrics["mismatch_k1"] == pytest.approx(exact, rel=0.1)
    assert metrics["mismatch_k3"] == pytest.approx(exact, rel=0.05)


def test_without_fresh_tokens_there_is_nothing_but_their_number() -> None:
    assert measure_mismatch([]) == {"mismatch_tokens": 0}
    stale = measure_mismatch([compare(rollout((4, 3)), [1.0] * 3)])
    assert stale == {"mismatch_tokens": 0, "mismatch_stale": 1}
    watch = MismatchWatch(0.1, 0.2)
    assert watch.add(0, {"mismatch_tokens": 0.0}) == {} and not watch.is_too_far({"mismatch_tokens": 0.0})


def row(mean: float, tokens: float = 100.0) -> dict[str, float]:
    return {"mismatch_tokens": tokens, "mismatch_mean": mean, "mismatch_p99": 2 * mean}


def test_trend_is_a_fast_mean_over_a_slow_one_and_survives_a_restart() -> None:
    watch = MismatchWatch(1.0, 2.0)
    means = [0.01, 0.01, 0.02, 0.04, 0.04]
    for step, mean in enumerate(means):
        trend = watch.add(step, row(mean))["mismatch_trend"]
        assert trend == pytest.approx(1) if step < 2 else trend > 1
        watch = MismatchWatch(1.0, 2.0, json.loads(json.dumps(watch.state_dict())))

    def average(keep: float) -> float:
        weights = [keep ** (len(means) - 1 - i) for i in range(len(means))]
        return sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)

    assert trend == pytest.approx(average(FAST) / average(SLOW))
    before = watch.state_dict()
    assert watch.add(5, row(9.0, tokens=FEW - 1)) == {} and watch.state_dict() == before


def test_warns_once_until_it_has_fallen_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    watch = MismatchWatch(0.1, 0.2)
    for step, mean in enumerate([0.05, 0.15, 0.16, 0.08, 0.15]):
        watch.add(step, row(mean))
        watch = MismatchWatch(0.1, 0.2, watch.state_dict())
    assert [message[:7] for message in caplog.messages] == ["step 1:", "step 4:"]
    assert "mean |logprob difference| 0.15" in caplog.messages[0]
    assert "warn_mismatch=0.1" in caplog.messages[0]


def test_stops_past_its_bound_or_without_a_number() -> None:
    watch = MismatchWatch(0.1, 0.2)
    assert [watch.is_too_far(row(mean)) for mean in (0.2, 0.21, math.nan)] == [False, True, True]
    assert watch.add(0, row(math.nan)) == {}
    assert not watch.is_too_far(row(9.0, tokens=FEW - 1))


def test_probes_are_those_with_most_fresh_tokens_and_of_equal_ones_the_first() -> None:
    fresh = [[rollout((VERSION, 3), name=f"{g}-{i}") for i in range(4)] for g in range(PROBE_GROUPS + 2)]
    chosen = choose_probes(fresh, VERSION)
    assert [r.ref.id for r in chosen] == [
        f"{g}-{i}" for g in range(PROBE_GROUPS) for i in range(PROBE_ROLLOUTS)
    ]
    assert choose_probes(fresh, VERSION + 1) == chosen
    solution = replace(rollout((VERSION, 3)), logprobs=None, versions=())
    tails = [
        [rollout((4, 3), name="old"), rollout((4, 2), (VERSION, 1), name="third")],
        [solution, rollout((4, 1), (VERSION, 1), name="half"), rollout((VERSION, 2), name="whole")],
    ]
    assert [r.ref.id for r in choose_probes(tails, VERSION)] == ["whole", "half", "third", "old"]
    assert choose_probes([[solution]], VERSION) == []


def test_samples_have_the_tokens_of_both_with_the_largest_difference_first(tmp_path: Path) -> None:
    compared = [
        compare(rollout((VERSION, 2), name="near"), [0.25, 0.0]),
        compare(rollout((4, 1), (VERSION, 2), name="far"), [9.0, 0.5, -0.75]),
        compare(rollout((VERSION, 1), name="broken"), [math.nan]),
    ]
    folder = evidence_folder(tmp_path, VERSION)
    write_samples(folder, compared, lambda ids: [f"<{number}>" for number in ids])
    assert folder == tmp_path / "mismatch" / "step-00000005"
    broken, far, near = map(json.loads, (folder / "samples.jsonl").read_text().splitlines())
    assert (broken["id"], broken["largest"], broken["trainer_logprobs"]) == ("broken", None, [None])
    assert (far["id"], far["largest"], far["versions"]) == ("far", 0.75, [[4, 1], [VERSION, 2]])
    assert far["worst"] == {"place": 2, "token_id": 12, "token": "<12>"}
    assert (far["token_ids"], far["tokens"]) == ([10, 11, 12], ["<10>", "<11>", "<12>"])
    assert (far["engine_logprobs"], far["trainer_logprobs"]) == ([-1, -1, -1], [-10, -1.5, -0.25])
    assert far["is_fresh"] == [False, True, True]
    assert near["id"] == "near"


@pytest.mark.parametrize("failure", [RankError("died"), WeightError("not all"), OSError("disk full")])
def test_what_fails_after_a_stop_does_not_hide_its_reason(failure: Exception, tmp_path: Path) -> None:
    class Failing:
        def resend_weights(self) -> dict:
            raise failure

    with pytest.raises(EnginesDisagree) as stop, naming_tensors(Failing()):
        raise EnginesDisagree("they disagree", tmp_path)
    assert str(stop.value) == f"they disagree. Its weights could not be sent again: {failure}"


class Engines:
    """Engines whose tensors change, or not, when their weights are sent again."""

    def __init__(self, found: dict) -> None:
        self._found = found

    def resend_weights(self) -> dict:
        return self._found


def test_engines_without_tensors_say_so(tmp_path: Path) -> None:
    with closing(RolloutManager(EchoEngines().calls(), EngineConfig(num_engines=2))) as engines:
        engines.update_weights(3)
        assert engines.resend_weights() == {0: "no tensors", 1: "no tensors"}
        assert find_tensors(engines, tmp_path) == "No engine could be asked for its tensors"


SAME = ({"a": "1", "b": "2"}, {"a": "1", "b": "2"})
OTHER = ({"a": "1", "b": "2"}, {"a": "1", "b": "3"})


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ({0: SAME, 1: OTHER}, "engine 1 had other weights in b"),
        (
            {0: SAME},
            "None of the engines' tensors differ once the same weights are sent again: inputs or numerics do",
        ),
        ({0: "it died"}, "No engine could be asked for its tensors"),
    ],
)
def test_a_stop_names_the_tensors_that_the_same_weights_sent_again_change(
    found: dict, verdict: str, tmp_path: Path
) -> None:
    with pytest.raises(EnginesDisagree) as stop, naming_tensors(Engines(found)):
        raise EnginesDisagree("they disagree", tmp_path)
    assert str(stop.value) == f"they disagree. {verdict}"
    written = json.loads((tmp_path / "tensors.json").read_text())
    assert written["verdict"] == verdict
    assert written["engines"].keys() == {str(number) for number in found}
    if found.get(1) is OTHER:
        assert written["engines"]["1"] == {"changed": {"b": ["2", "3"]}, "unchanged": 1}
