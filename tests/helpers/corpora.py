"""Writes small files with exactly the published schema of each corpus, from the rows in fixtures/corpora."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value

from data_pipeline.sources.rows import Row

FIXTURES = Path(__file__).parents[1] / "fixtures" / "corpora"
IMAGES = FIXTURES / "images"
TRIANGLE, CLOCK = (IMAGES / "triangle.png").read_bytes(), (IMAGES / "clock.jpg").read_bytes()

TEXT, NUMBER, WHOLE = Value("string"), Value("float64"), Value("int64")
TURNS = List({"role": TEXT, "content": TEXT})
PROMPTS = Features(
    {
        "data_source": TEXT,
        "prompt": TURNS,
        "images": List(Image()),
        "ability": TEXT,
        "reward_model": {"ground_truth": TEXT, "style": TEXT},
        "tokens": WHOLE,
        "ids": WHOLE,
        "avg_reward": NUMBER,
    }
)
PART = {"type": TEXT, "text": TEXT, "image_url": {"url": TEXT}}
QA = {"question": TEXT, "answer": TEXT, "image": Image()}

PARQUET = {
    "openvlthinker": Features({"messages": TURNS, "images": List(Image())}),
    "miromind_m1": Features({"id": TEXT, "question": TEXT, "response": TEXT}),
    "openmmreasoner_sft": Features({"id": TEXT, "messages": List({"role": TEXT, "content": List(PART)})}),
    "mmfinereason": Features(
        {
            **dict.fromkeys(("source", "id", "original_answer"), TEXT),
            **QA,
            **dict.fromkeys(("caption", "qwen3vl_235b_thinking_response"), TEXT),
            "pass_rate": NUMBER,
            "is_consistent": Value("bool"),
            "consistency_analysis": TEXT,
            "ori_question": TEXT,
        }
    ),
    "openmmreasoner_rl": PROMPTS,
    "prompts": PROMPTS,
    "mmk12": Features({"id": TEXT, "question": TEXT, "answer": TEXT, "subject": TEXT, "image": Image()}),
    "thinklite_hard": Features({"id": TEXT, "problem": TEXT, "answer": TEXT, "image": Value("binary")}),
    "virl39k": Features(
        {
            **dict.fromkeys(("qid", "question", "answer"), TEXT),
            "PassRate_32BTrained": NUMBER,
            "PassRate_7BBase": NUMBER,
            **dict.fromkeys(("category", "source"), TEXT),
            "image": List(TEXT),
        }
    ),
    "we_math_standard": Features(QA),
    "we_math_pro": Features(
        {
            **dict.fromkeys(("idx", "question_id", "difficulty"), TEXT),
            "knowledge points": List(TEXT),
            **QA,
        }
    ),
}
"""Corpora published as Parquet, with their columns."""
ARRAYS = ("mmr1", "tqa")
"""Corpora published as a JSON array; the others are JSON lines."""


def make_row(**fields: object) -> Row:
    """A row of your own data, with the fixtures' images."""
    return Row(fields=fields, corpus="mine", number=3, images=IMAGES)


def question_rows(count: int) -> list[dict[str, Any]]:
    """Rows that the adapter `questions` reads."""
    return [{"id": f"q{n}", "question": f"What is {n} + 1?", "answer": n + 1} for n in range(count)]


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fixture_rows(corpus: str) -> list[dict[str, Any]]:
    lines = (FIXTURES / f"{corpus}.jsonl").read_text().splitlines()
    return [_with_bytes(json.loads(line)) for line in lines]


def write_corpus(corpus: str, folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """Writes the rows as the corpus is published; images that rows name by path lie in fixtures/corpora."""
    rows = fixture_rows(corpus) if rows is None else rows
    if corpus in PARQUET:
        path = folder / f"{corpus}.parquet"
        Dataset.from_list(rows, features=PARQUET[corpus]).to_parquet(path)
    elif corpus in ARRAYS:
        path = folder / f"{corpus}.json"
        path.write_text(json.dumps(rows, indent=2))
    else:
        path = write_jsonl(folder / f"{corpus}.jsonl", rows)
    return path


def _with_bytes(value: Any) -> Any:
    """Returns the value with {"$bytes": name} replaced by the bytes of that image."""
    if isinstance(value, dict) and "$bytes" in value:
        return (IMAGES / value["$bytes"]).read_bytes()
    if isinstance(value, dict):
        return {key: _with_bytes(item) for key, item in value.items()}
    return [_with_bytes(item) for item in value] if isinstance(value, list) else value
