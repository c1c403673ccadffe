"""Every adapter reads files of the published schema; ids and metadata are stable, wrong columns are named."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from data_pipeline.errors import BadSample
from data_pipeline.shards.format import read_shards
from data_pipeline.sources.adapters import CORPORA
from data_pipeline.sources.config import ImportConfig, RowsConfig
from data_pipeline.sources.import_corpus import import_corpus
from data_pipeline.sources.rows import Row
from data_pipeline.types import IMAGE_MARK, Sample
from tests.helpers.corpora import FIXTURES, IMAGES, PARQUET, TRIANGLE, fixture_rows, write_corpus

DOCS = Path(__file__).parents[3] / "docs" / "data.md"
ANSWERS = {
    "messages": ["3:00", "Paris"],
    "questions": ["3", "56"],
    "prompts": ["2", "2"],
    "llava_cot": ["B", "3", "3"],
    "openvlthinker": ["3", "yes"],
    "we_math_sft": ["4π", "180"],
    "mmr1": ["2", "the second"],
    "miromind_m1": ["144", "7"],
    "openmmreasoner_sft": ["the bottom left one", "the bottom left one", "4"],
    "mmfinereason": ["2", "3:00", "circle"],
    "openmmreasoner_rl": ["1", "blue", "3"],
    "mmk12": ["bottom left", "6"],
    "thinklite_hard": ["2", "A"],
    "virl39k": ["90^\\circ", "B"],
    "we_math_standard": ["π", "2"],
    "we_math_pro": ["90", "2"],
    "puzzlevqa": ["B", "A"],
    "algopuzzlevqa": ["A", "B"],
    "tqa": ["B", "C"],
}


def imported(corpus: str, folder: Path, rows: list | None = None) -> list[Sample]:
    folder.mkdir(exist_ok=True)
    path = write_corpus(corpus, folder, rows)
    rows_config = RowsConfig(path=str(path), images=str(FIXTURES), split="train")
    import_corpus(corpus, ImportConfig(rows=rows_config, out=str(folder / "shards")))
    return list(read_shards(folder / "shards"))


def read(corpus: str, fields: dict) -> Sample:
    return CORPORA[corpus].read(Row(fields=fields, corpus=corpus, number=0, images=FIXTURES))


@pytest.mark.parametrize("corpus", CORPORA)
def test_published_rows_become_shards(corpus: str, tmp_path: Path):
    samples = imported(corpus, tmp_path)
    assert [sample.answer for sample in samples] == ANSWERS[corpus]
    assert len({sample.id for sample in samples}) == len(samples), "ids are unique"
    for number, sample in enumerate(samples):
        assert sample.source == corpus and sample.id.startswith(f"{corpus}/")
        where = {name: sample.metadata[name] for name in ("corpus", "split", "row")}
        assert where == {"corpus": corpus, "split": "train", "row": number}
        assert sample.messages[0].role == "system" and sample.messages[1].role == "user"
        marks = [message.content.count(IMAGE_MARK) for message in sample.messages]
        assert sum(marks) == marks[1] == len(sample.images)
        for image in sample.images:
            assert image in {path.read_bytes() for path in IMAGES.iterdir()}, "untouched"


@pytest.mark.parametrize("corpus", CORPORA)
def test_ids_do_not_depend_on_reading_order(corpus: str, tmp_path: Path):
    rows = fixture_rows(corpus)
    shuffled = random.Random(1).sample(rows, len(rows))[::-1]
    once, again = imported(corpus, tmp_path / "a"), imported(corpus, tmp_path / "b", shuffled)
    assert {sample.id: sample.messages for sample in once} == {s.id: s.messages for s in again}


@pytest.mark.parametrize("corpus", CORPORA)
def test_row_without_known_columns_is_refused_with_the_wanted_one(corpus: str):
    with pytest.raises(BadSample, match=r"wanted .*, saw .*; ") as caught:
        read(corpus, {"colour": "red"})
    assert caught.value.reason == "schema"


@pytest.mark.parametrize("corpus", CORPORA)
def test_docs_list_every_corpus_and_whether_its_schema_was_seen(corpus: str):
    line = next(line for line in DOCS.read_text().splitlines() if line.startswith(f"| `{corpus}`"))
    assert "own data" in line or re.search(r"\b(confirmed|assumed)\b", line.lower())
    name = CORPORA[corpus].published.partition(",")[0].partition(":")[0].removesuffix("-*")
    assert name in line or name.startswith("Your own"), "the same dataset as in the table of corpora"


@pytest.mark.parametrize(
    "corpus", ["algopuzzlevqa", "mmk12", "puzzlevqa", "thinklite_hard", "tqa", "virl39k"]
)
def test_rl_corpora_are_also_read_as_the_recipe_releases_them(corpus: str):
    sample = read(corpus, fixture_rows("openmmreasoner_rl")[2])
    assert sample.answer == "3" and len(sample.images) == 2 and sample.metadata["data_source"] == "tqa_train"


@pytest.mark.parametrize("corpus", ["llava_cot", "miromind_m1", "mmr1", "openvlthinker", "we_math_sft"])
def test_sft_corpora_are_also_read_as_the_recipe_releases_them(corpus: str):
    found = read(corpus, fixture_rows("openmmreasoner_sft")[0])
    assert found.answer == "the bottom left one" and found.images == (TRIANGLE,)


@pytest.mark.parametrize("corpus", ["messages", "openmmreasoner_sft", "mmfinereason", "llava_cot"])
def test_imported_conversations_become_training_examples(corpus: str, tmp_path: Path, tiny_hf: Path):
    from data_pipeline.encode.chat import ChatEncoder
    from data_pipeline.encode.config import ImageConfig

    encoder = ChatEncoder.from_hf(tiny_hf, ImageConfig())
    learnable = [sample for sample in imported(corpus, tmp_path) if sample.messages[-1].role == "assistant"]
    for sample in learnable:
        example = encoder.encode(sample)
        assert example.loss_mask.sum() > 0 and len(example.image_grid_thw) == len(sample.images)
    assert learnable


def test_responses_to_one_question_have_different_ids(tmp_path: Path):
    first, second, _ = imported("openmmreasoner_sft", tmp_path)
    assert first.metadata["row_id"] == second.metadata["row_id"] == "geo_1" and first.id != second.id
    assert first.metadata["teacher"] == "Qwen3-VL-235B-A22B-Instruct"


def test_kept_columns_are_in_the_metadata(tmp_path: Path):
    sample = imported("we_math_pro", tmp_path)[0]
    assert sample.metadata["knowledge points"] == "Right angle; Triangle"
    assert sample.id.startswith("we_math_pro/0_s1-")


def test_fixtures_have_the_published_columns():
    for corpus, features in PARQUET.items():
        for fields in fixture_rows(corpus):
            assert set(fields) == set(features), corpus


@pytest.mark.parametrize(
    ("corpus", "change", "message"),
    [
        ("mmk12", {"answer": ""}, "answer: wanted text, saw an empty one"),
        ("mmk12", {"answer": float("nan")}, "answer: wanted text, saw float nan"),
        ("mmk12", {"question": None}, "question: wanted text, saw nothing"),
        ("puzzlevqa", {"answer": "17"}, "answer: wanted one of"),
        ("puzzlevqa", {"options": ["1"]}, "options: wanted a list of 2"),
        (
            "openmmreasoner_rl",
            {"reward_model": "3"},
            "reward_model: wanted {ground_truth, style}, saw str '3'",
        ),
        ("openmmreasoner_rl", {"reward_model": {"ground_truth": ""}}, "neither a response"),
    ],
)
def test_wrong_column_is_named(corpus: str, change: dict, message: str):
    with pytest.raises(BadSample, match=re.escape(message)):
        read(corpus, {**fixture_rows(corpus)[0], **change})


def test_nan_is_no_answer():
    fields = {**fixture_rows("messages")[0], "answer": float("nan")}
    assert read("messages", fields).answer == ANSWERS["messages"][0]


def test_zero_is_an_answer_and_an_id():
    fields = {**fixture_rows("prompts")[0], "reward_model": {"ground_truth": 0}}
    assert read("prompts", fields).answer == "0"
    assert read("questions", {"question": "1 - 1?", "answer": 0, "id": 0}).id.startswith("questions/0-")
