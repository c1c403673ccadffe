"""Scored rollouts -> packed micro-batches, with the one packer. Imports neither ray, vllm nor megatron."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from data_pipeline.encode.prompt_sharing import respond, share_prompt
from data_pipeline.loader.cost import TOKENS_ALONE, CostModel
from data_pipeline.loader.packing import balance, build_blank, first_fit, pack, pack_capacity, padded_length
from data_pipeline.types import Example, PackedBatch, SampleRef, Tree
from rl.types import RolloutBatch, TrainRollout


@dataclass(frozen=True, kw_only=True)
class PackRules:
    """Settings of the trainer's micro-batches."""

    pack_length: int
    multiple: int  # every sequence's length is padded to it
    pack_multiple: int = 1  # and a whole micro-batch's, at its tail
    pad_token_id: int
    image_token_id: int
    video_token_id: int = -1
    share_prompts: bool  # compute the prompt of a group once


def split_by_rank(
    rollouts: Sequence[TrainRollout], num_ranks: int, *, whole_groups: bool, cost: CostModel = TOKENS_ALONE
) -> list[list[TrainRollout]]:
    """Returns the rollouts of each data-parallel rank, balanced by their cost; with few, some ranks get none.

    `whole_groups` keeps the responses to one prompt on one rank, where they share it.
    """
    groups = _by_prompt(rollouts) if whole_groups else [[i] for i in range(len(rollouts))]
    costs = [_estimate_cost([rollouts[i] for i in group], cost) for group in groups]
    return [[rollouts[i] for group in chosen for i in groups[group]] for chosen in balance(costs, num_ranks)]


def pack_rollouts(
    rollouts: Sequence[TrainRollout], encode_prompt: Callable[[SampleRef], Example], rules: PackRules
) -> list[PackedBatch]:
    """Encodes and packs rollouts; without any it returns one blank batch, so that a rank has something to compute."""
    names = _name(rollouts)
    trees = [
        tree
        for members in _by_prompt(rollouts)
        for tree in _trees(
            encode_prompt(rollouts[members[0]].ref), {names[i]: rollouts[i].token_ids for i in members}, rules
        )
    ]
    packs = pack(
        trees,
        pack_length=rules.pack_length,
        multiple=rules.multiple,
        pack_multiple=rules.pack_multiple,
        pad_token_id=rules.pad_token_id,
    )
    return packs or [
        build_blank(
            multiple=rules.multiple, pack_multiple=rules.pack_multiple, pad_token_id=rules.pad_token_id
        )
    ]


def attach_rollouts(
    packs: Sequence[PackedBatch], rollouts: Sequence[TrainRollout], version: int
) -> list[RolloutBatch]:
    """Returns the packs of these rollouts with advantages and engine logprobs on the response tokens.

    `version` is that of the weights before this step: tokens that other weights sampled are stale.
    """
    by_name = dict(zip(_name(rollouts), rollouts, strict=True))
    return [_attach(packed, by_name, version) for packed in packs]


def read_responses(
    packs: Sequence[PackedBatch], values: Sequence[torch.Tensor], rollouts: Sequence[TrainRollout]
) -> list[np.ndarray]:
    """Returns the values on the response tokens of each of these rollouts, from [T] of each pack."""
    found = {
        name: values_T[response].numpy()
        for packed, values_T in zip(packs, values, strict=True)
        for name, response in _find_responses(packed)
    }
    return [found[name] for name in _name(rollouts)]


def _name(rollouts: Sequence[TrainRollout]) -> list[str]:
    return [f"{rollout.ref.id} ({number})" for number, rollout in enumerate(rollouts)]


def _estimate_cost(responses: Sequence[TrainRollout], cost: CostModel) -> float:
    """Returns the cost of responses to one prompt, which is computed once."""
    prompt = responses[0].prompt_tokens
    own = sum(cost.sequence(len(response.token_ids), prefix=prompt) for response in responses)
    return cost.sample(prompt, responses[0].prompt_patches) + own


def _by_prompt(rollouts: Sequence[TrainRollout]) -> list[list[int]]:
    """Returns the numbers of the rollouts of each prompt."""
    groups: dict[SampleRef, list[int]] = {}
    for i, rollout in enumerate(rollouts):
        groups.setdefault(rollout.ref, []).append(i)
    return list(groups.values())


def _trees(prompt: Example, responses: Mapping[str, np.ndarray], rules: PackRules) -> Iterator[Tree]:
    """Yields the responses (by name) in as few trees as fit; each by itself where the prompt is not shared."""
    tree = None
    if rules.share_prompts and len(responses) > 1:
        tree = share_prompt(
            prompt,
            responses,
            image_token_id=rules.image_token_id,
            video_token_id=rules.video_token_id,
            multiple=rules.multiple,
        )
    if tree is None:
        yield from (Tree(root=respond(prompt, ids, id=name)) for name, ids in responses.items())
        return
    sizes = [padded_length(len(branch), rules.multiple) for branch in tree.branches]
    for chosen in first_fit(sizes, pack_capacity(rules.pack_length, rules.pack_multiple) - len(tree.root)):
        yield Tree(root=tree.root, branches=tuple(tree.branches[i] for i in chosen))


def _attach(packed: PackedBatch, rollouts: Mapping[str, TrainRollout], version: int) -> RolloutBatch:
    advantages_T, logprobs_T, fresh_T = torch.zeros(3, packed.num_tokens)
    stale_T = torch.zeros(packed.num_tokens, dtype=torch.bool)
    for name, response in _find_responses(packed):
        rollout = rollouts[name]
        assert len(response) == len(rollout.token_ids), (len(response), len(rollout.token_ids))
        advantages_T[response] = rollout.advantage
        if rollout.logprobs is not None:
            logprobs_T[response] = torch.tensor(rollout.logprobs)
            is_fresh = torch.from_numpy(rollout.find_fresh(version))
            fresh_T[response], stale_T[response] = is_fresh.float(), ~is_fresh
    return RolloutBatch(
        packed=replace(packed, routed_experts=_lay_experts(packed, rollouts)),
        advantages_T=advantages_T,
        old_logprobs_T=None,
        rollout_logprobs_T=logprobs_T,
        fresh_T=None if torch.equal(fresh_T, packed.loss_mask) else fresh_T,
        stale_T=stale_T if stale_T.any() else None,
    )


def _lay_experts(packed: PackedBatch, rollouts: Mapping[str, TrainRollout]) -> torch.Tensor | None:
    """Returns PackedBatch.routed_experts of the responses and their prompts; None where no engine recorded any.

    A shared prompt takes those of one of its responses.
    """
    records = {name: r.routed_experts for name, r in rollouts.items() if r.routed_experts is not None}
    chosen = [number for number, name in enumerate(packed.ids) if name in records]
    if not chosen:
        return None
    shape = records[packed.ids[chosen[0]]].shape[1:]
    experts = torch.full((packed.num_tokens, *shape), -1, dtype=torch.int16)
    starts, real_lens, prefixes = packed.cu_seqlens.tolist(), packed.real_lens.tolist(), packed.prefix_lens()
    for number in chosen:
        record, prefix = torch.from_numpy(records[packed.ids[number]].astype(np.int16)), int(prefixes[number])
        assert len(record) == prefix + real_lens[number] - 1, (len(record), prefix, real_lens[number])
        experts[starts[number] :][: len(record) - prefix] = record[prefix:]
        if packed.parents is not None and prefix:
            experts[starts[int(packed.parents[number])] :][:prefix] = record[:prefix]
    return experts


def _find_responses(packed: PackedBatch) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the name of each response, and the places of its tokens."""
    for name, (start, end) in zip(packed.ids, pairwise(packed.cu_seqlens.tolist()), strict=True):
        if name:  # else a shared prompt, or the blank tail
            yield name, start + packed.loss_mask[start:end].nonzero().flatten()
