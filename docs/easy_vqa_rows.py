"""Writes easy-VQA as rows for `omr data import questions`: python docs/easy_vqa_rows.py OUT [IMAGES].

The corpus has questions and answers alone. The answers about one training image together say which colour and which
shape it shows, so a response can first say what is seen, then what the question asks for, and then answer:

    <think>a blue rectangle, teal absent</think><answer>yes</answer>            (is no teal shape present?)

OUT/train.jsonl has a response in each row, OUT/test.jsonl (the corpus' own test images) questions alone.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import easy_vqa

COLORS = {"black", "gray", "red", "blue", "green", "yellow", "teal", "brown"}
SHAPES = {"circle", "rectangle", "triangle"}

Question = tuple[str, str, int]
"""Text, answer and number of the image."""


def main(out: Path, images: int) -> None:
    """Writes the questions about the first `images` images of each part."""
    parts = {
        "train": (easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        "test": (easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    }
    for part, (columns, paths) in parts.items():
        questions = [row for row in zip(*columns, strict=True) if row[2] < images]
        (out / part).mkdir(parents=True, exist_ok=True)
        for image in {image for _, _, image in questions}:
            shutil.copyfile(paths[image], out / part / f"{image}.png")
        seen = find_color_and_shape(questions)
        rows = [
            make_row(part, question, seen) for question in questions if part == "test" or question[2] in seen
        ]
        (out / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{len(rows)} rows in {out / part}.jsonl")


def find_color_and_shape(questions: Iterable[Question]) -> dict[int, tuple[str, str]]:
    """Returns what the questions and answers say of each image, where they say both."""
    words = defaultdict[int, set[str]](set)
    for text, answer, image in questions:
        words[image] |= {answer} | (set(text.rstrip("?").split()) if text.startswith("what") else set())
    pairs = {image: (COLORS & found, SHAPES & found) for image, found in words.items()}
    return {image: (c.pop(), s.pop()) for image, (c, s) in pairs.items() if len(c) == len(s) == 1}


def make_row(part: str, question: Question, seen: dict[int, tuple[str, str]]) -> dict[str, str]:
    """Returns a row of `omr data import questions`; training questions get a response."""
    text, answer, image = question
    asked = set(text.rstrip("?").split()) & (COLORS | SHAPES)
    kind = "color" if "color" in text else "shape" if text.startswith("what") else "yes or no"
    row = {"question": text, "answer": answer, "kind": kind, "image": f"{part}/{image}.png"}
    if part == "train":
        thought = "a {} {}".format(*seen[image])
        if kind == "yes or no":
            thought += f", {' '.join(asked)} {'present' if asked <= set(seen[image]) else 'absent'}"
        row["response"] = f"<think>{thought}</think><answer>{answer}</answer>"
    return row


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)
