"""MARS2's grounding track VG-RS (arXiv 2509.14142): the box of what a sentence describes, in pixels of the image.

Questions are {image_path, question}, 22,747 of them (VG-RS-question.json, seen in a participant's repository,
xuetf/ICCV-2025-MARS-ActiveAlphaAgent-Solution at 2334cc5), and a submission adds {result: [[x1, y1], [x2, y2]]}. The
references stay with the challenge's server; participants who have some keep them in `result` too, and so does this
adapter. The prompt is that of the organisers' Qwen2.5-VL baseline, which takes the first box, as pixels.
"""

from __future__ import annotations

import re
from dataclasses import replace

from data_pipeline.benchmarks.benchmark import build_question
from data_pipeline.errors import column_error
from data_pipeline.sources.rows import Row, read_text
from data_pipeline.types import Sample
from data_pipeline.verify.reading import read

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

_PROMPT = (
    "Please provide the bounding box coordinate of the region this sentence describes: {} "
    "and output it in JSON format"
)
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf"[\[(]{_NUMBER},{_NUMBER}[\])]?\s*,\s*[\[(]?{_NUMBER},{_NUMBER}[\])]")


def read_vg_rs(row: Row) -> Sample:
    """Reads {image_path, question, result}; paths are written as on Windows."""
    result = row.fields["result"]
    box = find_box(str(result)) if isinstance(result, (list, tuple)) else None
    if box is None or box[0] == box[2] or box[1] == box[3]:
        raise column_error(
            "result", "a box [[x1, y1], [x2, y2]] of the image", result, "fill it in or drop the row"
        )
    left, top, right, bottom = (f"{number:g}" for number in box)
    place = read_text(row, "image_path").replace("\\", "/")
    return build_question(
        replace(row, fields={**row.fields, "image_path": place}),
        _PROMPT.format(read_text(row, "question")),
        f"[[{left}, {top}], [{right}, {bottom}]]",
        images=[place],
        notes={"image": place},
    )


def find_box(text: str) -> Box | None:
    """Returns the first box of a text, [x1, y1, x2, y2] or [[x1, y1], [x2, y2]], with its corners in order."""
    found = _BOX.search(text)
    if not found:
        return None
    x1, y1, x2, y2 = map(float, found.groups())
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def score_box(response: str, answer: str) -> float:
    """Returns the IoU of the box that a response gives with the reference; 0 without a box.

    >>> score_box("<think>here</think><answer>[0, 0, 10, 10]</answer>", "[[0, 0], [10, 20]]")
    0.5
    """
    said = response.rpartition("</think>")[2].partition("<think>")[0]
    given = find_box(read(response)[0]) or find_box(said)  # without tags `read` sees the last line alone
    wanted = find_box(answer)
    return box_iou(given, wanted) if given and wanted else 0.0


def box_iou(first: Box, second: Box) -> float:
    """Returns the area that two boxes share over the area that they cover."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    covered = _area(first) + _area(second) - shared
    return shared / covered if covered else 0.0


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
