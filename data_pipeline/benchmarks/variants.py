"""DynaMath and We-Math: questions that only a group of them scores, by metadata `group`.

DynaMath (arXiv 2411.00836): ten variants of each of 501 seed questions. Columns and grouping by `id` are those of
github.com/EvolvingLMMs-Lab/OpenMMReasoner at 67441eb, lmms_eval_tasks/dynamath; the variants as the authors publish
them, DynaMath/DynaMath_Sample, have the same columns but `question_id`, and a file for each variant.
We-Math (arXiv 2407.01284): 525 problems in two or three steps, each asked as a whole and step by step. Columns and
values were seen in github.com/We-Math/We-Math at a57a0e8, data/testmini.json.
"""

from __future__ import annotations

import re

from data_pipeline.benchmarks.benchmark import build_question, check_value
from data_pipeline.errors import column_error
from data_pipeline.sources.rows import Row, label, read_text
from data_pipeline.types import Sample
from data_pipeline.verify.choices import CHOICES

_KEY = re.compile(r"([23])steps_(multi|[123])")


def read_dynamath(row: Row) -> Sample:
    """Reads {id, question, decoded_image, ground_truth} with what describes them; `id` names the seed question."""
    seed = read_text(row, "id")
    variant = label(row, "question_id") or row.file
    return build_question(
        row,
        read_text(row, "question"),
        read_text(row, "ground_truth"),
        images=[row.fields["decoded_image"]],
        row_id="/".join(filter(None, (seed, variant))),
        kind=label(row, "subject"),
        notes={"group": seed, "variant": variant}
        | {name: row.fields.get(name) for name in ("subject", "answer_type", "knowledge_level")},
    )


def read_wemath(row: Row) -> Sample:
    """Reads {ID, split, key, question, option, answer, image_path, knowledge concept}; image_path holds the image."""
    check_value("split", label(row, "split"), ("testmini",), "give that split")
    key = _KEY.fullmatch(read_text(row, "key"))
    if not key or (key[2] != "multi" and key[2] > key[1]):
        raise column_error("key", "such as 2steps_1, 3steps_multi", row.fields["key"], "drop the row")
    answer = read_text(row, "answer")
    check_value("answer", answer, CHOICES[:8])
    return build_question(
        row,
        f"{read_text(row, 'question')}\n{read_text(row, 'option')}",
        answer,
        images=[row.fields["image_path"]],
        row_id=f"{read_text(row, 'ID')}/{key[2]}",
        kind=key[0],
        notes={
            "group": row.fields["ID"],
            "step": key[2],
            "num_steps": int(key[1]),
            "knowledge": row.fields["knowledge concept"],
        },
    )
