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
    list_clusters,
    list_units,
    mean_accuracy,
)
from rl.evaluation.intervals import Score
from rl.evaluation.scores import read_result, score_units
from rl.evaluation.summary import Records
from rl.results.stored import StoredEvaluation, read_metadata


@dataclass(frozen=True, kw_only=True)
class UnitMetric:
    """A metric whose first number is a mean over units, with the metadata of questions where it groups by them."""

    metric: Metric = mean_accuracy
    metadata: Mapping[str, Metadata]
    cluster: str = ""  # metadata of units that are resampled together
    is_whole: bool = True  # False where questions that belong together count as if they did not

    def value_units(self, questions: Mapping[str, Records]) -> list[float]:
        """Returns the value of each unit; the same questions give the same units."""
        return [first_number(self.metric(unit))[1] for unit in self._list_units(questions)]

    def list_clusters(self, questions: Mapping[str, Records]) -> list[int]:
        """Returns the number of the cluster of each unit."""
        return list_clusters(self._list_units(questions), self.cluster)

    def name(self, questions: Mapping[str, Records]) -> str:
        """Returns what the first number is called."""
        results = [self.read_result(name, records) for name, records in questions.items()]
        return first_number(self.metric(results))[0]

    def score(self, questions: Mapping[str, Records], seed: int) -> Score:
        """Returns the first number with its interval, a bootstrap over units."""
        return score_units(self.metric, self._list_units(questions), seed, self.cluster)

    def read_result(self, name: str, records: Records) -> QuestionResult:
        """Returns the accuracies of the responses to a question."""
        return read_result(self.metadata.get(name, {}), records)

    def _list_units(self, questions: Mapping[str, Records]) -> list[list[QuestionResult]]:
        return list_units([self.read_result(name, records) for name, records in questions.items()])


def choose_metric(evaluations: Sequence[StoredEvaluation], notes: list[str]) -> UnitMetric:
    """Returns the metric of the benchmark that the evaluations are of; plain accuracy of other questions.

    Plain accuracy by question also, with a note, where questions must be grouped and the shards of none can be read.
    """
    benchmark, problem = evaluations[0].benchmark, ""
    if not benchmark:
        return UnitMetric(metadata={})
    if benchmark.metric not in GROUPED and not benchmark.cluster:
        return UnitMetric(metric=benchmark.metric, metadata={})
    for evaluation in evaluations:
        try:
            metadata = read_metadata(evaluation)
            return UnitMetric(metric=benchmark.metric, metadata=metadata, cluster=benchmark.cluster)
        except ValueError as error:
            problem = str(error)
    lost = "scored by plain accuracy, not by its metric, which groups questions"
    if benchmark.cluster:
        lost = f"resampled by question, not by {benchmark.cluster}"
    notes.append(
        f"{benchmark.name} is {lost}: {problem}. Questions of a group count as independent, so that intervals are too "
        "narrow"
    )
    return UnitMetric(metadata={}, is_whole=False)
