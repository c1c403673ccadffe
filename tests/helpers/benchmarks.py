"""Small files with the published columns of each benchmark; values are made up in the published form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value

from tests.helpers.corpora import CLOCK, IMAGES, TRIANGLE

TEXT, WHOLE, NUMBER = Value("string"), Value("int64"), Value("float64")
SEVEN = {f"image_{number}": Image() for number in range(1, 8)}


def texts(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, TEXT)


MATHVISTA = Features(
    {
        **texts("pid", "question", "image"),
        "decoded_image": Image(),
        "choices": List(TEXT),
        "unit": TEXT,
        "precision": NUMBER,
        **texts("answer", "question_type", "answer_type"),
        "metadata": {
            **texts("category", "context", "grade", "language", "source", "split", "task"),
            "skills": List(TEXT),
        },
        "query": TEXT,
    }
)
MATHVISION = Features(
    {
        **texts("id", "question"),
        "options": List(TEXT),
        "image": TEXT,
        "decoded_image": Image(),
        **texts("answer", "solution"),
        "level": WHOLE,
        "subject": TEXT,
    }
)
MMMU_PRO = Features(
    {
        **texts("id", "question", "options", "explanation"),
        **SEVEN,
        **texts("img_type", "answer", "topic_difficulty", "subject"),
    }
)
CHARXIV = Features(
    {
        "image": Image(),
        **texts("category", "year", "original_figure_path", "original_id", "figure_path"),
        **dict.fromkeys(("num_subplots", "subplot_row", "subplot_col"), WHOLE),
        "subplot_loc": TEXT,
        **{f"descriptive_q{number}": WHOLE for number in range(1, 5)},
        "reasoning_q": TEXT,
        "reasoning_q_source": WHOLE,
        **texts(*(f"descriptive_a{number}" for number in range(1, 5)), "reasoning_a"),
        "reasoning_a_type": WHOLE,
    }
)
PARQUET = {
    "mathvista_testmini": MATHVISTA,
    "mathvision_testmini": MATHVISION,
    "mathvision_test": MATHVISION,
    "mathverse_testmini": Features(
        {
            **texts("sample_index", "problem_index", "problem_version", "question"),
            "image": Image(),
            **texts("answer", "question_type"),
            "metadata": texts("split", "source", "subject", "subfield"),
            **texts("query_wo", "query_cot", "question_for_eval"),
        }
    ),
    "dynamath": Features(
        {
            **texts("id", "question", "image"),
            "decoded_image": Image(),
            **texts("ground_truth", "answer_type", "subject", "knowledge_level", "question_id"),
        }
    ),
    "wemath_testmini": Features(
        {
            **texts("ID", "split", "knowledge concept", "question", "option", "answer"),
            "image_path": Image(),
            "key": TEXT,
            "question number": WHOLE,
            "knowledge concept description": TEXT,
        }
    ),
    "logicvista": Features(
        {
            **texts("id", "question", "answer", "reasoning"),
            **dict.fromkeys(("skill", "broad_capability", "specific_capability"), List(TEXT)),
            **texts("imagesource", "sourcelink", "liscenced"),
            "image": Image(),
        }
    ),
    "mmmu_val": Features(
        {
            **texts("id", "question", "options", "explanation"),
            **SEVEN,
            **texts("img_type", "answer", "topic_difficulty", "question_type", "subfield"),
        }
    ),
    "mmmu_pro_standard": MMMU_PRO,
    "mmmu_pro_vision": Features({"id": TEXT, "image": Image(), **texts("options", "answer", "subject")}),
    "charxiv_reasoning": CHARXIV,
    "charxiv_descriptive": CHARXIV,
    "amc23": Features({"id": WHOLE, **texts("question", "answer", "url")}),
    "mucr_cue": Features(
        {
            **texts("id", "caption_0", "caption_1", "link_id", "cue"),
            "false_cue": List(TEXT),
            **texts("style", "label"),
            "causal_reason": List(TEXT),
            "image_0": Image(),
            "image_1": Image(),
        }
    ),
}
"""Benchmarks published as Parquet; the others are JSON lines, and VG-RS an array."""

_MATHVISTA = {
    "image": "images/1.jpg",
    "decoded_image": TRIANGLE,
    "choices": None,
    "unit": None,
    "precision": None,
    "question_type": "free_form",
    "metadata": {
        "category": "math-targeted-vqa",
        "context": "synthetic scene",
        "grade": "elementary school",
        "language": "english",
        "source": "CLEVR-Math",
        "split": "testmini",
        "task": "math word problem",
        "skills": ["arithmetic reasoning", "numeric commonsense"],
    },
}
_MATHVISION = {"image": "images/1.jpg", "decoded_image": TRIANGLE, "solution": None, "subject": "angle"}
_MATHVERSE = {
    "problem_index": "7",
    "image": TRIANGLE,
    "metadata": {"split": "testmini", "source": "GeoQA", "subject": "Plane Geometry", "subfield": "Angle"},
}
_WEMATH = {"split": "testmini", "knowledge concept": "Angles", "image_path": TRIANGLE}
_LOGICVISTA = {"image": TRIANGLE, "skill": ["inductive"], "broad_capability": ["diagram"]}
_CHART = {
    "image": TRIANGLE,
    "category": "cs",
    "original_id": "2004.10956",
    "reasoning_q_source": 3,
    "num_subplots": 2,
    "subplot_row": 1,
    "subplot_col": 2,
    "descriptive_q1": 7,
    "descriptive_q2": 13,
    "descriptive_q3": 18,
    "descriptive_q4": 15,
    "descriptive_a1": "60",
    "descriptive_a2": "NCM*, Ours",
    "descriptive_a3": "1 by 2",
    "descriptive_a4": "Not Applicable",
}
_MUCR = {
    "id": "12",
    "caption_0": "A boy kicks a ball.",
    "caption_1": "A window is broken.",
    "link_id": "[3,40,7]",
    "cue": "the ball",
    "false_cue": ["the tree", "the dog", "the shoes"],
    "style": "comic",
    "label": "human",
    "causal_reason": ["He hit it."],
    "image_0": TRIANGLE,
    "image_1": CLOCK,
}
_CONTEST = [
    {"id": 60, "problem": "Find $x$ of $x+1=24$.", "solution": "23", "answer": "023"},
    {"id": 61, "problem": "Find $m+n$.", "solution": "5", "answer": "5"},
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "mathvista_testmini": [
        _MATHVISTA
        | {"pid": "1", "question": "How tall is it?", "unit": "m", "precision": 1.0}
        | {"answer": "1.2", "answer_type": "float"},
        _MATHVISTA
        | {"pid": "2", "question": "Which is it?", "choices": ["no", "yes"], "answer": "yes"}
        | {"question_type": "multi_choice", "answer_type": "text"},
    ],
    "mathvision_testmini": [
        _MATHVISION
        | {
            "id": "4",
            "question": "Which one?\n<image1>",
            "options": list("ABCDE"),
            "answer": "D",
            "level": 1,
        },
        _MATHVISION | {"id": "5", "question": "How many?", "options": [], "answer": "12", "level": 3},
    ],
    "mathverse_testmini": [
        _MATHVERSE
        | {"sample_index": "1", "problem_version": "Vision Only", "question_type": "multi-choice"}
        | {"query_wo": "According to the image, answer with the letter.", "answer": "C"},
        _MATHVERSE
        | {"sample_index": "2", "problem_version": "Text Lite", "question_type": "free-form"}
        | {"query_wo": "Question: What is AB?", "answer": "2\\sqrt{3}"},
    ],
    "dynamath": [
        {"id": "1", "question": f"What is {n} / 2?", "image": "images/1.png", "decoded_image": TRIANGLE}
        | {"ground_truth": f"{n / 2:.3f}", "answer_type": "float", "subject": "arithmetic"}
        | {"knowledge_level": "high school", "question_id": f"1-{n}"}
        for n in range(1, 11)
    ],
    "wemath_testmini": [
        _WEMATH
        | {"ID": "2steps_1", "key": f"2steps_{step}", "question": f"Part {step}?", "question number": 1}
        | {"option": "A. 300, 400;B. 400, 300; E. No correct answer", "answer": answer}
        for step, answer in (("1", "A"), ("2", "B"), ("multi", "E"))
    ],
    "logicvista": [
        _LOGICVISTA | {"id": "v1_0", "question": "Which fits (A, B, C or D)?", "answer": "C"},
        _LOGICVISTA | {"id": "v1_1", "question": "Which are green (A-D)?", "answer": "A, C"},
    ],
    "mmmu_val": [
        {"id": "validation_Art_Theory_3", "question": "What links <image 2> and <image 1>?"}
        | {"options": "['<image 2>', \"Bosch's\", 'none']", "image_1": TRIANGLE, "image_2": CLOCK}
        | {"answer": "B", "question_type": "multiple-choice"},
        {"id": "validation_Finance_9", "question": "What is it in <image 1>?", "options": "[]"}
        | {"image_1": TRIANGLE, "answer": "['12', 'twelve']", "question_type": "open"},
    ],
    "mmmu_pro_standard": [
        {"id": "test_History_1", "question": "When? <image 1>", "options": str([f"{n}" for n in range(10)])}
        | {"image_1": TRIANGLE, "answer": "J", "subject": "History"}
    ],
    "mmmu_pro_vision": [
        {
            "id": "test_History_1",
            "image": TRIANGLE,
            "options": "['x', 'y']",
            "answer": "B",
            "subject": "History",
        }
    ],
    "charxiv_reasoning": [
        _CHART | {"reasoning_q": "By how much?", "reasoning_a": "9.17", "reasoning_a_type": 4},
        _CHART | {"reasoning_q": "Which line?", "reasoning_a": "Joint-CNN", "reasoning_a_type": 1},
    ],
    "charxiv_descriptive": [_CHART],
    "aime24": _CONTEST,
    "aime25": _CONTEST,
    "amc23": [{"id": 0, "question": "Cities are 45 miles apart.", "answer": "27.0", "url": "https://aops"}],
    "gpqa_diamond": [
        {"Record ID": "rec06", "Question": "Which?", "Correct Answer": "right", "Subdomain": "Genetics"}
        | {f"Incorrect Answer {number}": f"wrong {number}" for number in (1, 2, 3)}
        | {"High-level domain": "Biology"}
    ],
    "mucr_cue": [_MUCR],
    "mars2_vg_rs": [
        {"image_path": "images\\triangle.png", "question": "A red triangle", "result": [[1, 2], [30.5, 40]]}
    ],
}
ROWS["mathvision_test"] = ROWS["mathvision_testmini"]


def fill_columns(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """Returns the row with all columns of a Parquet file, as it is read from one."""
    return dict.fromkeys(PARQUET.get(name, ())) | row


def write_benchmark(name: str, folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """Writes rows as the benchmark is published; images of VG-RS lie in a folder beside them."""
    rows = ROWS[name] if rows is None else rows
    folder.mkdir(parents=True, exist_ok=True)
    if name in PARQUET:
        path = folder / "rows.parquet"
        Dataset.from_list([fill_columns(name, row) for row in rows], features=PARQUET[name]).to_parquet(path)
        return path
    if name == "mars2_vg_rs":
        shutil.copytree(IMAGES, folder / "images", dirs_exist_ok=True)
        path = folder / "VG-RS-question.json"
        path.write_text(json.dumps(rows))
        return path
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
