"""The stream of questions: endless over epochs, in the order of data_pipeline/loader/order.py; its cursor resumes."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

from data_pipeline.encode.config import ImageConfig
from data_pipeline.encode.images import load_image
from data_pipeline.errors import BadSample
from data_pipeline.loader.order import draws
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.index import ShardIndex, load_samples
from data_pipeline.types import SampleRef
from rl.types import Prompt

log = logging.getLogger(__name__)

MAX_BAD_PROMPTS = 100
"""Unreadable prompts are skipped and counted; past this many, the run stops."""


class PromptStream:
    """Hands out prompts by reference; an epoch asks every question once before any is asked again.

    Of a mixture it asks as many of each source as the mixture says.
    """

    def __init__(self, place: str | Path, *, seed: int, image: ImageConfig) -> None:
        self._place, self._seed, self._image = place, seed, image
        self.num_skipped = 0  # unreadable prompts since this process began
        self._index = load_samples(place)
        self._go_to(0, 0)

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts."""
        prompts = []
        while len(prompts) < count:
            ref, _, self._epoch, self._position = next(self._order)
            try:
                prompts.append(read_prompt(self._place, ref, self._image))
            except BadSample as error:
                self._skip(ref, error)
        return prompts

    def _skip(self, ref: SampleRef, error: BadSample) -> None:
        self.num_skipped += 1
        log.warning("skipped prompt %s: %s", ref.id, error)
        if self.num_skipped > MAX_BAD_PROMPTS:
            raise ValueError(
                f"more than {MAX_BAD_PROMPTS} prompts are bad, the last one {ref.id}: {error}; mend the data"
            )

    def state_dict(self) -> dict[str, int | str]:
        return {
            "seed": self._seed,
            "data": self._index.digest,
            "epoch": self._epoch,
            "position": self._position,
        }

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: it was taken from other data or with another seed.
        """
        for name, wanted in (("seed", self._seed), ("data", self._index.digest)):
            if state[name] != wanted:
                raise ValueError(
                    f"the checkpoint's prompts had {name}={state[name]}, this run has {wanted}; resume with the "
                    f"same prompts and seed, or start a new run folder"
                )
        self._go_to(int(state["epoch"]), int(state["position"]))

    def _go_to(self, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        self._order = draws(self._index, self._seed, epoch, position)


def read_prompt(place: str | Path, ref: SampleRef, image: ImageConfig) -> Prompt:
    """The question that lies at `ref`.

    Raises:
        BadSample: it cannot be read, or one of its images cannot be decoded.
    """
    sample = read_sample(place, ref)
    for data in sample.images:
        load_image(data, image)
    return Prompt(ref=ref, answer=sample.answer, kind=str(sample.metadata.get("kind", "")))


def read_prompts(place: str | Path, limit: int = 0, *, image: ImageConfig) -> list[Prompt]:
    """The questions of `place` in the order of its shards; the first `limit` of them when it is not 0."""
    refs = ShardIndex.load(place).refs
    return [read_prompt(place, ref, image) for ref in islice(refs, limit or None)]
