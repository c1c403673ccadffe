"""Filters: independent pure functions from a sample to the reason to drop it, or "" to keep it.

MMFINEREASON in config.py combines them into MMFineReason's pipeline (arXiv 2601.21821, section 3).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from data_pipeline.select.config import FilterConfig
from data_pipeline.types import Sample

Filter = Callable[[Sample], str]
"""A sample -> "" to keep it, or the reason to drop it, in one word."""

ERROR_MARK = "[ERROR]"
"""In responses of MMFineReason's teacher whose request failed."""
_WITHOUT_ANSWER_TAGS = ("visualwebinstruct", "llavacot", "ai2d")
"""Corpora (letters and digits of their names) whose responses need no <answer> in MMFineReason's template."""
_THINK_ANSWER = re.compile(r"\s*<think>(.+?)</think>\s*<answer>(.+?)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")
_PROVIDERS = {
    "accuracy": "a check against a reference answer",
    "pass_rate": "`omr data score`, or the corpus itself",
}


def build_filters(config: FilterConfig) -> tuple[Filter, ...]:
    """Returns the filters that `config` sets, cheapest first: a sample is dropped by the first that gives a reason."""
    built: list[Filter] = []
    if config.max_images is not None:
        most = config.max_images
        built.append(lambda sample: "images" if len(sample.images) > most else "")
    if config.max_answer_chars:
        built.append(lambda sample: "answer_length" if len(sample.answer) > config.max_answer_chars else "")
    if config.correct:
        built.append(lambda sample: "" if _score(sample, "accuracy") == 1 else "wrong")
    if config.min_pass_rate is not None or config.max_pass_rate is not None:
        built.append(lambda sample: _check_pass_rate(_score(sample, "pass_rate"), *config.pass_rates))
    if config.min_words or config.max_words:
        built.append(lambda sample: _check_length(sample, config.min_words, config.max_words))
    if config.format == "think_answer":
        built.append(check_think_answer)
    if config.format == "mmfinereason":
        built.append(check_mmfinereason_template)
    if config.repetition_count:
        built.append(
            lambda sample: check_repetition(sample, config.repetition_words, config.repetition_count)
        )
    return tuple(built)


def apply_filters(
    samples: Iterable[Sample], filters: Sequence[Filter], drop: Callable[[Sample, str], None]
) -> Iterator[Sample]:
    """Yields the samples that pass all filters; `drop` is called with each other sample and the reason.

    Raises:
        ValueError: a sample lacks a value that a filter needs.
    """
    for sample in samples:
        reason = next((reason for check in filters if (reason := check(sample))), "")
        if reason:
            drop(sample, reason)
        else:
            yield sample


def last_response(sample: Sample) -> str:
    """Returns the assistant's last turn; "" of a question without one."""
    last = sample.messages[-1] if sample.messages else None
    return last.content if last and last.role == "assistant" else ""


def check_think_answer(sample: Sample) -> str:
    """Drops a response that is not one thought and then one answer, neither of them empty, and nothing else."""
    text = last_response(sample)
    found = _THINK_ANSWER.fullmatch(text)
    whole = found and len(_TAG.findall(text)) == 4 and found[1].strip() and found[2].strip()
    return "" if whole else "format"


def check_mmfinereason_template(sample: Sample) -> str:
    """Drops failed requests, and responses without MMFineReason's template: one thought, then answers in paired tags.

    Responses to VisualWebInstruct, LLaVA-CoT and AI2D need no answer tags: their answers are sentences.
    """
    text = last_response(sample)
    if ERROR_MARK in text:
        return "error"
    tags = Counter(_TAG.findall(text))
    start, end = text.find("<think>"), text.find("</think>")
    if tags["<think>"] != 1 or tags["</think>"] != 1 or start > end:
        return "format"
    corpus = str(sample.metadata.get("source", sample.source)).casefold()
    if "".join(filter(str.isalnum, corpus)).startswith(_WITHOUT_ANSWER_TAGS):
        return ""
    outside = _TAG.findall(text[:start] + text[end + len("</think>") :])
    answers = [tag for tag in outside if "answer" in tag]
    in_turn = answers == ["<answer>", "</answer>"] * (len(answers) // 2)
    return "" if answers and in_turn and tags["<answer>"] == tags["</answer>"] else "format"


def check_repetition(sample: Sample, num_words: int = 50, count: int = 3) -> str:
    """Drops a response whose thought holds some run of `num_words` words `count` times or more, overlaps included.

    A response without a thought counts as a whole; tags are not words.
    """
    words = _thought(last_response(sample)).split()
    if len(words) < num_words + count - 1:
        return ""
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    ids = [numbers[word] for word in words]
    runs = Counter(tuple(ids[start : start + num_words]) for start in range(len(ids) - num_words + 1))
    return "repetition" if max(runs.values()) >= count else ""


def _thought(text: str) -> str:
    """Returns the text between `<think>` (which may be missing) and `</think>`; all of a text without a thought."""
    head, is_closed, _ = text.partition("</think>")
    before, is_open, rest = head.partition("<think>")
    thought = (rest if is_open else before) if is_closed else text
    return _TAG.sub(" ", thought)


def _check_length(sample: Sample, least: int, most: int) -> str:
    num_words = len(last_response(sample).split())
    return "length" if num_words < least or 0 < most < num_words else ""


def _check_pass_rate(rate: float, low: float, high: float) -> str:
    if low <= rate <= high:
        return ""
    return "too_easy" if rate > high else "too_hard" if rate < low else "pass_rate"  # NaN is neither


def _score(sample: Sample, name: str) -> float:
    value = sample.metadata.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(
            f"{sample.id!r} has metadata {name}={value!r}; this filter needs a number, which {_PROVIDERS[name]} "
            "provides; run that first, or turn the filter off"
        )
    return float(value)
