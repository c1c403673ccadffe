"""Attention over packed sequences in plain torch: a few padded SDPA calls instead of one per sequence.

Legend: T tokens (this rank's under context parallelism), S sequences, N query heads, G key/value heads, D
head size, B sequences of a bucket, L their padded length.
Sequences of similar length share a batch ("bucket"); causal attention needs no mask for right padding. The
plan of buckets depends on the sequences' bounds and parents only: it is made once per batch for all layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_omr.model.moe.router import Routing
from megatron_omr.parallel import zigzag_order

_MAX_PADDING = 0.25  # of a bucket's longest sequence


@dataclass
class PackedSequences(PackedSeqParams):
    """Boundaries of packed sequences, in the form that Megatron passes to every layer.

    `qkv_format` stays "sbhd" (tokens as one sequence of batch 1): Megatron then applies a rotary table with
    one row per token at once, where "thd" would loop over the sequences in every layer.
    """

    cp_rank: int = 0
    cp_size: int = 1
    parents: Tensor | None = None
    routing: Routing | None = None  # of models with experts

    @classmethod
    def create(
        cls,
        cu_seqlens: Tensor,
        *,
        cp_rank: int = 0,
        cp_size: int = 1,
        parents: Tensor | None = None,
        **kwargs: Any,
    ) -> PackedSequences:
        """Takes `cu_seqlens` [S + 1] int32, which counts the tokens of all context-parallel ranks.

        `parents` [S]: the sequence that each sequence continues and attends to as a whole, -1 for none.

        Raises:
            ValueError: parents under context parallelism, whose zigzag needs sequences without parents.
        """
        if parents is not None and cp_size > 1:
            raise ValueError(
                f"share_prompts=True does not work with parallel.cp={cp_size}; set share_prompts to False"
            )
        longest = int(cu_seqlens.diff().max())
        return cls(
            qkv_format="sbhd",
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_kv=cu_seqlens,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            cp_rank=cp_rank,
            cp_size=cp_size,
            parents=parents,
            **kwargs,
        )

    @cached_property
    def plan(self) -> AttentionPlan:
        if self.parents is not None:
            return AttentionPlan.branching(self.cu_seqlens_q, self.parents)
        return AttentionPlan.create(self.cu_seqlens_q, cp_rank=self.cp_rank, cp_size=self.cp_size)


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Tokens laid out bucket by bucket, each sequence padded to its bucket's longest: M slots in all."""

    token: Tensor | None  # [M] the token in each slot, padding repeats one; None: the slots are the tokens
    slot: Tensor | None  # [T] the slot of each token; None also where a token has several
    shapes: tuple[tuple[int, int], ...]  # of each bucket: sequences, padded length

    def split(self, x: Tensor) -> list[Tensor]:
        """Splits [T, N, D] into [B, N, L, D] of each bucket; padding has no gradient."""
        if self.token is None:
            slots = x
        elif self.slot is None:
            # a token's gradients add up over its slots; those of padding are masked, so 0
            slots = x.index_select(0, self.token)
        else:
            slots = _Take.apply(x, self.token, self.slot)
        parts = slots.split([b * length for b, length in self.shapes])
        return [p.unflatten(0, shape).transpose(1, 2) for p, shape in zip(parts, self.shapes, strict=True)]

    def join(self, parts: list[Tensor]) -> Tensor:
        """Joins [B, N, L, D] of each bucket to [T, N * D]."""
        flat = [p.transpose(1, 2).flatten(2).flatten(0, 1) for p in parts]
        slots = flat[0] if len(flat) == 1 else torch.cat(flat)
        return slots if self.slot is None else slots.index_select(0, self.slot)


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    query: Slots
    key: Slots  # of the keys gathered over context parallelism
    padding_masks: list[Tensor | None]  # by bucket, [B, 1, 1, Lk] where keys are padded
    causal_masks: list[Tensor | None]  # by bucket, [B, 1, Lq, Lk] where queries are only a part of the keys

    @classmethod
    def create(cls, cu_seqlens: Tensor, *, cp_rank: int, cp_size: int) -> AttentionPlan:
        lengths = cu_seqlens.diff().long()
        buckets = [torch.tensor(b, device=lengths.device) for b in bucket_by_length(lengths.tolist())]
        order = zigzag_order(cu_seqlens, cp_size)
        key = _lay_out(cu_seqlens, buckets)
        padding = [_padding_mask(lengths[b]) for b in buckets]
        if cp_size == 1:
            return cls(query=key, key=key, padding_masks=padding, causal_masks=[None] * len(buckets))
        query = _lay_out(cu_seqlens // cp_size, buckets)
        start_T = cu_seqlens[:-1].long().repeat_interleave(lengths // cp_size, output_size=order.size(1))
        position_T = order[cp_rank] - start_T  # of each local token in its sequence
        positions = query.split(position_T[:, None, None])
        masks: list[Tensor | None] = [
            q.flatten(1)[:, None, :, None] >= torch.arange(length, device=q.device)
            for q, (_, length) in zip(positions, key.shapes, strict=True)
        ]
        return cls(
            query=query, key=_from_gathered(key, order.flatten()), padding_masks=padding, causal_masks=masks
        )

    @classmethod
    def branching(cls, cu_seqlens: Tensor, parents: Tensor) -> AttentionPlan:
        """Plans causal attention where a sequence's keys are those of its parent, if it has one, then its own."""
        starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
        device = starts.device
        prefix = torch.where(parents >= 0, lengths[parents], 0)
        own_buckets = bucket_by_length(lengths.tolist())
        buckets = [
            torch.tensor([own[i] for i in inner], device=device)
            for own in own_buckets
            for inner in bucket_by_length(prefix[torch.tensor(own, device=device)].tolist())
        ]
        tokens, shapes, masks = [], [], []
        for bucket in buckets:
            before = torch.arange(int(prefix[bucket].max()), device=device)
            own = torch.arange(int(lengths[bucket].max()), device=device)
            is_prefix = before < prefix[bucket, None]
            is_own = own < lengths[bucket, None]
            prefix_tokens = starts[parents[bucket], None] + before * is_prefix
            tokens.append(torch.cat([prefix_tokens, starts[bucket, None] + own * is_own], dim=1).flatten())
            shapes.append((len(bucket), len(before) + len(own)))
            causal = (own[:, None] >= own).expand(len(bucket), -1, -1)
            mask = torch.cat([is_prefix[:, None].expand(-1, len(own), -1), causal], dim=2)
            masks.append(mask[:, None] if len(before) else None)
        key = Slots(token=torch.cat(tokens), slot=None, shapes=tuple(shapes))
        return cls(query=_lay_out(cu_seqlens, buckets), key=key, padding_masks=[], causal_masks=masks)


def bucket_by_length(lengths: list[int]) -> list[list[int]]:
    """Groups sequence numbers so that padding to a group's longest wastes at most a quarter of it."""
    buckets: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not buckets or lengths[i] < (1 - _MAX_PADDING) * longest:
            buckets.append([])
            longest = lengths[i]
        buckets[-1].append(i)
    return buckets


def _lay_out(cu_seqlens: Tensor, buckets: list[Tensor]) -> Slots:
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    tokens, valid, shapes = [], [], []
    for bucket in buckets:
        offsets = torch.arange(int(lengths[bucket].max()), device=starts.device)
        inside = offsets < lengths[bucket, None]
        tokens.append((starts[bucket, None] + offsets * inside).flatten())
        valid.append(inside.flatten())
        shapes.append((len(bucket), len(offsets)))
    token = torch.cat(tokens)
    slots = torch.cat(valid).nonzero().flatten()
    identity = torch.arange(int(cu_seqlens[-1]), device=starts.device)
    if torch.equal(token, identity):
        return Slots(token=None, slot=None, shapes=tuple(shapes))
    slot = torch.empty_like(identity).index_copy_(0, token[slots], slots)
    return Slots(token=token, slot=slot, shapes=tuple(shapes))


def _from_gathered(slots: Slots, gathered: Tensor) -> Slots:
    """Returns the same slots, filled from tokens in the order `gathered` [T]."""
    place = torch.argsort(gathered)
    if slots.token is None or slots.slot is None:
        return Slots(token=place, slot=gathered, shapes=slots.shapes)
    return Slots(token=place[slots.token], slot=slots.slot[gathered], shapes=slots.shapes)


def _padding_mask(lengths: Tensor) -> Tensor | None:
    longest = int(lengths.max())
    if int(lengths.min()) == longest:
        return None
    return (torch.arange(longest, device=lengths.device) < lengths[:, None])[:, None, None, :]


class _Take(torch.autograd.Function):
    """Selects rows by index; with the inverse index, the backward gathers too instead of adding row by row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


class CoreAttention(MegatronModule):
    """Megatron's core attention on SDPA: grouped queries, packed sequences, context parallelism.

    Under context parallelism keys and values of all ranks are gathered; the masks follow the zigzag.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        pg_collection: Any = None,
        **_: Any,  # what other releases of Megatron-Core pass to fused kernels
    ) -> None:
        super().__init__(config=config)
        self.causal = attn_mask_type == AttnMaskType.causal
        self.scale = softmax_scale
        self.cp_group = pg_collection.cp if config.context_parallel_size > 1 else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        /,
        *,
        packed_seq_params: PackedSequences,
        **_: Any,
    ) -> Tensor:
        """Attends from query [T, 1, N, D] to key and value [T, 1, G, D], giving [T, 1, N * D]."""
        plan = packed_seq_params.plan
        if self.cp_group is not None:
            key = gather_from_sequence_parallel_region(key.contiguous(), group=self.cp_group)
            value = gather_from_sequence_parallel_region(value.contiguous(), group=self.cp_group)
        return attend(query, key, value, plan, causal=self.causal, scale=self.scale)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    *,
    causal: bool,
    scale: float | None = None,
) -> Tensor:
    """Attends from query [T, 1, N, D] to key and value [T, 1, G, D], giving [T, 1, N * D].

    `scale` is 1 / sqrt(D) when None.
    """
    masks = plan.causal_masks if causal else plan.padding_masks
    queries, keys, values = (
        slots.split(x.squeeze(1)) for slots, x in ((plan.query, query), (plan.key, key), (plan.key, value))
    )
    parts = [
        F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=causal and mask is None,
            scale=scale,
            enable_gqa=q.size(1) != k.size(1),
        )
        for q, k, v, mask in zip(queries, keys, values, masks, strict=True)
    ]
    return plan.query.join(parts).unsqueeze(1)
