"""Joins the reference solutions of prompts to their groups: reads them from the shards, encodes and scores them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np

from data_pipeline.encode.limits import ModelLimits
from data_pipeline.errors import BadSample
from data_pipeline.shards.format import read_sample
from data_pipeline.types import Message, Sample, SampleRef
from rl.algorithms.solution import align_solution, build_solution
from rl.config import RLConfig
from rl.rewards.compute import weigh
from rl.rewards.scorer import Scorer
from rl.types import Group, Prompt, Responses, Rollout, Solution

log = logging.getLogger(__name__)

Asked = Sequence[tuple[Prompt, tuple[Rollout, ...]]]


def with_solutions(config: RLConfig, scorer: Scorer) -> Scorer | Solutions:
    """Returns the scorer, or with algorithm.solution what joins the solutions to its groups."""
    return Solutions(config, scorer) if config.algorithm.solution.enabled else scorer


class Solutions:
    """Takes groups from a scorer, each with the solution of its prompt: the response that ends its sample.

    A prompt without one, or with one that is too long, trains without; the first for each reason is logged.
    """

    def __init__(self, config: RLConfig, scorer: Scorer) -> None:
        self._config, self._scorer = config, scorer
        self._limits = ModelLimits.from_hf(
            config.model,
            config.image,
            max_tokens=config.engine.max_model_len,
            tokens_field="engine.max_model_len",
        )
        self._logged = set[str]()  # reasons

    def collect(self, asked: Asked) -> list[Group]:
        """Returns what Scorer.collect does, with solutions."""
        groups = self._scorer.collect(asked)
        solutions = [self._score(group.prompt) if group.rollouts else None for group in groups]
        return [
            self._join(group, solution.result()) if solution else group
            for group, solution in zip(groups, solutions, strict=True)
        ]

    def score(self, prompt: Prompt, responses: Responses, *, max_tokens: int) -> Future[Group]:
        """Does what Scorer.score does, with solutions; reads one from the shards, and waits for nobody."""
        scored = self._scorer.score(prompt, responses, max_tokens=max_tokens)
        solution = self._score(prompt) if responses.rollouts else None
        if solution is None:
            return scored
        joined: Future[Group] = Future()

        def join(_: object) -> None:
            try:
                joined.set_result(self._join(scored.result(), solution.result()))
            except BaseException as error:  # whoever waits shall know, whatever it is
                joined.set_exception(error)

        scored.add_done_callback(lambda _: solution.add_done_callback(join))
        return joined

    def _score(self, prompt: Prompt) -> Future[Group] | None:
        """Begins to score a prompt's solution as a response; None where there is none, or it is too long."""
        try:
            solution = read_solution(self._config, self._limits, prompt.ref)
        except BadSample as error:
            if error.reason not in self._logged:
                log.warning(f"{prompt.ref.id} and its like train without a solution: {error}")
            self._logged.add(error.reason)
            return None
        responses = Responses(rollouts=(solution,))
        return self._scorer.score(prompt, responses, max_tokens=self._config.sampling.max_tokens)

    def _join(self, group: Group, scored: Group) -> Group:
        return replace(group, solution=self._build(group, scored))

    def _build(self, group: Group, scored: Group) -> Solution:
        """Returns the solution with its reward, which is that of `scored` without what the controls take off."""
        (rollout,), (reward,), config = scored.rollouts, scored.rewards, self._config
        right = config.reward.correct_by
        parts = {name: value if name == right else 0.0 for name, value in reward.parts.items()}
        return build_solution(
            rollout.token_ids,
            reward=weigh(parts, config.reward) if config.algorithm.solution.without_format else reward.total,
            accuracy=reward.verdict.accuracy,
            rewards=group.rewards,
            smooth=config.algorithm.solution.smooth,
        )


def read_solution(config: RLConfig, limits: ModelLimits, ref: SampleRef) -> Rollout:
    """Returns the response that ends the sample at `ref` as an engine would have written it, but for logprobs.

    Raises:
        BadSample: there is none, or prompt and response, or the response alone, are longer than an engine's.
    """
    sample = read_sample(config.shards, ref)
    if config.algorithm.solution.align:
        sample = _align(sample)
    _, token_ids = limits.tokenize(sample)
    if len(token_ids) > config.sampling.max_tokens:
        detail = f"{len(token_ids)} tokens, more than sampling.max_tokens={config.sampling.max_tokens}"
        raise BadSample("too_long", detail)
    return Rollout(
        token_ids=np.array(token_ids, np.int32),
        logprobs=np.zeros(0, np.float32),
        response=sample.messages[-1].content,
        finish_reason="stop",
        versions=(),
    )


def _align(sample: Sample) -> Sample:
    """Returns the sample with an aligned response, if it ends in one."""
    *turns, last = sample.messages
    if last.role != "assistant":
        return sample
    aligned = Message(role=last.role, content=align_solution(last.content))
    return replace(sample, messages=(*turns, aligned))
