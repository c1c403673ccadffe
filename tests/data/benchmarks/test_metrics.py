"""Numbers of benchmarks, against what the released code gives for the same results."""

from __future__ import annotations

import random
from functools import partial

import pytest

from data_pipeline.benchmarks.metrics import (
    QuestionResult,
    average_at_k,
    grounding,
    knowledge_steps,
    mean_accuracy,
    worst_of_variants,
)


def result(*accuracies: float, **metadata: str | int) -> QuestionResult:
    return QuestionResult(metadata=metadata, accuracies=accuracies)


def test_mean_accuracy_counts_what_could_not_be_asked_as_wrong():
    assert mean_accuracy([result(1.0, 0.0), result(1.0, 1.0), result()]) == {"accuracy": 0.5}
    assert mean_accuracy([]) == {"accuracy": 0.0}


def test_average_at_k_counts_what_could_not_be_asked_as_wrong():
    results = [result(*[1.0, 0.0] * 4), result(*[0.0] * 8), result(*[1.0] * 8), result()]
    assert average_at_k(results) == {"avg@8": 0.375, "pass@8": 0.5}


def test_worst_case_is_right_only_where_all_variants_are():
    results = [result(1.0, group="1") for _ in range(10)] + [
        result(float(n > 0), group="2") for n in range(10)
    ]
    assert worst_of_variants(results) == {"worst": 0.5, "average": 0.95}
    assert worst_of_variants(results[:-1]) == {
        "worst": 0.5,
        "average": pytest.approx(17 / 18),
        "incomplete_groups": 1,
    }


def test_rounds_of_responses_are_scored_apart():
    """A variant right in one round and another in the next is no round with all variants right."""
    assert (
        worst_of_variants([result(1.0, 0.0, group="1"), result(0.0, 1.0, group="1")], size=2)["worst"] == 0.0
    )
    assert (
        worst_of_variants([result(1.0, 0.0, group="1"), result(1.0, 1.0, group="1")], size=2)["worst"] == 0.5
    )


def wemath_results(seed: int, share: float) -> list[QuestionResult]:
    """Results of We-Math's 1,740 questions, in the order and with the draws that the golden numbers were made of."""
    draw, results = random.Random(seed), []
    for num_steps, count in ((2, 360), (3, 165)):
        for number in range(1, count + 1):
            for step in (*map(str, range(1, num_steps + 1)), "multi"):
                place = {"group": f"{num_steps}steps_{number}", "step": step, "num_steps": num_steps}
                results.append(result(float(draw.random() < share), **place))
    return results


def test_wemath_is_what_the_authors_script_gives():
    """Counts of We-Math's evaluation/four_dimensional_metrics.py at a57a0e8 for the same 1,740 results."""
    numbers = knowledge_steps(wemath_results(0, 0.7))
    ig, ik, rote, mastery = 71, 94, {"loose": 25, "strict": 197}, {"loose": 335, "strict": 163}
    for kind, count in rote.items():
        assert numbers[kind] == pytest.approx((525 - 0.5 * ig - count - ik) / 525)
        assert numbers[f"CM_{kind}"] == pytest.approx(mastery[kind] / 525)
        assert numbers[f"RM_{kind}"] == pytest.approx(count / (count + mastery[kind]))
    assert (numbers["IG"], numbers["IK"]) == (pytest.approx(ig / 525), pytest.approx(ik / 525))
    assert next(iter(numbers)) == "loose"


def test_wemath_leaves_out_problems_that_lack_a_part():
    whole = knowledge_steps(wemath_results(0, 0.7)[:-4])
    cut = knowledge_steps(wemath_results(0, 0.7)[:-1])
    assert cut["incomplete_groups"] == 1 and "incomplete_groups" not in whole
    assert {name: cut[name] for name in ("loose", "strict", "IK")} == {
        n: whole[n] for n in ("loose", "strict", "IK")
    }


@pytest.mark.parametrize("metric", [knowledge_steps, worst_of_variants, average_at_k, partial(grounding)])
def test_no_results_are_no_error(metric):
    assert set(metric([]).values()) == {0.0}


def test_grounding_counts_boxes_at_the_threshold():
    assert grounding([result(0.5), result(0.49), result(1.0, 0.0)]) == {
        "acc@0.5": 0.5,
        "mean_iou": pytest.approx((0.5 + 0.49 + 0.5) / 3),
    }
