"""What a benchmark is: where its rows are published, how they become questions, how they are asked and scored."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from data_pipeline.benchmarks.metrics import Metric, mean_accuracy
from data_pipeline.errors import BadSample, column_error
from data_pipeline.sources.adapters import Adapter, Corpus
from data_pipeline.sources.readers import Fields
from data_pipeline.sources.rows import Row, build_sample
from data_pipeline.sources.text_values import read_value
from data_pipeline.types import SYSTEM_PROMPT, Message, Sample
from data_pipeline.verify.choices import CHOICES


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published benchmark, as docs/benchmarks.md describes it."""

    name: str
    dataset: str  # OWNER/NAME on the hub, or what else is published
    split: str
    subset: str = ""  # configuration on the hub
    files: str | None = (
        None  # name of the split's files in a downloaded folder: None as the split, "" all files
    )
    revision: str | None = None  # commit whose columns were confirmed; None: not pinned
    licence: str
    count: int  # questions of the split
    columns: tuple[str, ...]  # that every row has
    read: Adapter
    split_row: Callable[[Fields], Iterator[Fields]] | None = None  # the questions of a row that holds several
    metric: Metric = mean_accuracy
    # metadata of questions that are not independent, such as one picture's: resampled together
    cluster: str = ""
    by: tuple[str, ...] = ()  # metadata whose values have scores of their own
    n: int = 1  # responses to each question
    temperature: float = 0.0
    max_tokens: int = 49_152
    system_prompt: str = SYSTEM_PROMPT
    score: Callable[[str, str], float] | None = None
    """Scores a response against a reference where the answer checker cannot; None: the checker does."""

    @property
    def corpus(self) -> Corpus:
        """The benchmark as the import reads it; rows that lack a column are refused."""
        where = " ".join(filter(None, (self.dataset, self.subset, self.split)))
        read = partial(_read_checked, self.columns, where, self.read)
        return Corpus(f"{where} ({self.count:,} questions)", read, self.split_row, self.name)


def _read_checked(columns: Sequence[str], where: str, read: Adapter, row: Row) -> Sample:
    if missing := [name for name in columns if name not in row.fields]:
        seen = f"saw the columns {', '.join(row.fields) or '(none)'}"
        raise BadSample("schema", f"columns {', '.join(missing)}: wanted, but {seen}; give {where}")
    return read(row)


def build_question(
    row: Row,
    question: str,
    answer: str,
    *,
    images: Sequence[object] = (),
    row_id: str = "",
    kind: str = "",
    notes: Mapping[str, object] | None = None,
) -> Sample:
    """Returns the question as a sample; `notes` become metadata where they hold a text or a number."""
    turn = Message(role="user", content=question.strip())
    noted = replace(row, fields={**row.fields, **(notes or {})})
    return build_sample(
        noted,
        messages=[turn],
        images=images,
        answer=answer,
        row_id=row_id,
        kind=kind,
        keep=tuple(notes or ()),
    )


def check_value(column: str, value: object, allowed: Sequence[object], fix: str = "drop the row") -> None:
    """Raises BadSample unless the value is one of those."""
    if value not in list(allowed):  # of a text one of its letters
        raise column_error(column, f"one of {', '.join(map(str, allowed))}", value, fix)


def check_letter(letter: str, num_options: int) -> str:
    """Returns the letter of the right option; raises BadSample where there is no such option."""
    check_value("answer", letter, CHOICES[:num_options])
    return letter


def read_options(column: str, value: object) -> list[str]:
    """Returns the options of a list, or of a text that writes a list as Python does."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise column_error(column, "a list of texts", value, "drop the row") from error
    if not isinstance(value, (list, tuple)) or len(value) > len(CHOICES):
        raise column_error(column, f"a list of up to {len(CHOICES)} texts", value, "drop the row")
    return [read_value(column, option) for option in value]


def list_options(options: Sequence[str], form: str = "{}. {}") -> str:
    """Returns a line for each option, with its letter."""
    return "\n".join(form.format(letter, option) for letter, option in zip(CHOICES, options, strict=False))


def shuffle_options(right: str, wrong: Sequence[str], seed: str) -> tuple[list[str], str]:
    """Returns the options in an order that the seed alone decides, and the letter of the right one."""
    options = [right, *wrong]
    order = list(range(len(options)))
    random.Random(seed).shuffle(order)
    return [options[place] for place in order], CHOICES[order.index(0)]
