"""The gallery of rollouts: per step, cards of a question, its images and the responses with their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from data_pipeline.verify.record import ScoredResponse
from launch.report.load import ShownGroup
from launch.report.page import ShownImage, shorten


@dataclass(frozen=True, kw_only=True)
class Card:
    """A question with the best and the worst response; the others are folded away."""

    images: Sequence[ShownImage]
    question: str
    answer: str
    facts: Sequence[str]
    shown: Sequence[ScoredResponse]
    others: Sequence[ScoredResponse]


def gallery(groups: Sequence[ShownGroup]) -> list[tuple[int, list[Card]]]:
    """Returns the cards of each step."""
    return [
        (step, [_card(each) for each in members])
        for step, members in groupby(groups, key=lambda each: each.group.step)
    ]


def _card(each: ShownGroup) -> Card:
    group = each.group
    responses = sorted(group.responses, key=lambda scored: -(scored.reward or 0.0))
    few = len(responses) < 3
    right = sum(scored.accuracy >= 0.5 for scored in responses)
    kind = shorten(responses[0].kind, 60).replace("_", " ")
    facts = [kind, f"policy {group.policy_version}", f"{right} of {len(responses)} right"]
    return Card(
        images=[ShownImage(alt="image")]
        if each.images is None
        else list(map(ShownImage.from_png, each.images)),
        question=group.question,
        answer=responses[0].answer,
        facts=[" · ".join(filter(None, facts)), group.ref.id],
        shown=responses if few else [responses[0], responses[-1]],
        others=[] if few else responses[1:-1],
    )
