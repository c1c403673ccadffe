"""One text or number is read as it was written; everything else is refused by the name of its column."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import pytest
from datasets import Dataset, Features, Value

from data_pipeline.errors import BadSample
from data_pipeline.shards.format import read_shards
from data_pipeline.sources.adapters import CORPORA
from data_pipeline.sources.config import ImportConfig, RowsConfig
from data_pipeline.sources.import_corpus import import_corpus
from data_pipeline.sources.readers import read_file
from data_pipeline.sources.text_values import WrittenNumber, is_missing, read_label, read_value
from data_pipeline.types import Sample
from tests.helpers.corpora import make_row

GOOD = [
    ("3", "3"),
    (" x ", "x"),
    (3, "3"),
    (0, "0"),
    (3.0, "3.0"),
    (WrittenNumber("1e3"), "1e3"),
    (10**30, "1" + "0" * 30),
    (Decimal("0.10"), "0.10"),
    (["3"], "3"),
    ((3,), "3"),
    ({"target": "3"}, "3"),
    ({"target": ["3"]}, "3"),
    ([[3.5]], "3.5"),
]
BAD = [
    True,
    False,
    [False],
    math.nan,
    math.inf,
    -math.inf,
    Decimal("NaN"),
    [math.nan],
    [],
    {},
    None,
    [None],
    ["3", "three"],
    {"a": 1, "b": 2},
    b"3",
    {"target": [1, 2]},
]


def read_messages(answer: object) -> Sample:
    turns = [{"role": "user", "content": "What?"}]
    return CORPORA["messages"].read(make_row(messages=turns, answer=answer))


def read_prompt(answer: object) -> Sample:
    turns = [{"role": "user", "content": "What?"}]
    return CORPORA["prompts"].read(make_row(prompt=turns, reward_model={"ground_truth": answer}))


def read_question(answer: object) -> Sample:
    return CORPORA["questions"].read(make_row(question="What?", answer=answer))


def read_options(answer: object) -> Sample:
    return CORPORA["puzzlevqa"].read(make_row(question="What?", options=[answer, "other"], answer="other"))


READERS = [read_messages, read_prompt, read_question, read_options]


@pytest.mark.parametrize(("value", "text"), GOOD)
def test_one_value_is_read_as_written(value: object, text: str):
    assert read_value("answer", value) == text
    assert [read(value).answer for read in READERS[:3]] == [text] * 3
    assert f"A. {text}" in read_options(value).messages[1].content


@pytest.mark.parametrize(
    ("read", "value"),
    # without a reference a conversation takes that of its response
    [
        (read, value)
        for read in READERS
        for value in BAD
        if read is not read_messages or not is_missing(value)
    ],
)
def test_everything_else_is_refused_by_name(read: Callable[[object], Sample], value: object):
    with pytest.raises(
        BadSample, match=r"(answer|ground_truth|options): wanted text, saw|neither a response"
    ):
        read(value)


def test_a_boolean_is_refused_with_what_to_write():
    with pytest.raises(BadSample, match="saw bool False; write the text that is meant: false, yes, no"):
        read_question(False)


@pytest.mark.parametrize("missing", [None, "", " ", math.nan])
def test_missing_columns_are_not_turned_into_text(missing: object):
    row = make_row(question="What?", answer="1", id=missing, kind=missing, response=missing, source=missing)
    found = CORPORA["questions"].read(row)
    assert len(found.messages) == 2 and not {"row_id", "kind", "source"} & found.metadata.keys()
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "<answer>7</answer>"}]
    assert CORPORA["messages"].read(make_row(messages=turns, answer=missing)).answer == "7"


def test_lists_of_labels_are_joined_and_wrong_ones_refused():
    assert read_label("kind", ["algebra", 7]) == "algebra; 7" and read_label("kind", []) == ""
    row = make_row(question="What?", answer="1", id=["q"], kind=["a", "b"])
    found = CORPORA["questions"].read(row)
    assert found.id.startswith("mine/q-") and found.metadata["kind"] == "a; b"
    with pytest.raises(BadSample, match="id: wanted text, saw"):
        CORPORA["questions"].read(replace(row, fields={**row.fields, "id": {"a": 1, "b": 2}}))


def test_decimals_and_infinity_of_parquet_reach_shards_as_json(tmp_path):
    features = Features(
        {"problem": Value("string"), "answer": Value("decimal128(9, 3)"), "PassRate_7BBase": Value("float64")}
    )
    rows = [
        {"problem": "What?", "answer": Decimal("2.500"), "PassRate_7BBase": rate} for rate in (math.inf, 0.5)
    ]
    rows = Dataset.from_list([{**row, "problem": f"{n}?"} for n, row in enumerate(rows)], features=features)
    path = tmp_path / "a.parquet"
    rows.rename_column("problem", "question").to_parquet(path)
    assert len(list(read_file(path))) == 2
    import_corpus("virl39k", ImportConfig(rows=RowsConfig(path=str(path)), out=str(tmp_path / "shards")))
    first, second = read_shards(tmp_path / "shards")
    assert first.answer == second.answer == "2.500"
    assert "PassRate_7BBase" not in first.metadata and second.metadata["PassRate_7BBase"] == 0.5
