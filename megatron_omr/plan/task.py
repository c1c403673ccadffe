"""What the planner is asked: the work of an optimizer step, and a layout. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

from megatron_omr.config import ComputeConfig, ParallelConfig, Part
from megatron_omr.dtypes import Precision
from megatron_omr.model.stages import split_layers
from megatron_omr.model_config import ModelConfig
from megatron_omr.plan.engines import EngineTask
from megatron_omr.plan.weights import Chunk


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the model lies on the ranks, and what the backward pass computes again."""

    parallel: ParallelConfig
    compute: ComputeConfig

    def describe(self) -> str:
        p = self.parallel
        degrees = [f"tp{p.tp}" + "+sp" * p.sp] + [
            f"{name}{value}"
            for name, value in (("pp", p.pp), ("vp", p.vp), ("cp", p.cp), ("ep", p.ep), ("etp", p.etp))
            if value > (name != "etp")
        ]
        return " ".join(degrees)

    def fp8_layers(self, model: ModelConfig) -> int:
        """Returns the layers of the language model whose linear layers compute in FP8."""
        compute = self.compute
        return 0 if compute.fp8 == "off" else model.num_layers - 2 * compute.fp8_bf16_layers


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """All micro-batches of one optimizer step, over all ranks."""

    samples: float
    tokens: float
    effective_length: (
        float  # sum of squares of the lengths over their sum: attention costs as with this one length
    )
    image_side: int  # patches
    images: float

    @property
    def patches(self) -> float:
        return self.images * self.image_side**2


def count_work(
    *,
    samples: float,
    response: tuple[float, float],
    question: float,
    image_pixels: int,
    images: float,
    token_side: int,
) -> StepWork:
    """Returns the work of samples with `images` each, whose responses have this mean and standard deviation.

    Args:
        token_side: pixels of an image token's side.
    """
    side = max(2, round(image_pixels**0.5 / token_side) * 2)
    mean = question + images * side**2 / 4 + response[0]
    return StepWork(
        samples=samples,
        tokens=samples * mean,
        effective_length=(mean**2 + response[1] ** 2) / mean,
        image_side=side,
        images=samples * images,
    )


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a recipe trains, as far as memory and time depend on it."""

    name: str
    model: ModelConfig
    precision: Precision
    freeze: tuple[Part, ...]
    pack_tokens: int  # most tokens of a micro-batch
    max_pixels: int  # of one image
    work: StepWork
    with_entropy: bool
    steps: int  # of the whole run
    num_updates: int = 1  # optimizer steps that divide the work
    engine: EngineTask | None = None
    reference: Literal["none", "host", "device"] = "none"  # where that of a KL penalty waits

    @property
    def engine_gpus(self) -> int:
        """GPUs beside the trainer's."""
        return self.engine.num_gpus if self.engine else 0

    @property
    def element(self) -> int:
        return 4 if self.precision == "fp32" else 2


@cache
def list_chunks(model: ModelConfig, parallel: ParallelConfig) -> tuple[tuple[Chunk, ...], ...]:
    """Returns the model chunks of each pipeline stage, with the layers that training gives them."""
    last = parallel.num_chunks - 1
    chunks = [
        Chunk(num_layers=number, first=index == 0, last=index == last)
        for index, number in enumerate(split_layers(model, parallel))
    ]
    return tuple(tuple(chunks[stage :: parallel.pp]) for stage in range(parallel.pp))


def padded_tokens(task: Task, parallel: ParallelConfig) -> float:
    """Returns the tokens of an optimizer step with what pads each sequence to the layout's multiple."""
    return task.work.tokens + task.work.samples * (parallel.sequence_multiple - 1) / 2


def count_micro_batches(task: Task, parallel: ParallelConfig, dp: int) -> int:
    """Returns the packs of one data-parallel rank in an optimizer step, filled to 98 %.

    Interleaved stages take them in rounds of pp; the blank ones that fill the last round are not counted.
    """
    tokens = padded_tokens(task, parallel) / task.num_updates / dp
    return max(1, math.ceil(tokens / (0.98 * task.pack_tokens) - 1e-9))
