"""Lists the parameters of a pipeline stage, and sizes the buffers that Megatron makes of them. Pure arithmetic.

A model chunk's trained parameters lie in one buffer (bytes of the precision), their gradients in a second one of the
same length in float32; the optimizer's states are divided over the data- and context-parallel ranks. Experts have
buffers of their own, divided over the ranks that hold the same experts. The order of the parameters is that of
`named_parameters()`, which decides where buckets end.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from megatron_omr.layout.config import ParallelConfig
from megatron_omr.model_config import ModelConfig

_PARAMETER_START = 64  # elements: Megatron begins each parameter at a multiple of this
_BUCKET_END = 128  # and ends each bucket at a multiple of this and of the number of ranks


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The part of the model that one pipeline rank computes at a time: some layers, and what stands at the ends."""

    num_layers: int
    first: bool  # with embedding and vision tower
    last: bool  # with final norm and output layer


@dataclass(frozen=True, kw_only=True)
class Parameter:
    part: str  # "vision", "projector" or "language", as in optim.freeze
    size: int  # elements on one rank
    shared: bool = (
        False  # embeddings tied to the output layer of another pipeline rank: a bucket of their own
    )
    of_expert: bool = False


@cache
def list_parameters(
    model: ModelConfig, chunk: Chunk, *, tp: int, pp: int, ep: int = 1, etp: int = 0
) -> tuple[Parameter, ...]:
    """Returns the parameters of a chunk on one rank, in Megatron's order; of experts, all layers have them."""
    tied = model.tie_word_embeddings
    embedding = model.vocab_size // tp * model.hidden_size
    layer = [Parameter(part="language", size=size) for size in _language_layer(model, tp)]
    layer += [
        Parameter(part="language", size=size, of_expert=True) for size in _experts(model, ep, etp or tp)
    ]
    parameters = [Parameter(part="language", size=embedding)] if chunk.first else []
    parameters += layer * chunk.num_layers
    parameters += [Parameter(part="language", size=model.hidden_size)] if chunk.last else []
    if tied and pp > 1 and chunk.first:
        parameters[0] = Parameter(part="language", size=embedding, shared=True)
    if chunk.last and not (tied and chunk.first):
        parameters.append(Parameter(part="language", size=embedding, shared=tied and pp > 1))
    return (*parameters, *(_vision(model, tp) if chunk.first else ()))


def list_own(model: ModelConfig, chunk: Chunk, parallel: ParallelConfig) -> tuple[Parameter, ...]:
    """Returns the parameters of a chunk on one rank of a layout."""
    return list_parameters(model, chunk, tp=parallel.tp, pp=parallel.pp, ep=parallel.ep, etp=parallel.etp)


def _language_layer(model: ModelConfig, tp: int) -> list[int]:
    hidden, ffn = model.hidden_size, model.intermediate_size // tp
    queries = model.num_heads * model.head_dim // tp
    qkv = queries + 2 * model.num_kv_heads * model.head_dim // tp
    attention = [hidden, hidden * queries, qkv * hidden]
    attention += [qkv] if model.qkv_bias else []
    attention += [model.head_dim, model.head_dim] if model.qk_norm else []
    if model.moe:
        return [*attention, hidden, model.moe.num_experts * hidden]
    return [*attention, hidden, 2 * ffn * hidden, hidden * ffn]


def _experts(model: ModelConfig, ep: int, etp: int) -> list[int]:
    if model.moe is None:
        return []
    inner = model.moe.intermediate_size // etp
    return [2 * inner * model.hidden_size, model.hidden_size * inner] * (model.moe.num_experts // ep)


def _vision(model: ModelConfig, tp: int) -> Iterator[Parameter]:
    vision = model.vision
    hidden, ffn = vision.hidden_size, vision.padded_intermediate_size // tp
    merged, qkv = hidden * vision.spatial_merge_size**2, 3 * hidden // tp
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    per_norm, rows = (2 if vision.layer_norm else 1), (2 if vision.gated_mlp else 1) * ffn
    attention = [*[hidden] * per_norm, hidden * hidden // tp, hidden, qkv * hidden, qkv]
    mlp = [*[hidden] * per_norm, rows * hidden, rows, hidden * ffn, hidden]
    tower = [patch * hidden, *[hidden] * vision.patch_bias, *(attention + mlp) * vision.depth]
    yield from (Parameter(part="vision", size=size) for size in tower)
    out = vision.out_hidden_size
    projection = [merged // tp * merged, merged // tp, out * merged // tp, out]
    yield from (Parameter(part="projector", size=size) for size in [*[hidden] * per_norm, *projection])
    if vision.num_position_embeddings:
        yield Parameter(part="vision", size=vision.num_position_embeddings * hidden)
    features = [*[merged] * per_norm, *projection] * vision.num_levels
    yield from (Parameter(part="projector", size=size) for size in features)


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """Where the trained parameters of a chunk lie, in elements."""

    spans: tuple[tuple[int, int], ...]  # start and end of each parameter
    buckets: tuple[tuple[int, int], ...]  # start and end of each bucket
    num_shards: int

    @property
    def size(self) -> int:
        return self.buckets[-1][1] if self.buckets else 0

    def shard_size(self, shard: int) -> int:
        """Returns the elements of parameters whose optimizer states one data-parallel rank holds."""
        total, spans = 0, iter(self.spans)
        begin, stop = next(spans, (0, 0))
        for start, end in self.buckets:
            width = (end - start) // self.num_shards
            low, high = start + shard * width, start + (shard + 1) * width
            while stop <= end:  # spans and buckets are in order, and a bucket ends behind a whole parameter
                total += max(0, min(high, stop) - max(low, begin))
                begin, stop = next(spans, (end + 1, end + 1))
        return total


def lay_out(parameters: Sequence[Parameter], num_shards: int, *, bucket_size: int | None) -> Buffer:
    """Places parameters as Megatron's gradient buffer does: from the last to the first, in buckets.

    Args:
        num_shards: data-parallel times context-parallel ranks.
        bucket_size: elements after which a bucket ends; None makes one bucket (but for tied embeddings).
    """
    spans: list[tuple[int, int]] = []
    buckets: list[tuple[int, int]] = []
    start_of_bucket = place = 0
    multiple = math.lcm(num_shards, _BUCKET_END)

    def close(end: int) -> int:
        nonlocal start_of_bucket
        buckets.append((start_of_bucket, _ceil(end, multiple)))
        start_of_bucket = buckets[-1][1]
        return start_of_bucket

    for parameter in reversed(parameters):
        start = _ceil(place, _PARAMETER_START)
        if parameter.shared and spans and start > start_of_bucket:
            start = close(start)
        place = start + parameter.size
        spans.append((start, place))
        full = bucket_size is not None and place - start_of_bucket >= bucket_size
        if full or parameter.shared:
            place = close(place)
    if place > start_of_bucket:
        close(place)
    return Buffer(spans=tuple(spans), buckets=tuple(buckets), num_shards=num_shards)


def overlap_bucket_size(dp: int) -> int:
    """Returns Megatron's elements in a bucket, where the reduction of gradients overlaps with backward.

    `dp`: data-parallel ranks, without those of context parallelism. Only the first stage's first chunk has buckets.
    """
    return max(40_000_000, 1_000_000 * dp)


@dataclass(frozen=True, kw_only=True)
class StaticBytes:
    """What a rank holds throughout training."""

    weights: int
    gradients: int
    optimizer: int
    reference: int  # of a KL penalty, wherever it waits

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def count_static(
    chunks: Sequence[Sequence[Parameter]],
    *,
    element: int,
    num_shards: int,
    shard: int = 0,
    freeze: Collection[str] = (),
    bucket_size: int | None = None,
    num_expert_shards: int = 1,
    expert_shard: int = 0,
) -> StaticBytes:
    """Returns the bytes of weights, gradients, optimizer states and a reference of one rank with these model chunks.

    Args:
        element: bytes of a weight; below 4 the optimizer keeps a float32 copy beside its two moments.
        num_shards: as lay_out.
        bucket_size: as lay_out, for both buffers of the chunk with the vision tower; Megatron buckets no other.
        shard: the rank's number among the data- and context-parallel ranks.
        freeze: parts without gradients and states.
        num_expert_shards, expert_shard: the same among the ranks that hold the same part of the same experts.
    """
    trained = [[p for p in parameters if p.part not in freeze] for parameters in chunks]
    frozen = sum(p.size for parameters in chunks for p in parameters if p.part in freeze)
    limits = [bucket_size if any(p.part == "vision" for p in parameters) else None for parameters in chunks]
    buffers = [
        lay_out([p for p in parameters if not p.of_expert], num_shards, bucket_size=limit)
        for parameters, limit in zip(trained, limits, strict=True)
    ]
    expert_buffers = [
        lay_out([p for p in parameters if p.of_expert], num_expert_shards, bucket_size=limit)
        for parameters, limit in zip(trained, limits, strict=True)
    ]
    size = sum(buffer.size for buffer in buffers + expert_buffers)
    held = sum(buffer.shard_size(shard) for buffer in buffers)
    held += sum(buffer.shard_size(expert_shard) for buffer in expert_buffers)
    states = 8 if element == 4 else 12
    return StaticBytes(
        weights=element * (size + frozen),
        gradients=4 * size,
        optimizer=states * held,
        reference=element * size,
    )


def _ceil(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
