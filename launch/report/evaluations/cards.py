"""Examples of an evaluation's responses, each beside its question and images, where the shards are there."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from launch.report.page import shorten
from launch.report.samples_page import MAX_TEXT, show_images
from rl.results.stored import StoredEvaluation, read_questions
from rl.types import AskedResponse

Shown = Sequence[tuple[str, AskedResponse]]
"""Responses to one question, each under a title."""


class Gallery(NamedTuple):
    """Cards under a heading."""

    title: str
    intro: str
    cards: Sequence[Mapping[str, object]]


def draw_ids(ids: Sequence[str], count: int, seed: int) -> list[str]:
    """Returns `count` of the ids, drawn by the seed, in their order; all where there are fewer."""
    chosen = random.Random(seed).sample(range(len(ids)), min(count, len(ids)))
    return [ids[number] for number in sorted(chosen)]


def make_cards(evaluation: StoredEvaluation, shown: Mapping[str, Shown]) -> list[dict[str, object]]:
    """Returns what the template shows of these questions: text and images, if the shards can be read, and responses."""
    samples = read_questions(evaluation, shown.keys())
    cards = []
    for name, responses in shown.items():
        sample, first = samples.get(name), evaluation.questions[name][0]
        asked = next((turn.content for turn in sample.messages if turn.role == "user"), "") if sample else ""
        cards.append(
            {
                "images": show_images(sample) if sample else [],
                "question": shorten(asked, MAX_TEXT)
                or "The question cannot be read: its shards are not there.",
                "answer": first.answer,
                "facts": [shorten(first.kind, 60).replace("_", " "), name],
                "shown": responses,
            }
        )
    return cards
