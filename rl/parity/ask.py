"""Asks a vLLM engine, in a process of its own, which leaves its device to the trainer."""

from __future__ import annotations

import multiprocessing as mp
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline.encode.processor import pixel_limits, read_image_processor
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from rl.config import RLConfig
from rl.evaluation.run import check_any
from rl.parity.config import EngineParityConfig
from rl.prompts.stream import load_prompt_limits, read_prompts
from rl.rollout.engine import Engine
from rl.types import TrainRollout


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Responses with the engine's logprobs, and the config of the run that they would belong to."""

    config: RLConfig
    rollouts: tuple[TrainRollout, ...]


def ask(config: RLConfig, settings: EngineParityConfig, folder: str) -> Asked:
    """Returns responses to the prompts of `config.shards`, or to drawn ones with images, whose shards go to `folder`.

    Raises:
        ValueError: no prompt can be asked.
    """
    smallest, _ = pixel_limits(read_image_processor(Path(config.model))[1])
    image = replace(
        config.image, min_pixels=max(smallest, config.image.min_pixels)
    )  # the engine would resize them
    config = replace(config, image=image)
    if not config.shards:
        config = replace(config, shards=folder)
        write_shards(digit_samples("test", settings.prompts, config.seed), Path(folder))
    with ProcessPoolExecutor(1, mp_context=mp.get_context("spawn")) as process:
        return process.submit(_ask, config, settings.prompts).result()


def _ask(config: RLConfig, limit: int) -> Asked:
    questions = read_prompts(config.shards, load_prompt_limits(config), limit)
    check_any(config.shards, questions)
    prompts = [prompt for prompt, fault in questions if not fault]
    try:
        engine = Engine(config)
    except ValueError as error:  # pydantic's, which vLLM raises, cannot be sent to another process
        raise ValueError(str(error)) from None
    with closing(engine):
        replies = engine.generate(prompts, config.sampling, 0)
    rollouts = (
        TrainRollout(
            ref=prompt.ref,
            token_ids=rollout.token_ids,
            logprobs=rollout.logprobs,
            versions=rollout.versions,
            routed_experts=rollout.routed_experts,
            advantage=0.0,
            prompt_tokens=prompt.num_tokens,
            prompt_patches=prompt.patches,
        )
        for prompt, responses in zip(prompts, replies, strict=True)
        for rollout in responses.rollouts
    )
    return Asked(config=config, rollouts=tuple(rollouts))
