"""The stream of prompts: endless over epochs, in the order of data_pipeline/loader/order.py; its cursor resumes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from data_pipeline.encode.config import ImageConfig
from data_pipeline.encode.image_header import image_size
from data_pipeline.encode.images import final_size
from data_pipeline.errors import BadSample, ErrorBudget
from data_pipeline.loader.order import iterate_draws
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.index import ShardIndex, load_samples
from data_pipeline.types import IMAGE_MARK, SampleRef
from data_pipeline.verify.check import check_reference
from rl.config import RLConfig
from rl.types import Prompt, Responses, Rollout

log = logging.getLogger(__name__)


class PromptStream:
    """Yields prompts by reference; an epoch asks every question once before any is asked again.

    Of a mixture it asks as many of each source as the mixture says.
    """

    def __init__(self, config: RLConfig) -> None:
        self._config = config
        self._bad = ErrorBudget(
            limit=config.max_bad_samples,
            option="max_bad_samples",
            fix="fix or drop these samples, or raise the limit",
            records="prompts",
        )
        self._index = load_samples(config.shards)
        self._go_to(0, 0)

    @property
    def num_skipped(self) -> int:
        """Prompts that could not be asked, since this process began."""
        return self._bad.total

    def ask(
        self, generate: Callable[[list[Prompt]], Sequence[Responses]]
    ) -> list[tuple[Prompt, tuple[Rollout, ...]]]:
        """Returns the prompts of one step with their rollouts; the next prompts replace those with a fault.

        Raises:
            ValueError: more than `max_bad_samples` are bad.
        """
        asked = []
        while missing := self._config.prompts_per_step - len(asked):
            prompts = self.take(missing)
            for prompt, responses in zip(prompts, generate(prompts), strict=True):
                if responses.fault:
                    self._skip(prompt.ref, BadSample(responses.fault, responses.detail))
                else:
                    asked.append((prompt, responses.rollouts))
        return asked

    def take(self, count: int) -> list[Prompt]:
        """Returns the next `count` prompts that can be read, without decoding their images.

        Raises:
            ValueError: more than `max_bad_samples` are bad.
        """
        prompts = []
        while len(prompts) < count:
            ref, _, self._epoch, self._position = next(self._order)
            self._bad.seen += 1
            try:
                prompts.append(read_prompt(self._config.shards, ref, self._config.image))
            except BadSample as error:
                self._skip(ref, error)
        return prompts

    def _skip(self, ref: SampleRef, error: BadSample) -> None:
        log.warning("skipped prompt %s: %s", ref.id, error)
        self._bad.add(ref.id, error)

    def state_dict(self) -> dict[str, int | str]:
        return {
            "seed": self._config.seed,
            "data": self._index.digest,
            "epoch": self._epoch,
            "position": self._position,
        }

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Continues where `state` was taken.

        Raises:
            ValueError: it was taken from other data or with another seed.
        """
        for name, wanted in (("seed", self._config.seed), ("data", self._index.digest)):
            if state[name] != wanted:
                raise ValueError(
                    f"the checkpoint's prompts had {name}={state[name]}, this run has {wanted}; resume with the "
                    f"same shards and seed, or start a new run folder"
                )
        self._go_to(int(state["epoch"]), int(state["position"]))

    def _go_to(self, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        self._order = iterate_draws(self._index, self._config.seed, epoch, position)


def read_prompt(shards: str | Path, ref: SampleRef, image: ImageConfig) -> Prompt:
    """Returns the prompt of the sample at `ref`. Of its images only the headers are read: engines decode them.

    Raises:
        BadSample: it cannot be read, holds a file that is no image or whose size does not fit `image`,
            or has no reference answer.
    """
    sample = read_sample(shards, ref)
    check_reference(sample.answer)
    for data in sample.images:
        final_size(*image_size(data), image)
    question = next((m.content for m in sample.messages if m.role == "user"), "")
    return Prompt(
        ref=ref,
        answer=sample.answer,
        source=sample.source,
        kind=str(sample.metadata.get("kind", "")),
        question=question.replace(IMAGE_MARK, "").strip(),
    )


def read_prompts(shards: str | Path, limit: int = 0, *, image: ImageConfig) -> list[Prompt]:
    """Returns the prompts of `shards` in their order; the first `limit` of them when it is not 0.

    Raises:
        ValueError: one cannot be read; names it.
    """
    prompts = []
    for ref in islice(ShardIndex.load(shards), limit or None):
        try:
            prompts.append(read_prompt(shards, ref, image))
        except BadSample as error:
            raise build_question_error(ref, error) from error
    return prompts


def build_question_error(ref: SampleRef, error: BadSample) -> ValueError:
    """Returns the error of an evaluation that meets a bad sample: scores on other questions do not compare."""
    return ValueError(f"question {ref.id} cannot be asked: {error}; fix it, or drop it for all models")
