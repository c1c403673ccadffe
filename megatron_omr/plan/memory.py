"""Adds up the memory of each pipeline stage, by part. Pure arithmetic; nothing is built.

All ranks of a stage hold the same, but for rounding. What is exact, what is assumed: docs/plan.md.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

from megatron_omr.config import ParallelConfig
from megatron_omr.model_config import ModelConfig
from megatron_omr.plan.activations import (
    Layer,
    count_in_flight,
    language_layer,
    saved_by_embedding,
    saved_by_features,
    saved_by_head,
    saved_by_layers,
    saved_by_tower,
    vision_layer,
)
from megatron_omr.plan.config import AssumeConfig
from megatron_omr.plan.gpus import GIB, Gpu
from megatron_omr.plan.task import Layout, Task, count_micro_batches, list_chunks
from megatron_omr.plan.weights import (
    Chunk,
    StaticBytes,
    count_static,
    list_own,
    list_parameters,
    overlap_bucket_size,
)

_LOGITS_CHUNK = 256 << 20  # bytes of logits in float32 that a GPU works on at once (cpu.logits_chunk_bytes)
_FLOAT_PATCH = 4 * 2  # bytes of a patch's bytes normalised, in float32 and for both frames


@dataclass(frozen=True, kw_only=True)
class MemoryParts:
    """Bytes of one rank at its peak."""

    weights: float  # with those of a reference on the GPU
    gradients: float
    optimizer: float
    activations: float  # of the language model, of all micro-batches in flight
    tower: float  # the same of the vision tower
    logits: float  # logits, their gradient and a chunk in float32
    working: float  # the layer that is computed again or differentiated
    buffers: float  # embeddings, pixels, what stages send each other
    reserve: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


def plan_memory(task: Task, layout: Layout, *, dp: int, assume: AssumeConfig) -> list[MemoryParts]:
    """Returns the bytes of a rank of each pipeline stage, at its peak."""
    stages = list_chunks(task.model, layout.parallel)
    return [_plan_stage(task, layout, chunks, stage, dp, assume) for stage, chunks in enumerate(stages)]


def _plan_stage(
    task: Task, layout: Layout, chunks: tuple[Chunk, ...], stage: int, dp: int, assume: AssumeConfig
) -> MemoryParts:
    model, parallel, compute, e = task.model, layout.parallel, layout.compute, task.element
    has_tower, has_head = any(c.first for c in chunks), any(c.last for c in chunks)
    tokens = task.pack_tokens / parallel.cp
    most, usual = count_patches(task, assume, cp=parallel.cp) if has_tower else (0.0, 0.0)
    fused = {"fused_rotary": compute.backend != "local"}
    layer = language_layer(model, tp=parallel.tp, sp=parallel.sp, **fused)
    tower_layer = vision_layer(model, tp=parallel.tp, **fused)
    language = [tokens * _language_bytes(task, layout, layer, chunk) for chunk in chunks]
    tower = saved_by_tower(model, e, compute.recompute_vision, tp=parallel.tp, freeze=task.freeze, **fused)
    held = count_in_flight(
        [size + usual * tower * chunk.first for size, chunk in zip(language, chunks, strict=True)],
        stage=stage,
        pp=parallel.pp,
        num_micro_batches=_rounded(count_micro_batches(task, parallel, dp), parallel),
    )
    patches = most + (held[0] - 1) * usual  # of the packs in flight
    static = _static(task, parallel, dp, chunks)
    logits = _logits(task, layout, tokens)
    hidden = tokens * model.hidden_size * e
    # the embeddings of the whole pack: looked up, with the images, this rank's own
    patch = model.family.patches.num_bytes
    inputs = 3 * hidden * parallel.cp + patches * parallel.cp * patch + most * _FLOAT_PATCH * patch
    inputs += (
        model.vision.num_levels * hidden * (1 + parallel.cp)
    )  # features: of the whole pack, and of this rank
    return MemoryParts(
        weights=static.weights + (static.reference if task.reference == "device" else 0),
        gradients=static.gradients,
        optimizer=static.optimizer,
        activations=sum(n * size for n, size in zip(held, language, strict=True)),
        tower=patches * tower,
        logits=logits * has_head,
        working=max(
            tokens * _working(layer, compute.recompute, e),
            most * _working(tower_layer, compute.recompute_vision, e),
        ),
        buffers=inputs * has_tower
        + (4 * hidden / layer.shards if parallel.pp > 1 else 0.0)
        + _fp8_copies(task.model, layout, sum(c.num_layers for c in chunks)),
        reserve=_reserve(task, assume),
    )


def _logits(task: Task, layout: Layout, tokens: float) -> float:
    """Returns the bytes of the logits, their gradient and chunks in float32, and of a head in float32 with its own."""
    columns, in_fp32 = task.model.vocab_size / layout.parallel.tp, layout.compute.fp32_head
    head = 2 * 4 * columns * task.model.hidden_size if in_fp32 else 0.0
    each = 4 if in_fp32 else task.element
    return tokens * columns * 2 * each + head + (1 + task.with_entropy) * _LOGITS_CHUNK


def _reserve(task: Task, assume: AssumeConfig) -> float:
    """Returns the bytes of a GPU for what is not counted: also for what an engine leaves there while it sleeps."""
    takes_turns = task.engine is not None and task.engine.takes_turns
    return (assume.reserve_gib + takes_turns * assume.engine_gib) * GIB


def _fp8_copies(model: ModelConfig, layout: Layout, num_layers: int) -> float:
    """Returns the bytes of the weights in FP8 and of their transposes, which Transformer Engine keeps by reading."""
    layer = Chunk(num_layers=1, first=False, last=False)
    size = sum(p.size for p in list_parameters(model, layer, tp=layout.parallel.tp, pp=2))
    return 2 * size * num_layers * layout.fp8_layers(model) / model.num_layers


def _rounded(count: int, parallel: ParallelConfig) -> int:
    """Returns the micro-batches with the blank ones that fill the rounds of interleaved stages."""
    return count if parallel.vp == 1 else -(-count // parallel.pp) * parallel.pp


@cache
def _static(task: Task, parallel: ParallelConfig, dp: int, chunks: tuple[Chunk, ...]) -> StaticBytes:
    return count_static(
        [list_own(task.model, chunk, parallel) for chunk in chunks],
        element=task.element,
        num_shards=dp * parallel.cp,
        num_expert_shards=max(1, dp * parallel.cp * parallel.tp // (parallel.ep * parallel.expert_tp)),
        freeze=task.freeze,
        bucket_size=overlap_bucket_size(dp) if parallel.overlap else None,
    )


def _language_bytes(task: Task, layout: Layout, layer: Layer, chunk: Chunk) -> float:
    """Returns the bytes a token that a chunk keeps of the language model."""
    parallel, compute, e = layout.parallel, layout.compute, task.element
    gathers = compute.backend == "local" and parallel.cp > 1
    gathered = parallel.cp if gathers else 1
    total = saved_by_layers(layer, chunk.num_layers, e, compute.recompute, gathered=gathered)
    if gathers and compute.recompute != "full":  # masks of each sequence's own rows and all of its keys
        total += chunk.num_layers * task.work.effective_length * e
    if chunk.first:
        total += saved_by_embedding(tp=parallel.tp, cp=parallel.cp, images=True)
        total += saved_by_features(task.model, e, compute.recompute, shards=layer.shards)
    return total + saved_by_head(task.model, e, shards=layer.shards) * chunk.last


def _working(layer: Layer, recompute: str, element: int) -> float:
    """Returns the bytes a token of what a layer computes again, and of the gradients inside its MLP."""
    again = layer.saved(element, "none") - layer.saved(element, "mlp" if recompute == "mlp" else "none")
    if recompute == "full":
        again = layer.saved(element, "none")
    return again + (3 * layer.ffn + 2 * layer.hidden) * max(1, layer.chosen) * element


def count_patches(task: Task, assume: AssumeConfig, *, cp: int) -> tuple[float, float]:
    """Returns the patches of a rank in a pack with many images, at least the largest one's, and in a usual pack."""
    vision = task.model.vision
    largest = task.max_pixels / vision.patch_size**2
    share = assume.max_image_share * task.pack_tokens * vision.spatial_merge_size**2
    usual = task.work.patches / task.work.tokens * task.pack_tokens / cp
    return max(share / cp, largest, usual), usual


def find_problem(stages: list[MemoryParts], gpu: Gpu) -> str:
    """Returns why the fullest stage does not fit the GPU, and what takes most of it; empty where all fit."""
    worst = max(range(len(stages)), key=lambda stage: stages[stage].total)
    parts = stages[worst]
    over = parts.total / GIB - gpu.memory_gib
    if over <= 0:
        return ""
    sizes = {field.name: getattr(parts, field.name) for field in fields(parts)}
    largest = max(sizes, key=sizes.__getitem__)
    where = f"stage {worst} " if len(stages) > 1 else ""
    return f"{where}needs {over:.1f} GiB more; most of it: {largest}, {sizes[largest] / GIB:.1f}"
