"""Splits the images of a batch over the context-parallel ranks: each goes through the vision tower once.

Legend: I images, M merged patches (image tokens) of all images, m those of this rank, D columns of the tower's output.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.types import PackedBatch
from megatron_omr.model.vision.tower import VisionTower
from megatron_omr.parallel import Ranks


def assign_images(num_patches: list[int], num_ranks: int) -> list[list[int]]:
    """Returns the numbers of the images of each rank, ascending; some ranks may get none.

    The largest image goes first, to the rank with the fewest patches so far. Every rank computes the same.
    """
    images: list[list[int]] = [[] for _ in range(num_ranks)]
    load = [0] * num_ranks
    for image in sorted(range(len(num_patches)), key=lambda i: (-num_patches[i], i)):
        rank = load.index(min(load))
        images[rank].append(image)
        load[rank] += num_patches[image]
    return [sorted(own) for own in images]


def embed_split_images(
    vision_model: VisionTower, batch: PackedBatch, patches_per_token: int, ranks: Ranks
) -> Tensor:
    """Turns all images of the batch into [M, D] on every rank. Collective over CP ranks.

    Each pair of a video's frames is one of them, since frames do not attend to other frames.
    The gradient sums over them what each rank's tokens ask of an image, and reaches the tower where that image is.
    """
    pixels, grid_thw, frames = batch.pixels, batch.image_grid_thw, batch.frames
    num_patches = grid_thw.prod(dim=1).tolist()
    num_rows = grid_thw.prod(dim=1) * (1 if frames is None else frames)
    patches = torch.arange(len(pixels), device=pixels.device).split(num_rows.tolist())
    tokens = torch.arange(sum(num_patches) // patches_per_token, device=pixels.device).split(
        [n // patches_per_token for n in num_patches]
    )
    images = assign_images(num_patches, ranks.cp_size)
    rows = [torch.cat([tokens[0][:0], *(tokens[i] for i in own)]) for own in images]
    own = images[ranks.cp_rank]
    if own:
        own_pixels = pixels[torch.cat([patches[i] for i in own])]
        embeddings = vision_model(own_pixels, grid_thw[own], None if frames is None else frames[own])
    else:  # the gather and every parameter's gradient hook wait for this rank
        embeddings = zero_depending_on(vision_model).expand(0, vision_model.output_size)
    return _GatherRows.apply(embeddings, rows, ranks)


def zero_depending_on(module: nn.Module) -> Tensor:
    """Returns a zero that depends on every parameter, so that gradient hooks fire without any image."""
    return 0.0 * torch.stack([p.view(-1)[0] for p in module.parameters()]).sum()


class _GatherRows(torch.autograd.Function):
    """Gathers [m, D] of each context-parallel rank to [M, D], where `rows` says which rows are whose."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: list[Tensor], ranks: Ranks) -> Tensor:
        ctx.rows, ctx.group = rows[ranks.cp_rank], ranks.cp_group()
        padded = own.new_zeros(max(map(len, rows)), own.size(1))
        padded[: len(own)] = own
        gathered = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(gathered, padded, group=ctx.group)
        out = own.new_empty(sum(map(len, rows)), own.size(1))
        for part, theirs in zip(gathered, rows, strict=True):
            out[theirs] = part[: len(theirs)]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad[ctx.rows], None, None
