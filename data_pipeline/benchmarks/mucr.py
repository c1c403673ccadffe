"""MuCR (arXiv 2408.08105): a cause in one image, its effect in another; here its choice of the cue that links them.

Columns as in github.com/Zhiyuan-Li-John/MuCR at c8a3673, README.md. The published prompt was not found, so the one
here is ours, and so is the order of the choices. The choice among images needs rows that others name (`link_id`), and
explanations need a judge; neither is read.
"""

from __future__ import annotations

from data_pipeline.benchmarks.benchmark import build_question, list_options, read_options, shuffle_options
from data_pipeline.sources.rows import Row, label, read_text
from data_pipeline.types import IMAGE_MARK, Sample

MUCR_SEED = 42
_PROMPT = (
    "The first image shows a cause, the second image its effect. "
    "Which of these phrases names the cue that links them?"
)


def read_mucr(row: Row) -> Sample:
    """Reads {id, image_0, image_1, cue, false_cue, style, label}."""
    name, cue = label(row, "id"), read_text(row, "cue")
    options, letter = shuffle_options(
        cue, read_options("false_cue", row.fields["false_cue"]), f"{MUCR_SEED} {name}"
    )
    return build_question(
        row,
        f"Cause: {IMAGE_MARK}\nEffect: {IMAGE_MARK}\n{_PROMPT}\n{list_options(options)}",
        letter,
        images=[row.fields["image_0"], row.fields["image_1"]],
        row_id=name,
        kind=label(row, "label"),
        notes={"category": row.fields.get("label"), "style": row.fields.get("style")},
    )
