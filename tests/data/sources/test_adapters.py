"""Every adapter over files of the published schema, into shards and back; ids, images, what does not fit."""

from __future__ import annotations

import base64
import io
import random
import re
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.errors import BadSample
from data_pipeline.shards.format import read_shards
from data_pipeline.sources.adapters import CORPORA
from data_pipeline.sources.config import ImportConfig
from data_pipeline.sources.import_corpus import import_corpus
from data_pipeline.sources.rows import Row
from data_pipeline.types import IMAGE_MARK, SYSTEM_PROMPT, Sample
from tests.helpers.corpora import FIXTURES, PARQUET, fixture_rows, write_corpus

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
TRIANGLE = (FIXTURES / "images" / "triangle.png").read_bytes()


def imported(corpus: str, folder: Path, rows: list | None = None) -> list[Sample]:
    folder.mkdir(exist_ok=True)
    path = write_corpus(corpus, folder, rows)
    config = ImportConfig(path=str(path), out=str(folder / "shards"), images=str(FIXTURES), split="train")
    import_corpus(corpus, config)
    return list(read_shards(folder / "shards"))


def row(**fields: object) -> Row:
    return Row(fields=fields, corpus="mine", number=3, images=FIXTURES / "images")


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
            assert image in {path.read_bytes() for path in (FIXTURES / "images").iterdir()}, "untouched"


@pytest.mark.parametrize("corpus", CORPORA)
def test_ids_do_not_depend_on_reading_order(corpus: str, tmp_path: Path):
    rows = fixture_rows(corpus)
    shuffled = random.Random(1).sample(rows, len(rows))[::-1]
    once, again = imported(corpus, tmp_path / "a"), imported(corpus, tmp_path / "b", shuffled)
    assert {sample.id: sample.messages for sample in once} == {s.id: s.messages for s in again}


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_row_of_nothing_known_is_refused_with_what_it_lacks(corpus: str):
    with pytest.raises(BadSample, match=r"wanted .*, saw .*; ") as caught:
        CORPORA[corpus](row(colour="red"))
    assert caught.value.reason == "schema"


@pytest.mark.parametrize("corpus", CORPORA)
def test_the_docs_list_every_corpus_and_say_whether_its_schema_was_seen(corpus: str):
    line = next(line for line in DOCS.read_text().splitlines() if line.startswith(f"| `{corpus}`"))
    assert "own data" in line or re.search(r"\b(confirmed|assumed)\b", line.lower())
    said = (CORPORA[corpus].__doc__ or "").lower()
    assert "your own" in said or "verl" in said or "confirmed" in said or "assumed" in said


@pytest.mark.parametrize(
    "corpus", ["algopuzzlevqa", "mmk12", "puzzlevqa", "thinklite_hard", "tqa", "virl39k"]
)
def test_rl_corpora_are_also_read_as_the_recipe_releases_them(corpus: str):
    fields = fixture_rows("openmmreasoner_rl")[2]
    sample = CORPORA[corpus](row(**fields))
    assert sample.answer == "3" and len(sample.images) == 2 and sample.metadata["data_source"] == "tqa_train"


@pytest.mark.parametrize("corpus", ["llava_cot", "miromind_m1", "mmr1", "openvlthinker", "we_math_sft"])
def test_sft_corpora_are_also_read_as_the_recipe_releases_them(corpus: str):
    fields = fixture_rows("openmmreasoner_sft")[0]
    found = CORPORA[corpus](Row(fields=fields, corpus=corpus, number=0, images=FIXTURES))
    assert found.answer == "the bottom left one" and found.images == (TRIANGLE,)


@pytest.mark.parametrize("corpus", ["messages", "openmmreasoner_sft", "mmfinereason", "llava_cot"])
def test_imported_conversations_can_be_learned(corpus: str, tmp_path: Path, tiny_hf: Path):
    from data_pipeline.config import ImageConfig
    from data_pipeline.encode.chat import ChatEncoder

    encoder = ChatEncoder.from_hf(tiny_hf, ImageConfig())
    learnable = [sample for sample in imported(corpus, tmp_path) if sample.messages[-1].role == "assistant"]
    for sample in learnable:
        example = encoder.encode(sample)
        assert example.loss_mask.sum() > 0 and len(example.image_grid_thw) == len(sample.images)
    assert learnable


def test_answers_to_one_question_keep_apart(tmp_path: Path):
    first, second, _ = imported("openmmreasoner_sft", tmp_path)
    assert first.metadata["row_id"] == second.metadata["row_id"] == "geo_1" and first.id != second.id
    assert first.metadata["teacher"] == "Qwen3-VL-235B-A22B-Instruct"


def test_columns_of_a_corpus_travel_with_its_samples(tmp_path: Path):
    sample = imported("we_math_pro", tmp_path)[0]
    assert sample.metadata["knowledge points"] == "Right angle; Triangle"
    assert sample.id.startswith("we_math_pro/0_s1-")


def test_fixtures_have_the_published_columns():
    for corpus, features in PARQUET.items():
        for fields in fixture_rows(corpus):
            assert set(fields) == set(features), corpus


# ---- images


def test_an_image_may_come_in_any_form():
    picture = Image.open(io.BytesIO(TRIANGLE))
    url = "data:image/png;base64," + base64.b64encode(TRIANGLE).decode()
    inside = str((FIXTURES / "images" / "triangle.png").resolve())
    held = {"bytes": None, "path": "triangle.png"}
    for form in (TRIANGLE, bytearray(TRIANGLE), held, {"bytes": TRIANGLE, "path": "x"}, url, inside):
        sample = CORPORA["questions"](row(question="What?", answer="1", image=form))
        assert sample.images == (TRIANGLE,)
    sample = CORPORA["questions"](row(question="What?", answer="1", image=picture))
    assert sample.images[0].startswith(b"\x89PNG")
    with Image.open(io.BytesIO(sample.images[0])) as image:
        assert image.size == picture.size and image.tobytes() == picture.tobytes()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("https://example.com/a.png", "none is fetched"),
        ("../llava_cot.jsonl", "leads out of"),
        ("/etc/hostname", "leads out of"),
        ("nowhere.png", "--images the right folder"),
        ("a\0b.png", "is no path"),
        (b"not an image", "no image"),
        ("data:image/png,abc", "no base64 data URL"),
        ("data:image/png;base64,a$b", "not base64"),
        (TRIANGLE[:20], "no image"),
        ({"bytes": None, "path": None}, "saw nothing"),
        (7, "saw int 7"),
    ],
)
def test_a_wrong_image_says_what_to_do(image: object, said: str):
    with pytest.raises(BadSample, match=re.escape(said)):
        CORPORA["questions"](row(question="What?", answer="1", image=image))


def test_a_path_without_a_folder_asks_for_one():
    lost = Row(fields={"question": "What?", "answer": "1", "image": "a.png"}, corpus="mine", number=0)
    with pytest.raises(BadSample, match="say with --images"):
        CORPORA["questions"](lost)


# ---- texts


def test_marks_stay_where_they_are_and_missing_ones_go_first():
    def asked(content: object, images: list[str]) -> str:
        return (
            CORPORA["messages"](
                row(messages=[{"role": "user", "content": content}], images=images, answer="1")
            )
            .messages[1]
            .content
        )

    two = ["triangle.png", "circle.png"]
    assert asked("A <image> and B <image>?", two) == "A <image> and B <image>?"
    assert asked("A <image> and B?", two) == "<image>A <image> and B?"
    assert asked(
        [{"type": "text", "text": "Like "}, {"type": "image"}, {"type": "text", "text": "?"}], two[:1]
    ) == ("Like <image>?")
    inline = [
        {"type": "image_url", "image_url": {"url": "circle.png"}},
        {"type": "text", "text": "<image>\nWhat?"},
    ]
    assert asked(inline, []) == "<image>\nWhat?", "a mark in the text stands for the part"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think>1 or 2</think><answer> 2. </answer>", "2"),
        ("It is \\boxed{1}, no, \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("It is 7", ""),
        ("It is \\boxed{7", ""),
        ("</answer> 7 <answer>\nis 7", ""),
    ],
)
def test_a_reference_answer_is_never_guessed(response: str, answer: str):
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": response}]
    assert CORPORA["messages"](row(messages=turns)).answer == answer


@pytest.mark.parametrize(
    ("fields", "reason", "said"),
    [
        (dict(messages=[]), "schema", "a list of turns"),
        (dict(messages="hello"), "schema", "a list of turns"),
        (dict(messages=[{"role": "tool", "content": "x"}]), "schema", "rename or drop"),
        (dict(messages=[{"role": "user", "content": 5}]), "schema", "saw int 5"),
        (dict(messages=[{"role": "user", "content": [{"type": "video"}]}]), "schema", "image_url"),
        (dict(messages=[{"role": "user", "content": "<image>Eh?"}], answer="1"), "image", "1 marks"),
        (dict(messages=[{"role": "user", "content": "Eh?"}]), "answer", "neither a response"),
        (dict(messages=[{"role": "assistant", "content": "Eh!"}]), "text", "no question"),
        (
            dict(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "<image>"}]),
            "text",
            "outside of the user's turns",
        ),
        (dict(messages=[{"role": "user", "content": "\ud800"}], answer="1"), "text", "broken characters"),
    ],
)
def test_a_wrong_conversation_is_refused(fields: dict, reason: str, said: str):
    with pytest.raises(BadSample, match=re.escape(said)) as caught:
        CORPORA["messages"](row(**fields))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("corpus", "change", "said"),
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
def test_a_wrong_column_is_named(corpus: str, change: dict, said: str):
    fields = {**fixture_rows(corpus)[0], **change}
    with pytest.raises(BadSample, match=re.escape(said)):
        CORPORA[corpus](Row(fields=fields, corpus=corpus, number=0, images=FIXTURES))


def test_a_number_is_an_answer_and_zero_is_a_number():
    fields = {**fixture_rows("prompts")[0], "reward_model": {"ground_truth": 0}}
    assert CORPORA["prompts"](Row(fields=fields, corpus="mine", number=0)).answer == "0"
    assert CORPORA["questions"](row(question="1 - 1?", answer=0, id=0)).id.startswith("mine/0-")


def test_the_system_prompt_goes_before_rows_that_have_none():
    fields = {"question": "What?", "answer": "1"}
    with_prompt, without = (
        CORPORA["questions"](Row(fields=fields, corpus="mine", number=0, system=system))
        for system in (SYSTEM_PROMPT, "")
    )
    assert with_prompt.messages[0].content == SYSTEM_PROMPT and without.messages[0].role == "user"
    assert with_prompt.id == without.id
