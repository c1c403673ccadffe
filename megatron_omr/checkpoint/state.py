"""A trainer's weights and optimizer states as shards: views into what it trains with, nothing gathered or copied.

The distributed optimizer gives each data-parallel rank a flat range of every parameter. In the shape of the parameter
such a range is a few rectangles, which have a place in the whole tensor like any other shard: so every rank writes and
reads its own part, and any other layout finds its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor, nn

from megatron_omr.checkpoint.shards import Shard, split_range
from megatron_omr.train.trainer import Trainer, unwrap_chunks

OPTIMIZER = "optimizer.state."
"""Prefix of the keys of the optimizer's states; all others are weights."""
_EXTRA_STATE = "_extra_state"


def weight_shards(chunks: Sequence[nn.Module]) -> list[Shard]:
    """Returns the weights that this rank holds, replicas included, without the layers' extra states.

    Extra states are pickles of Transformer Engine, and only FP8 with delayed scaling, which is not offered, has
    anything in them. Without them a checkpoint is the same whichever backend, device or FP8 recipe wrote it.
    """
    return _whole_blocks(_collect_blocks(chunks).values())


def optimizer_shards(trainer: Trainer, *, with_copies: bool) -> list[Shard]:
    """Returns this rank's parts of the fp32 weights and of Adam's two moments.

    Args:
        with_copies: also those of tied weights on the last pipeline stage, which the first stage has, too.
    """
    init_optimizer(trainer)
    blocks = _collect_blocks(unwrap_chunks(trainer))
    shards = []
    for optimizer in trainer.optimizer.chained_optimizers:
        for parameter in getattr(optimizer, "model_param_gbuf_map", ()):  # none where all is frozen
            if with_copies or not _is_copy(blocks[parameter][0]):
                shards += _state_shards(optimizer, parameter, blocks[parameter])
    return shards


def frozen_shards(trainer: Trainer) -> list[Shard]:
    """Returns the weights that the optimizer does not have."""
    blocks = _collect_blocks(unwrap_chunks(trainer))
    return _whole_blocks(found for parameter, found in blocks.items() if not parameter.requires_grad)


def init_optimizer(trainer: Trainer) -> None:
    """Makes the optimizer's states, which it has only after its first step."""
    for part in trainer.optimizer.chained_optimizers:
        part.init_state_fn(part.optimizer, part.config)


def optimizer_step(trainer: Trainer) -> int:
    """Returns how often Adam has stepped; 0 on ranks where all weights are frozen. Skipped steps do not count."""
    return max((int(group.get("step", 0)) for group in trainer.optimizer.param_groups), default=0)


def _collect_blocks(chunks: Sequence[Any]) -> dict[Tensor, list[ShardedTensor]]:
    """Returns the blocks of each parameter that have a place of their own in a checkpoint: one, or gate and up.

    The places are those in the whole model, so that chunks of any number and size find theirs.
    """
    blocks: dict[Tensor, list[ShardedTensor]] = {}
    for chunk in chunks:
        for found in nested_values(chunk.sharded_state_dict()):
            if _EXTRA_STATE in found.key:
                continue
            with torch.no_grad():
                parts = found.build() if isinstance(found, ShardedTensorFactory) else [found]
            blocks[found.data] = [part for part in nested_values(parts) if part is not None]
    return blocks


def _whole_blocks(by_parameter: Iterable[Sequence[ShardedTensor]]) -> list[Shard]:
    return [
        shard
        for blocks in by_parameter
        for block in blocks
        for shard in _cut(block, block.key, cast("Tensor", block.data), 0, block.data.numel())
    ]


def _state_shards(optimizer: Any, parameter: Tensor, blocks: Sequence[ShardedTensor]) -> Iterator[Shard]:
    held = optimizer._get_model_param_range_map(parameter)["param"]  # elements of the flat parameter
    states = optimizer._get_main_param_and_optimizer_states(parameter)
    for block in blocks:
        first = block.data.storage_offset() - parameter.storage_offset()
        start, end = max(held.start, first), min(held.end, first + block.data.numel())
        for name in ("param", "exp_avg", "exp_avg_sq"):
            flat = states[name].detach().view(-1)[start - held.start : max(0, end - held.start)]
            yield from _cut(block, f"{OPTIMIZER}{name}.{block.key}", flat, start - first, end - first)


def _cut(block: ShardedTensor, key: str, flat: Tensor, start: int, end: int) -> Iterator[Shard]:
    """Yields elements start:end of a block, which `flat` holds, as shards of the whole tensor."""
    flat, taken = flat.detach().view(-1), 0
    axes = block.prepend_axis_num  # the layer, in tensors that hold all layers
    for offset, sizes in split_range(block.data.shape, start, end):
        place = zip(block.global_offset[axes:], offset, strict=True)
        shard = Shard(
            key=key,
            global_shape=tuple(block.global_shape),
            offset=(*block.global_offset[:axes], *(of_block + of_part for of_block, of_part in place)),
            sizes=(*[1] * axes, *sizes),
            dtype=flat.dtype,
            data=flat[taken : taken + torch.Size(sizes).numel()],
        )
        taken += shard.tensor().numel()
        yield shard


def _is_copy(block: ShardedTensor) -> bool:
    """Returns true for the last stage's copy of tied weights: replicas are numbered by (copy, tp rank, dp rank)."""
    return isinstance(block.replica_id, tuple) and block.replica_id[0] != 0
