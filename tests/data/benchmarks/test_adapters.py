"""Published rows of every benchmark become questions with the published prompt; other rows are refused by name."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from data_pipeline.benchmarks.benchmark import shuffle_options
from data_pipeline.benchmarks.charxiv import PROMPTS
from data_pipeline.benchmarks.import_benchmark import import_questions
from data_pipeline.benchmarks.mars2 import find_box, score_box
from data_pipeline.benchmarks.registry import BENCHMARKS
from data_pipeline.errors import BadSample
from data_pipeline.files import read_json
from data_pipeline.shards.format import read_shards
from data_pipeline.sources.config import ImportConfig, RowsConfig
from data_pipeline.sources.import_corpus import read_corpus
from data_pipeline.sources.rows import Row
from data_pipeline.types import IMAGE_MARK, SYSTEM_PROMPT, Sample
from data_pipeline.verify.check import check_answer
from tests.helpers.benchmarks import ROWS, fill_columns, write_benchmark
from tests.helpers.corpora import CLOCK, IMAGES, TRIANGLE

DOCS = Path(__file__).parents[3] / "docs" / "benchmarks.md"
ANSWERS = {
    "mathvista_testmini": ["1.2", "B"],
    "mathvision_testmini": ["D", "12"],
    "mathvision_test": ["D", "12"],
    "mathverse_testmini": ["C", "2\\sqrt{3}"],
    "dynamath": [f"{n / 2:.3f}" for n in range(1, 11)],
    "wemath_testmini": ["A", "B", "E"],
    "logicvista": ["C", "A, C"],
    "mmmu_val": ["B", "12"],
    "mmmu_pro_standard": ["J"],
    "mmmu_pro_vision": ["B"],
    "charxiv_reasoning": ["9.17", "Joint-CNN"],
    "charxiv_descriptive": ["60", "NCM*, Ours", "1 by 2", "Not Applicable"],
    "aime24": ["23", "5"],
    "aime25": ["23", "5"],
    "amc23": ["27"],
    "gpqa_diamond": ["C"],
    "mucr_cue": ["A"],
    "mars2_vg_rs": ["[[1, 2], [30.5, 40]]"],
}


def imported(name: str, folder: Path) -> list[Sample]:
    rows = RowsConfig(path=str(write_benchmark(name, folder)))
    import_questions(
        BENCHMARKS[name], ImportConfig(rows=rows, out=str(folder / "shards")), count=len(ANSWERS[name])
    )
    return list(read_shards(folder / "shards"))


def read(name: str, number: int = 0, **changes: object) -> Sample:
    """Returns the question of a row with other values, without files; `...` removes a column."""
    fields = fill_columns(name, ROWS[name][number]) | changes
    fields = {column: value for column, value in fields.items() if value is not ...}
    return BENCHMARKS[name].corpus.read(Row(fields=fields, corpus=name, number=0, images=IMAGES.parent))


def question(sample: Sample) -> str:
    return sample.messages[-1].content.replace(IMAGE_MARK, "[image]")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_published_rows_become_questions_in_shards(name: str, tmp_path: Path):
    samples = imported(name, tmp_path)
    assert [sample.answer for sample in samples] == ANSWERS[name]
    assert len({sample.id for sample in samples}) == len(samples)
    for sample in samples:
        assert [m.role for m in sample.messages] == ["system", "user"] and sample.messages[
            0
        ].content == SYSTEM_PROMPT
        assert question(sample).count("[image]") == len(sample.images)
        assert set(sample.images) <= {path.read_bytes() for path in IMAGES.iterdir()}, "untouched"
        right = f"<think>so</think><answer>{sample.answer}</answer>"
        score = BENCHMARKS[name].score or (lambda response, answer: check_answer(response, answer).accuracy)
        assert (
            score(right, sample.answer) == 1.0 and score("<answer>none of it</answer>", sample.answer) == 0.0
        )


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_column_is_named(name: str):
    for column in BENCHMARKS[name].columns:
        with pytest.raises(BadSample, match=rf"(?s)columns {re.escape(column)}: wanted, but saw .*; give "):
            read(name, **{column: ...})


@pytest.mark.parametrize("name", BENCHMARKS)
def test_metric_reads_the_metadata_of_the_questions(name: str, tmp_path: Path):
    """A name that no question has, or a value that fits no group, would leave its number out."""
    from data_pipeline.benchmarks.metrics import QuestionResult

    benchmark = BENCHMARKS[name]
    results = [
        QuestionResult(metadata=sample.metadata, accuracies=(1.0,) * benchmark.n)
        for sample in imported(name, tmp_path)
    ]
    numbers = benchmark.metric(results)
    assert next(iter(numbers.values())) == 1.0
    by = getattr(benchmark.metric, "keywords", {}).get("by", ())
    assert {key.partition("/")[0] for key in numbers if "/" in key} == set(by)
    assert "incomplete_groups" not in numbers


PROMPTS_OF_ROWS = {
    ("mathvista_testmini", 0): "[image]Question: How tall is it? (Unit: m)\n"
    "Hint: Please answer the question requiring a floating-point number with one decimal place and provide the final "
    "value, e.g., 1.2, 1.3, 1.4, at the end.",
    ("mathvista_testmini", 1): "[image]Question: Which is it?\nChoices:\n(A) no\n(B) yes\n"
    "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.",
    (
        "mathvision_testmini",
        0,
    ): '[image]Please solve the problem step by step and put your answer in one "\\boxed{}".'
    "Which one?\n<image1>\nChoices: A. A\nB. B\nC. C\nD. D\nE. E",
    ("wemath_testmini", 2): "[image]Part multi?\nA. 300, 400;B. 400, 300; E. No correct answer",
    ("mmmu_val", 0): "What links [image] and [image]?\nA. [image]\nB. Bosch's\nC. none",
    ("mmmu_pro_vision", 0): "[image]A. x\nB. y\n\nAnswer the question in the image.",
    (
        "charxiv_reasoning",
        0,
    ): "[image]By how much?\n    * Your final answer must be a number with 2 decimal places.",
    ("gpqa_diamond", 0): "Question: Which?\nChoices:\n(A) wrong 3 (B) wrong 1 (C) right (D) wrong 2",
}


@pytest.mark.parametrize(("name", "number"), PROMPTS_OF_ROWS)
def test_prompts_are_as_published(name: str, number: int):
    assert question(read(name, number)) == PROMPTS_OF_ROWS[name, number]


def test_each_name_of_an_image_gets_its_own_image():
    assert read("mmmu_val").images == (CLOCK, TRIANGLE, CLOCK)
    with pytest.raises(BadSample, match=r"image_2: wanted an image, as a text names <image 2>, saw nothing"):
        read("mmmu_val", image_2=None)


def test_charxiv_texts_are_the_authors():
    """Digests of the templates of src/constants.py at 7ebe88f, without blank last lines, which a question loses."""
    prompts = read_json(PROMPTS)
    joined = {
        part: "\0".join("\n    ".join(lines) for lines in prompts[part].values())
        for part in ("reasoning", "descriptive")
    }
    digests = {part: hashlib.sha256(text.encode()).hexdigest()[:16] for part, text in joined.items()}
    assert digests == {"reasoning": "d1f139b69c58f779", "descriptive": "3839587ca6f6c869"}


def test_charxiv_asks_about_the_right_subplot(tmp_path: Path):
    first, _, layout, _ = map(question, imported("charxiv_descriptive", tmp_path))
    assert first.startswith(
        "[image]For the subplot at row 1 and column 2, what is the spatially highest labeled tick"
    )
    assert layout.startswith("[image]What is the layout of the subplots?")
    charts = {sample.metadata["chart"] for sample in imported("charxiv_descriptive", tmp_path / "again")}
    assert len(charts) == 1, "its four questions are resampled together"
    named = read("charxiv_descriptive", descriptive_number=1, subplot_loc="the bottom subplot")
    alone = read("charxiv_descriptive", descriptive_number=1, subplot_row=0, subplot_col=0)
    assert question(named).startswith("[image]For the bottom subplot, what")
    assert question(alone).startswith("[image]For the current plot, what")


REFUSED = [
    (
        "mathvista_testmini",
        {"metadata": {"split": "test"}},
        "metadata.split: wanted one of testmini, saw str 'test'",
    ),
    ("mathvista_testmini", {"precision": 3.0}, "answer_type and precision: wanted"),
    ("mathvision_testmini", {"answer": "F"}, "answer: wanted one of A, B, C, D, E, saw str 'F'"),
    ("mathverse_testmini", {"image": None}, "image: wanted an image, as the version is 'Vision Only'"),
    ("wemath_testmini", {"split": "train"}, "split: wanted one of testmini"),
    ("wemath_testmini", {"key": "2steps_3"}, "key: wanted such as"),
    ("wemath_testmini", {"answer": "AB"}, "answer: wanted one of A, B"),
    ("logicvista", {"answer": ""}, "answer: wanted text, saw an empty one"),
    ("mmmu_val", {"id": "test_Art_3"}, "id: wanted such as validation_"),
    ("mmmu_val", {"options": "['a', open('x')]"}, "options: wanted a list"),
    ("mmmu_pro_standard", {"answer": "K"}, "answer: wanted one of A, B, C, D, E, F, G, H, I, J, saw"),
    ("charxiv_reasoning", {"reasoning_a": None}, "reasoning_a: wanted text"),
    ("charxiv_reasoning", {"reasoning_a_type": 5}, "reasoning_a_type: wanted one of 1, 2, 3, 4"),
    ("aime24", {"answer": "3/4"}, "answer: wanted an integer, saw str '3/4'"),
    ("mars2_vg_rs", {"result": None}, "result: wanted a box"),
    ("mars2_vg_rs", {"result": [[1, 2], [1, 5]]}, "result: wanted a box"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_values_that_are_not_as_published_are_named(name: str, changes: dict, message: str):
    read(name)
    with pytest.raises(BadSample, match=re.escape(message)):
        read(name, **changes)


def test_order_of_choices_is_that_of_the_seed_alone():
    wrong = ["b", "c", "d"]
    first, letter = shuffle_options("a", wrong, "42 question")
    assert (first, letter) == shuffle_options("a", wrong, "42 question")
    assert first["ABCD".index(letter)] == "a" and sorted(first) == ["a", *wrong]
    letters = {shuffle_options("a", wrong, f"42 question {n}")[1] for n in range(40)}
    assert letters == set("ABCD"), "questions have their right choice in all places"


@pytest.mark.parametrize(
    ("response", "iou"),
    [
        ("<think>x</think><answer>[[0, 0], [10, 20]]</answer>", 1.0),
        ('<think>[1, 1, 2, 2]</think><answer>```json\n[{"bbox_2d": [10, 20, 0, 0]}]\n```</answer>', 1.0),
        ('```json\n[\n{"bbox_2d": [0, 0, 10, 10], "label": "x"},\n{"bbox_2d": [0, 0, 10, 20]}\n]\n```', 0.5),
        ("<answer>(0, 0), (10, 40)</answer>", 0.5),
        ("<answer>[20, 30, 40, 50]</answer>", 0.0),
        ("<answer>10 and 20</answer>", 0.0),
        ("<think>[0, 0, 10, 20]", 0.0),
    ],
)
def test_iou_of_the_first_box_of_a_response(response: str, iou: float):
    assert score_box(response, "[[0, 0], [10, 20]]") == iou


def test_boxes_are_read_in_both_forms():
    assert find_box("[5, 6.5, 1, 2]") == find_box("[[1, 2], [5, 6.5]]") == (1, 2, 5, 6.5)
    assert find_box("[1, 2, 3]") is None


def test_docs_table_is_the_registry():
    lines = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|", DOCS.read_text(), re.M)
    told = {name: (dataset, split, revision) for name, dataset, split, revision, _ in lines}
    assert told.keys() == BENCHMARKS.keys()
    for name, (dataset, split, revision) in told.items():
        known = BENCHMARKS[name]
        assert known.dataset in dataset and split.startswith(known.split)
        assert (known.revision or "not pinned")[:7] in revision


def test_read_corpus_takes_a_benchmark_as_itself(tmp_path: Path):
    path = write_benchmark("charxiv_descriptive", tmp_path)
    found = list(read_corpus(BENCHMARKS["charxiv_descriptive"].corpus, RowsConfig(path=str(path))))
    assert [build().metadata["question"] for _, build in found] == [7, 13, 18, 15]
