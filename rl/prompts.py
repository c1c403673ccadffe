"""The stream of questions: endless over epochs, shuffled by (seed, epoch), with a cursor that resumes exactly."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from data_pipeline.shards import ShardIndex, read_sample
from data_pipeline.types import SampleRef
from rl.types import Prompt


class PromptStream:
    """Hands out prompts by reference; an epoch asks every question once before any is asked again."""

    def __init__(self, folder: str | Path, *, seed: int) -> None:
        self._folder, self._seed = Path(folder), seed
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
            prompts.append(read_prompt(self._folder, self._refs[self._order[self._position]]))
            self._position += 1
        return prompts

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


def read_prompt(folder: Path, ref: SampleRef) -> Prompt:
    """The question that lies at `ref`."""
    sample = read_sample(folder, ref)
    return Prompt(ref=ref, answer=sample.answer, kind=str(sample.metadata.get("kind", "")))


def read_prompts(folder: str | Path, limit: int = 0) -> list[Prompt]:
    """The questions of `folder` in the order of its shards; the first `limit` of them when it is not 0."""
    refs = ShardIndex.load(folder).refs
    return [read_prompt(Path(folder), ref) for ref in islice(refs, limit or None)]
