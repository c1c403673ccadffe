"""The gallery of rollouts: cards with a question's images, its answers and their reward parts.

Everything on a card came from a model or from data and is escaped here.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from itertools import groupby

from PIL import Image

from data_pipeline.types import IMAGE_MARK
from launch.report.charts import format_number
from launch.report.load import Answer, AnswerGroup

IMAGE_SIDE = 168
"""Longest side of a shown image, in CSS pixels; tiny images grow to it, at most threefold."""


def gallery(groups: Sequence[AnswerGroup]) -> str:
    """Cards under a heading per step; empty without groups."""
    blocks = []
    for step, members in groupby(groups, key=lambda group: group.step):
        blocks.append(f'<h3>Step {step}</h3><div class="cards">{"".join(map(_card, members))}</div>')
    return "".join(blocks)


def _card(group: AnswerGroup) -> str:
    answers = sorted(group.answers, key=lambda answer: -answer.reward)
    shown, rest = (answers, []) if len(answers) < 3 else ([answers[0], answers[-1]], answers[1:-1])
    more = (
        f"<details><summary>{len(rest)} more</summary>{''.join(map(_answer, rest))}</details>" if rest else ""
    )
    question = question_html(group.question)
    right = sum(answer.accuracy >= 0.5 for answer in answers)
    facts = [
        group.kind.replace("_", " "),
        f"policy {group.policy_version}",
        f"{right} of {len(answers)} right",
    ]
    return (
        f'<article class="card"><div class="ask">{_images(group)}<div><p class="question">{question}</p>'
        f"<div>Answer: <strong>{escape(group.reference)}</strong></div>"
        f'<div class="meta">{escape(" · ".join(filter(None, facts)))}</div>'
        f'<div class="meta">{escape(group.ref.id)}</div></div></div>'
        f"{''.join(map(_answer, shown))}{more}</article>"
    )


def question_html(text: str) -> str:
    """A user's text, escaped, with its image marks as small labels; the images stand before it anyway."""
    text = re.sub(rf"^(\s*{IMAGE_MARK})+", "", text).strip()
    return escape(text).replace(escape(IMAGE_MARK), '<span class="mark">image</span> ')


def _images(group: AnswerGroup) -> str:
    if group.images is None:
        return '<div class="lost">image not<br>readable</div>'
    return f'<div class="images">{"".join(map(image_html, group.images))}</div>'


def image_html(data: bytes, alt: str = "image of the question") -> str:
    """A PNG file as an image of the page."""
    with Image.open(io.BytesIO(data)) as header:
        width, height = header.size
    scale = min(3.0, IMAGE_SIDE / max(width, height))
    size = f'width="{max(1, round(width * scale))}" height="{max(1, round(height * scale))}"'
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return f'<img {size} alt="{escape(alt)}" src="{source}">'


def _answer(answer: Answer) -> str:
    kind, word = ("answer right", "right") if answer.accuracy >= 0.5 else ("answer", "wrong")
    text = re.sub(r"&lt;/?(?:think|answer)&gt;", lambda tag: f"<i>{tag[0]}</i>", escape(answer.text))
    score = f"reward {format_number(answer.reward)}: accuracy {answer.accuracy:g}, format {answer.format:g}"
    read = f"read as “{answer.extracted}”" if answer.extracted else "no answer found"
    by = f" by {answer.decided_by}" if answer.decided_by not in ("", "none") else ""
    facts = [read + by, f"{answer.length} tokens", "cut off" if answer.finish_reason == "length" else ""]
    meta = escape(" · ".join(filter(None, facts)))
    return (
        f'<div class="{kind}"><b>{word}</b> {escape(score)}<p>{text}</p><div class="meta">{meta}</div></div>'
    )
