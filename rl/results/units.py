"""Scores evaluations by the metrics of their benchmarks, as means over units: questions, or groups of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.benchmarks.metrics import (
    GROUPED,
    Metadata,
    Metric,
    QuestionResult,
    first_number,
    list_units,
    mean_accuracy,
)
from rl.evaluation.intervals import Score, score_accuracies
from rl.evaluation.scores import read_result
from rl.evaluation.summary import Records
from rl.results.stored import StoredEvaluation, read_metadata


@dataclass(frozen=True, kw_only=True)
class UnitMetric:
    """A metric whose first number is a mean over units, with the metadata of questions where it groups by them."""

    metric: Metric = mean_accuracy
    metadata: Mapping[str, Metadata]
    is_whole: bool = True  # False where questions that belong together count as if they did not

    def value_units(self, questions: Mapping[str, Records]) -> list[float]:
        """Returns the value of each unit; the same questions give the same units."""
        results = [self.read_result(name, records) for name, records in questions.items()]
        return [first_number(self.metric(unit))[1] for unit in list_units(results)]

    def name(self, questions: Mapping[str, Records]) -> str:
        """Returns what the first number is called."""
        results = [self.read_result(name, records) for name, records in questions.items()]
        return first_number(self.metric(results))[0]

    def score(self, questions: Mapping[str, Records], seed: int) -> Score:
        """Returns the first number with its interval, a bootstrap over units."""
        return score_accuracies(self.value_units(questions), seed)

    def read_result(self, name: str, records: Records) -> QuestionResult:
        """Returns the accuracies of the responses to a question."""
        return read_result(self.metadata.get(name, {}), records)


def choose_metric(evaluations: Sequence[StoredEvaluation], notes: list[str]) -> UnitMetric:
    """Returns the metric of the benchmark that the evaluations are of; plain accuracy of other questions.

    Plain accuracy also, with a note, where questions must be grouped and the shards of none can be read.
    """
    benchmark, problem = evaluations[0].benchmark, ""
    if not benchmark:
        return UnitMetric(metadata={})
    if benchmark.metric not in GROUPED:
        return UnitMetric(metric=benchmark.metric, metadata={})
    for evaluation in evaluations:
        try:
            return UnitMetric(metric=benchmark.metric, metadata=read_metadata(evaluation))
        except ValueError as error:
            problem = str(error)
    notes.append(
        f"{benchmark.name} is scored by plain accuracy, not by its metric, which groups questions: {problem}. "
        "Questions of a group count as independent, so that intervals are too narrow"
    )
    return UnitMetric(metadata={}, is_whole=False)
