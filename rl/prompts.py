"""The stream of questions: endless over epochs, shuffled by (seed, epoch), with a cursor that resumes exactly."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

import numpy as np

from data_pipeline.config import ImageConfig
from data_pipeline.images import load_image
from data_pipeline.shard_index import ShardIndex
from data_pipeline.shards import read_sample
from data_pipeline.types import BadSample, SampleRef
from rl.types import Prompt

log = logging.getLogger(__name__)

MAX_BAD_PROMPTS = 100
"""Unreadable prompts are skipped and counted; past this many, the run stops."""


class PromptStream:
    """Hands out prompts by reference; an epoch asks every question once before any is asked again."""

    def __init__(self, folder: str | Path, *, seed: int, image: ImageConfig) -> None:
        self._folder, self._seed, self._image = Path(folder), seed, image
        self.num_skipped = 0  # unreadable prompts since this process began
        self._refs = ShardIndex.load(folder).refs
        self._epoch, self._position = 0, 0
        self._order = self._shuffle()

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts."""
        prompts = []
        while len(prompts) < count:
            if self._position == len(self._order):
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._shuffle()
            ref = self._refs[self._order[self._position]]
            self._position += 1
            try:
                prompts.append(read_prompt(self._folder, ref, self._image))
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

    def state_dict(self) -> dict[str, int]:
        return {
            "seed": self._seed,
            "num_prompts": len(self._refs),
            "epoch": self._epoch,
            "position": self._position,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: it was taken from other data or with another seed.
        """
        for name, wanted in (("seed", self._seed), ("num_prompts", len(self._refs))):
            if state[name] != wanted:
                raise ValueError(
                    f"the checkpoint's prompts had {name}={state[name]}, this run has {wanted}; resume with the "
                    f"same prompts and seed, or start a new run folder"
                )
        self._epoch, self._position = state["epoch"], state["position"]
        self._order = self._shuffle()

    def _shuffle(self) -> np.ndarray:
        return np.random.default_rng([self._seed, self._epoch]).permutation(len(self._refs))


def read_prompt(folder: Path, ref: SampleRef, image: ImageConfig) -> Prompt:
    """The question that lies at `ref`.

    Raises:
        BadSample: it cannot be read, or one of its images cannot be decoded.
    """
    sample = read_sample(folder, ref)
    for data in sample.images:
        load_image(data, image)
    return Prompt(ref=ref, answer=sample.answer, kind=str(sample.metadata.get("kind", "")))


def read_prompts(folder: str | Path, limit: int = 0, *, image: ImageConfig) -> list[Prompt]:
    """The questions of `folder` in the order of its shards; the first `limit` of them when it is not 0."""
    refs = ShardIndex.load(folder).refs
    return [read_prompt(Path(folder), ref, image) for ref in islice(refs, limit or None)]
