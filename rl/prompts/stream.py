"""The stream of prompts: endless over epochs, in the order of the data or easy ones first; its cursor resumes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from data_pipeline.encode.limits import ModelLimits
from data_pipeline.errors import BadSample, ErrorBudget, name_counts
from data_pipeline.loader.order import iterate_draws
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.index import ShardIndex, load_samples
from data_pipeline.shards.survey import warn_of_small_images
from data_pipeline.types import IMAGE_MARK, VIDEO_MARK, Sample, SampleRef
from data_pipeline.verify.check import check_reference
from rl.config import EvalConfig, RLConfig
from rl.prompts.order import iterate_easy_first
from rl.prompts.weights import PassRates
from rl.types import Group, Prompt, Responses, Rollout

log = logging.getLogger(__name__)

Question = tuple[Prompt, BadSample | None]
"""A prompt, and why it cannot be asked, if so."""


class PromptStream:
    """Yields prompts by reference; an epoch asks every question once before any is asked again.

    Of a mixture it asks as many of each source as the mixture says.
    """

    def __init__(self, config: RLConfig) -> None:
        self._config = config
        self._limits = load_prompt_limits(config)
        self._bad = ErrorBudget(
            limit=config.max_bad_samples,
            option="max_bad_samples",
            fix="fix or drop these samples, or raise the limit",
            records="prompts",
        )
        self._index = load_samples(config.shards)
        self._refused: dict[SampleRef, BadSample] = {}  # by an engine, which sees more than the limits
        self._rates = PassRates(self._index, config.seed) if config.prompts.weighted_share else None
        self._chosen = self._draws = 0  # prompts chosen, and rounds in which some were drawn by their weights
        warn_of_small_images(config.shards, config.image)
        self._go_to(0, 0)

    @property
    def skipped(self) -> dict[str, float]:
        """Metrics: prompts that could not be asked since this process began, all and by reason."""
        return name_counts("skipped_prompts", self._bad.counts)

    def ask(
        self, count: int, generate: Callable[[list[Prompt]], Sequence[Responses]]
    ) -> list[tuple[Prompt, tuple[Rollout, ...]]]:
        """Returns `count` prompts, those of choose(), with their rollouts; the next prompts replace those with a fault.

        Raises:
            ValueError: more than `max_bad_samples` are bad, or all of them.
        """
        prompts, asked = self.choose(count), []
        while prompts:
            for prompt, responses in zip(prompts, generate(prompts), strict=True):
                if responses.fault:
                    self.refuse(prompt, responses)
                else:
                    asked.append((prompt, responses.rollouts))
            prompts = self.take(count - len(asked))
        return asked

    def choose(self, count: int) -> list[Prompt]:
        """Returns the next `count` prompts to ask; tell refuse() which of them have a fault.

        With prompts.weighted_share, so many of all that were ever chosen, rounded down, are drawn again from those that
        learn() was told about; fewer where fewer can be.

        Raises:
            ValueError: more than `max_bad_samples` are bad, or all of them.
        """
        share = self._config.prompts.weighted_share
        num_drawn = math.floor((self._chosen + count) * share) - math.floor(self._chosen * share)
        self._chosen += count
        in_order = self.take(count - num_drawn)
        prompts = self._draw(num_drawn, in_order) + in_order
        return prompts + self.take(count - len(prompts))  # where fewer could be drawn

    def choose_again(self, ref: SampleRef) -> Prompt | None:
        """Returns a prompt that was chosen before the run was resumed; None, and counts it, where it cannot be read.

        Raises:
            ValueError: more than `max_bad_samples` are bad.
        """
        try:
            return self._read(ref)
        except BadSample as error:
            self._skip(ref, error)
            return None

    def refuse(self, prompt: Prompt, responses: Responses) -> None:
        """Counts a prompt that an engine found a fault in, and does not choose it again.

        Raises:
            ValueError: more than `max_bad_samples` are bad.
        """
        error = BadSample(responses.fault, responses.detail)
        self._refused[prompt.ref] = error
        self._skip(prompt.ref, error)

    def take(self, count: int) -> list[Prompt]:
        """Returns the next `count` prompts that can be asked, without decoding their images.

        Raises:
            ValueError: more than `max_bad_samples` are bad, or all of them.
        """
        prompts, bad_in_a_row = list[Prompt](), 0
        while len(prompts) < count:
            draw = next(self._order)
            ref, self._epoch, self._position = draw.ref, draw.epoch, draw.position
            self._bad.seen += 1
            try:
                prompts.append(self._read(ref))
                bad_in_a_row = 0
            except BadSample as error:
                self._skip(ref, error)
                bad_in_a_row += 1
            if bad_in_a_row >= 2 * len(self._index):  # a whole epoch, wherever it began
                raise ValueError(
                    f"none of the prompts of shards={self._config.shards} can be asked:\n{self._bad.cases()}\n"
                    "`omr data validate` with --model finds them; fix them, or give others"
                )
        return prompts

    def learn(self, step: int, groups: Sequence[Group]) -> None:
        """Takes over the pass rates of step `step`'s groups, for prompts.weighted_share."""
        if self._rates:
            self._rates.learn(groups)
            if (step + 1) % self._config.prompts.refresh == 0:
                self._rates.refresh()

    def _draw(self, count: int, others: Sequence[Prompt]) -> list[Prompt]:
        """Returns up to `count` prompts by their weights, none of the others that are asked in this round."""
        if not self._rates or not count:
            return []
        self._draws += 1
        questions = [
            read_prompt(self._config.shards, ref, self._limits)
            for ref in self._rates.draw(count, self._draws, [prompt.ref for prompt in others])
        ]
        return [prompt for prompt, error in questions if not error]

    def _read(self, ref: SampleRef) -> Prompt:
        if error := self._refused.get(ref):
            raise BadSample(error.reason, error.args[1])
        prompt, error = read_prompt(self._config.shards, ref, self._limits)
        if error:
            raise error
        return prompt

    def _skip(self, ref: SampleRef, error: BadSample) -> None:
        log.warning("skipped prompt %s: %s", ref.id, error)
        self._bad.add(ref.id, error)

    def state_dict(self) -> dict[str, Any]:
        own = (
            {}
            if self._rates is None
            else {
                "chosen": self._chosen,
                "draws": self._draws,
                **self._rates.state_dict(),
            }
        )
        return {
            "seed": self._config.seed,
            "data": self._index.digest,
            "epoch": self._epoch,
            "position": self._position,
            **own,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
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
        if self._rates:
            self._chosen, self._draws = state.get("chosen", 0), state["draws"]
            self._rates.load_state_dict(state)

    def _go_to(self, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        iterate = iterate_easy_first if self._config.prompts.order == "easy_first" else iterate_draws
        self._order = iterate(self._index, self._config.seed, epoch, position)


def load_prompt_limits(config: RLConfig | EvalConfig) -> ModelLimits:
    """Returns what the model and the engine's settings take as a prompt; at least one token is left to respond."""
    engine = config.engine
    return ModelLimits.from_hf(
        config.model,
        config.image,
        max_tokens=engine.max_model_len - 1,
        max_images=engine.max_images,
        max_videos=engine.max_videos,
        tokens_field="engine.max_model_len - 1",
        images_field="engine.max_images",
        videos_field="engine.max_videos",
    )


def read_prompt(shards: str | Path, ref: SampleRef, limits: ModelLimits) -> Question:
    """Returns the prompt of the sample at `ref`, and why it cannot be asked, if so.

    Of its images only the headers are read: engines decode them. Of a sample that cannot be read, the prompt has
    nothing but its place.
    """
    try:
        sample = read_sample(shards, ref)
    except BadSample as error:
        return Prompt(ref=ref, answer=""), error
    question = next((m.content for m in sample.messages if m.role == "user"), "")
    prompt = Prompt(
        ref=ref,
        answer=sample.answer,
        source=sample.source,
        kind=str(sample.metadata.get("kind", "")),
        question=strip_marks(sample, question),
    )
    try:
        check_reference(sample.answer)
        tokens = limits.tokenize_prompt(sample)
    except BadSample as error:
        return prompt, error
    return replace(prompt, num_tokens=tokens.num_tokens, patches=tokens.patches), None


def strip_marks(sample: Sample, text: str) -> str:
    """Returns a text of the sample without the marks of its images and videos."""
    text = text.replace(VIDEO_MARK, "") if sample.videos else text
    return text.replace(IMAGE_MARK, "").strip()


def read_prompts(shards: str | Path, limits: ModelLimits, limit: int = 0) -> list[Question]:
    """Returns what read_prompt does of all of `shards` in their order, or of the first `limit` when it is not 0.

    Of samples with the same id the first: responses are kept by id.
    """
    found, refs = list(islice(ShardIndex.load(shards), limit or None)), dict[str, SampleRef]()
    for ref in found:
        refs.setdefault(ref.id, ref)
    if again := len(found) - len(refs):
        log.warning(f"{shards}: {again:,} samples have the id of another one, and are not asked again")
    return [read_prompt(shards, ref, limits) for ref in refs.values()]
