"""The memory that `omr plan` gives a step of the GPU benchmark, to set beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from data_pipeline.types import Example
from megatron_omr.config import ComputeConfig, ParallelConfig
from megatron_omr.dtypes import Precision
from megatron_omr.model_config import ModelConfig
from megatron_omr.plan.config import AssumeConfig
from megatron_omr.plan.memory import plan_memory
from megatron_omr.plan.task import Layout, StepWork, Task


def plan_step(
    model: ModelConfig, compute: ComputeConfig, samples: Sequence[Example], precision: Precision
) -> dict[str, float]:
    """Returns GiB by part, and in all, for one pack of `samples` on one GPU; the allocator's peak has no reserve."""
    lengths = [len(sample) for sample in samples]
    grids = [grid for sample in samples for grid in sample.image_grid_thw.tolist()]
    side = max((rows for _, rows, _ in grids), default=0)
    work = StepWork(
        samples=len(samples),
        tokens=sum(lengths),
        effective_length=sum(n * n for n in lengths) / sum(lengths),
        image_side=side,
        images=len(grids),
    )
    task = Task(
        name="gpu_train",
        model=model,
        precision=precision,
        freeze=(),
        pack_tokens=sum(lengths),
        max_pixels=(side * model.vision.patch_size) ** 2,
        work=work,
        steps=1,
        with_entropy=False,
    )
    image_tokens = work.patches / model.vision.spatial_merge_size**2
    assume = AssumeConfig(max_image_share=image_tokens / work.tokens, reserve_gib=0.0)
    (parts,) = plan_memory(task, Layout(parallel=ParallelConfig(), compute=compute), dp=1, assume=assume)
    return {name: value / 2**30 for name, value in (asdict(parts) | {"total": parts.total}).items()}
