"""Runs lmms-eval's own task code on questions and responses: its configs name what scores and what adds up.

The tasks are those of its folders `reasoning`, by which OpenMMReasoner is evaluated. They need no judge and no network.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "OPENAI_API_KEY", "none"
)  # a client of a judge is made, and never asked, when a task is loaded

import lmms_eval.api.metrics  # registers the aggregations by name
import lmms_eval.tasks
from lmms_eval.api.registry import get_aggregation
from lmms_eval.utils import load_yaml_config

from data_pipeline.types import IMAGE_MARK
from tests.helpers.benchmarks import fill_columns
from tests.helpers.eval_cases import Question, draw_questions

TASKS = {
    "mathvista_testmini": "mathvista/reasoning/mathvista_testmini_cot.yaml",
    "mathvision_testmini": "mathvision/reasoning/mathvision_reason_testmini.yaml",
    "mathverse_testmini": "mathverse/reasoning/mathverse_testmini.yaml",
    "dynamath": "dynamath/reasoning/dynamath.yaml",
    "wemath_testmini": "wemath/reasoning/wemath_testmini_thinking.yaml",
    "logicvista": "logicvista/reasoning/logicvista_thinking.yaml",
    "mmmu_val": "mmmu/reasoning/mmmu_val_reasoning.yaml",
    "mmmu_pro_standard": "mmmu_pro/reasoning/mmmu_pro_standard_cot.yaml",
    "charxiv_reasoning": "charxiv/reasoning/charxiv_val_reasoning.yaml",
    "aime24": "aime/reasoning/aime24_nofigures_agg8.yaml",
    "gpqa_diamond": "gpqa/reasoning/gpqa_thinking.yaml",
}


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What lmms-eval says of a benchmark's responses."""

    task: str  # its name there
    accuracies: list[list[float]]  # of each response to each question
    numbers: dict[str, float]
    prompts: list[str]


@cache
def load_task(name: str) -> dict[str, Any]:
    return load_yaml_config(str(Path(lmms_eval.tasks.__file__).parent / TASKS[name]), mode="full")


def score(name: str, seed: int = 0) -> Scored:
    task, questions = load_task(name), draw_questions(name, seed)
    docs = [to_doc(name, question) for question in questions]
    processed = [
        task["process_results"](doc, list(question.responses))
        for doc, question in zip(docs, questions, strict=True)
    ]
    return Scored(
        task=task["task"],
        accuracies=[read_accuracies(result) for result in processed],
        numbers={
            metric["metric"]: as_number(
                aggregate(metric["aggregation"], [r[metric["metric"]] for r in processed])
            )
            for metric in task["metric_list"]
            if metric["aggregation"] != "bypass"  # texts
        },
        prompts=[write_prompt(task, doc) for doc in docs],
    )


def to_doc(name: str, question: Question) -> dict[str, Any]:
    """Returns the row as process_docs leaves it; GPQA's with our order of the options, as its own is random."""
    doc = fill_columns(name, dict(question.row))
    if name == "gpqa_diamond":
        asked = question.sample.messages[-1].content.partition("Choices:\n")[2]
        texts = [asked.split(f"({letter}) ")[1].split(" (")[0] for letter in "ABCD"]
        named = {f"choice{number}": text for number, text in enumerate(texts, 1)}
        return doc | named | {"answer": f"({question.sample.answer})"}
    return doc


def read_accuracies(result: dict[str, Any]) -> list[float]:
    if "exact_matches" in result:
        return [float(value) for value in result["exact_matches"]]
    if "dynamath_worst" in result:
        return [float(result["dynamath_worst"]["acc"])]
    return [float(result["acc_score"])]


def aggregate(how: object, values: Sequence[object]) -> float | str:
    return how(values) if callable(how) else get_aggregation(how)(values)


def as_number(value: float | str) -> float:
    """Returns a share; We-Math's are texts such as 61.33%."""
    return float(value.removesuffix("%")) / 100 if isinstance(value, str) else float(value)


def write_prompt(task: dict[str, Any], doc: dict[str, Any]) -> str:
    """Returns the question as the task asks it; names of images stand where ours have a mark."""
    options = task.get("lmms_eval_specific_kwargs", {}).get("default")
    how = task["doc_to_text"]
    text = how(doc, options) if how.__code__.co_argcount > 1 else how(doc)
    return text.replace("<image 1>", IMAGE_MARK).replace("<image>", IMAGE_MARK).strip()
