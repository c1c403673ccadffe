"""Scored rollouts -> packed micro-batches, with the one packer. Imports neither ray, vllm nor megatron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from data_pipeline.packing import balance, blank, pack
from data_pipeline.types import Example, PackedBatch, SampleRef
from rl.types import RolloutBatch, TrainRollout


def split_by_rank(rollouts: Sequence[TrainRollout], num_ranks: int) -> list[list[TrainRollout]]:
    """Spread rollouts over data-parallel ranks by their length; with few rollouts, some ranks get none."""
    assigned = balance([len(r.token_ids) for r in rollouts], num_ranks)
    return [[rollouts[i] for i in items] for items in assigned]


def build_batches(
    rollouts: Sequence[TrainRollout],
    encode: Callable[[SampleRef, tuple[int, ...]], Example],
    *,
    pack_length: int,
    multiple: int,
    pad_token_id: int,
) -> list[RolloutBatch]:
    """Tokenise, pack and attach advantages and engine logprobs to the response tokens.

    Without rollouts there is one blank batch: it counts for nothing and keeps its rank in step with the others.

    `encode(ref, token_ids)` gives the prompt at `ref` followed by the response, with loss on the response.
    """
    examples = [replace(encode(r.ref, r.token_ids), id=str(i)) for i, r in enumerate(rollouts)]
    packs = pack(examples, pack_length=pack_length, multiple=multiple, pad_token_id=pad_token_id)
    if not packs:
        packed = blank(multiple=multiple, pad_token_id=pad_token_id)
        zeros_T = torch.zeros(packed.num_tokens)
        return [
            RolloutBatch(packed=packed, advantages_T=zeros_T, old_logprobs_T=None, rollout_logprobs_T=zeros_T)
        ]
    return [_attach(packed, [rollouts[int(i)] for i in packed.ids]) for packed in packs]


def _attach(packed: PackedBatch, rollouts: Sequence[TrainRollout]) -> RolloutBatch:
    advantages_T = torch.zeros(packed.num_tokens)
    logprobs_T = torch.zeros(packed.num_tokens)
    bounds = packed.cu_seqlens.tolist()
    for (start, end), rollout in zip(pairwise(bounds), rollouts, strict=True):
        response = start + packed.loss_mask[start:end].nonzero().flatten()
        assert len(response) == len(rollout.token_ids), (len(response), len(rollout.token_ids))
        advantages_T[response] = rollout.advantage
        logprobs_T[response] = torch.tensor(rollout.logprobs)
    return RolloutBatch(
        packed=packed, advantages_T=advantages_T, old_logprobs_T=None, rollout_logprobs_T=logprobs_T
    )
