"""Filters: pure functions from a sample to the reason of its drop, "" to keep it. None knows another.

What MMFineReason's pipeline does (arXiv 2601.21821, section 3) is built from them by `select_config.mmfinereason`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from data_pipeline.select.config import FilterConfig
from data_pipeline.types import Sample

Filter = Callable[[Sample], str]
"""A sample -> "" to keep it, or in a word why it is dropped."""

ERROR_MARK = "[ERROR]"
"""Stands in responses of MMFineReason's teacher whose request failed."""
_WITHOUT_ANSWER_TAGS = ("visualwebinstruct", "llavacot", "ai2d")
"""Corpora (letters and digits of their names) whose responses need no <answer> by MMFineReason's template."""
_THINK_ANSWER = re.compile(r"\s*<think>(.+?)</think>\s*<answer>(.+?)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")
_PROVIDERS = {
    "accuracy": "a check against a reference answer",
    "pass_rate": "`omr data score`, or the corpus itself",
}


def build_filters(config: FilterConfig) -> tuple[Filter, ...]:
    """The filters that `config` asks for, cheapest first: a sample is dropped for the first that objects."""
    built: list[Filter] = []
    if config.max_images is not None:
        most = config.max_images
        built.append(lambda sample: "images" if len(sample.images) > most else "")
    if config.max_answer_chars:
        built.append(lambda sample: "answer_length" if len(sample.answer) > config.max_answer_chars else "")
    if config.correct:
        built.append(lambda sample: "" if _score(sample, "accuracy") == 1 else "wrong")
    if config.min_pass_rate is not None or config.max_pass_rate is not None:
        low, high = config.min_pass_rate or 0.0, 1.0 if config.max_pass_rate is None else config.max_pass_rate
        built.append(lambda sample: _outside(_score(sample, "pass_rate"), low, high))
    if config.min_words or config.max_words:
        built.append(lambda sample: _length(sample, config.min_words, config.max_words))
    if config.format == "think_answer":
        built.append(think_answer)
    if config.format == "mmfinereason":
        built.append(mmfinereason_template)
    if config.repetition_count:
        built.append(lambda sample: repetition(sample, config.repetition_words, config.repetition_count))
    return tuple(built)


def keep(
    samples: Iterable[Sample], filters: Sequence[Filter], drop: Callable[[Sample, str], None]
) -> Iterator[Sample]:
    """The samples that no filter objects to; `drop` is called with each other one and the reason.

    Raises:
        ValueError: a sample lacks a value that a filter needs.
    """
    for sample in samples:
        reason = next((reason for judge in filters if (reason := judge(sample))), "")
        if reason:
            drop(sample, reason)
        else:
            yield sample


def response(sample: Sample) -> str:
    """The assistant's last turn; "" of a question without one."""
    last = sample.messages[-1] if sample.messages else None
    return last.content if last and last.role == "assistant" else ""


def think_answer(sample: Sample) -> str:
    """Drop what is not one thought and then one answer, neither of them empty, and nothing else."""
    text = response(sample)
    found = _THINK_ANSWER.fullmatch(text)
    whole = found and len(_TAG.findall(text)) == 4 and found[1].strip() and found[2].strip()
    return "" if whole else "format"


def mmfinereason_template(sample: Sample) -> str:
    """MMFineReason's: one thought, answer tags in pairs, at least one answer behind it; and no failed request.

    The answer is not asked of VisualWebInstruct, LLaVA-CoT and AI2D, whose answers are sentences.
    """
    text = response(sample)
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


def repetition(sample: Sample, num_words: int = 50, count: int = 3) -> str:
    """Drop a response whose thought holds some run of `num_words` words `count` times or more, overlaps included.

    A response without a thought counts as a whole; tags are no words.
    """
    words = _thought(response(sample)).split()
    if len(words) < num_words + count - 1:
        return ""
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    ids = [numbers[word] for word in words]
    runs = Counter(tuple(ids[start : start + num_words]) for start in range(len(ids) - num_words + 1))
    return "repetition" if max(runs.values()) >= count else ""


def _thought(text: str) -> str:
    """What stands before `</think>`, and behind `<think>` where that is; all of a text without a thought."""
    head, is_closed, _ = text.partition("</think>")
    before, is_open, rest = head.partition("<think>")
    thought = (rest if is_open else before) if is_closed else text
    return _TAG.sub(" ", thought)


def _length(sample: Sample, least: int, most: int) -> str:
    num_words = len(response(sample).split())
    return "length" if num_words < least or 0 < most < num_words else ""


def _outside(rate: float, low: float, high: float) -> str:
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
