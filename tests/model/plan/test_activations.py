"""Bytes kept for backward: the closed formula against a meter on the real model, in all layouts and three shapes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import pytest

from megatron_omr.config import ComputeConfig, ParallelConfig, Part
from megatron_omr.dtypes import Precision
from megatron_omr.model_config import ModelConfig
from megatron_omr.plan.activations import (
    causal_masks,
    count_in_flight,
    language_layer,
    saved_by_embedding,
    saved_by_features,
    saved_by_head,
    saved_by_layers,
    saved_by_logprobs,
    saved_by_tower,
)
from megatron_omr.plan.shapes import published_shape
from megatron_omr.plan.task import list_chunks
from megatron_omr.plan.weights import Chunk
from tests.helpers.ranks import rank_environment, run_ranks

if TYPE_CHECKING:
    from data_pipeline.types import PackedBatch
    from megatron_omr.model.vlm import VisionLanguageModel
    from megatron_omr.parallel import Ranks

LENGTHS = (128, 256, 64)  # each is a bucket of its own: gathered, without padding
ONE = (256,)
IMAGE = ((1, 16, 24),)  # whole windows of 8 x 8 patches


class Case(NamedTuple):
    shape: str
    layout: ParallelConfig
    lengths: tuple[int, ...] = LENGTHS
    images: tuple[tuple[int, int, int], ...] = ()
    precision: Precision = "bf16"
    recompute: Literal["none", "mlp", "full"] = "none"
    recompute_vision: Literal["none", "full"] = "none"
    freeze: tuple[Part, ...] = ()


LAYOUTS = [
    ParallelConfig(),
    ParallelConfig(tp=2),
    ParallelConfig(tp=2, sp=True),
    ParallelConfig(pp=2),
    ParallelConfig(cp=2),
]
INTERLEAVED = ParallelConfig(pp=2, vp=2, layers=(1, 3, 2, 1))
CASES = [
    *(Case(shape, layout) for shape in ("3B", "7B", "72B") for layout in LAYOUTS),
    *(Case("7B", layout, images=IMAGE) for layout in LAYOUTS[:4]),
    *(Case("72B", layout, lengths=ONE) for layout in LAYOUTS),
    Case("3B", LAYOUTS[2], images=IMAGE, precision="fp32"),
    *(Case("7B", layout, recompute="mlp") for layout in LAYOUTS),
    *(Case("3B", layout, images=IMAGE, recompute="full", recompute_vision="full") for layout in LAYOUTS[:4]),
    Case("7B", LAYOUTS[4], recompute="full"),
    Case("7B", INTERLEAVED),
    Case("3B", INTERLEAVED, images=IMAGE, recompute="mlp", recompute_vision="full"),
    Case("7B", LAYOUTS[0], images=IMAGE, freeze=("vision",)),
    Case("7B", LAYOUTS[0], images=IMAGE, freeze=("vision", "projector")),
    *(Case("4B", layout, images=IMAGE) for layout in LAYOUTS[:4]),
    Case("4B", LAYOUTS[4]),
    Case("4B", LAYOUTS[2], images=IMAGE, recompute="full", recompute_vision="full"),
    Case("4B", LAYOUTS[0], images=IMAGE, recompute="mlp", freeze=("vision",)),
]


def shrink(shape: str, layout: ParallelConfig) -> ModelConfig:
    """Returns a published shape with a few heads and layers, in its own proportions."""
    model = published_shape(f"Qwen{'3' if shape == '4B' else '2.5'}-VL-{shape}-Instruct")
    scale = 8 if shape == "72B" else 7
    heads = -(-model.num_heads // scale // 2) * 2
    return replace(
        model,
        num_layers=sum(layout.layers) or 2 * layout.pp,
        hidden_size=heads * model.head_dim,
        num_heads=heads,
        num_kv_heads=2,
        intermediate_size=model.intermediate_size // scale // 8 * 8,
        vocab_size=1_024,
        image_token_id=1_000,
        video_token_id=1_001,
        vision_start_token_id=1_002,
        vision_end_token_id=1_003,
        vision=replace(
            model.vision,
            depth=2,
            hidden_size=320,
            num_heads=4,
            intermediate_size=model.vision.intermediate_size // 4 // 8 * 8,
            out_hidden_size=heads * model.head_dim,
            fullatt_block_indexes=(1,),
            deepstack_visual_indexes=model.vision.deepstack_visual_indexes and (0,),
        ),
    )


@pytest.mark.heavy
@pytest.mark.slow
def test_formula_is_exact(tmp_path: Path) -> None:
    off = []
    for case, *measured in zip(CASES, *run_ranks(_measure, 2, str(tmp_path), timeout=600), strict=True):
        for rank, found in enumerate(measured):
            error = formula(case, rank) / found - 1
            if error:
                off.append(f"{case} rank {rank}: {error:+.5%} of {found}")
    assert not off, "\n".join(off)


def formula(case: Case, rank: int) -> float:
    """Returns the bytes that one micro-batch leaves on a rank of two, logits included."""
    model, layout = shrink(case.shape, case.layout), case.layout
    stages = list_chunks(model, layout)
    return sum(_formula_of_chunk(case, model, chunk) for chunk in stages[rank if layout.pp > 1 else 0])


def _formula_of_chunk(case: Case, model: ModelConfig, chunk: Chunk) -> float:
    layout, element = case.layout, 4 if case.precision == "fp32" else 2
    tokens, patches = sum(case.lengths), sum(t * h * w for t, h, w in case.images)
    own = tokens // layout.cp
    layer = language_layer(model, tp=layout.tp, sp=layout.sp)
    total = own * saved_by_layers(
        layer,
        chunk.num_layers,
        element,
        case.recompute,
        reordered=len(case.lengths) > 1,
        gathered=layout.cp,
    )
    if case.recompute != "full":
        total += chunk.num_layers * causal_masks(case.lengths, element, cp=layout.cp)
    if chunk.first:
        total += own * saved_by_embedding(tp=layout.tp, cp=layout.cp, images=bool(patches))
        if patches:
            total += own * saved_by_features(model, element, case.recompute, shards=layer.shards)
        total += patches * saved_by_tower(
            model, element, case.recompute_vision, tp=layout.tp, freeze=case.freeze
        )
    if chunk.last:
        total += own * saved_by_head(model, element, shards=layer.shards)
        total += own * saved_by_logprobs(model, element, tp=layout.tp, cp=layout.cp, with_entropy=True)
    return total


def _measure(folder: str) -> list[int]:
    return [_measure_case(case, f"file://{folder}/{number}") for number, case in enumerate(CASES)]


def _measure_case(case: Case, init_method: str) -> int:
    import torch

    from megatron_omr import parallel
    from megatron_omr.model.build import build_model
    from megatron_omr.model.parts import freeze
    from tests.helpers.memory import saved_bytes

    rank, world_size, _ = rank_environment()
    ranks = parallel.initialize(
        case.layout, rank=rank, world_size=world_size, init_method=init_method, seed=0
    )
    model = shrink(case.shape, case.layout)
    compute = ComputeConfig(recompute=case.recompute, recompute_vision=case.recompute_vision)
    chunks = build_model(model, case.layout, ranks, precision=case.precision, compute=compute)
    freeze(chunks, case.freeze)
    parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
    for parameter in parameters:
        torch.nn.init.normal_(parameter, std=0.02)
    batch = _random_batch(model, case)
    found = 0
    for chunk in chunks:
        if not chunk.pre_process:
            hidden = torch.zeros(batch.input_ids.numel(), 1, model.hidden_size, dtype=parameters[0].dtype)
            chunk.set_input_tensor(hidden.requires_grad_())
        found += saved_bytes(partial(_forward, chunk, batch, ranks), skip=parameters)
    parallel.shutdown()
    return found


def _forward(chunk: VisionLanguageModel, batch: PackedBatch, ranks: Ranks) -> object:
    from megatron_omr.train.logprobs import token_logprobs

    out = chunk(batch)
    return token_logprobs(out, batch, ranks, with_entropy=True) if chunk.post_process else out


def _random_batch(model: ModelConfig, case: Case) -> PackedBatch:
    import torch

    from data_pipeline.types import PackedBatch

    tokens, patches = sum(case.lengths), sum(t * h * w for t, h, w in case.images)
    ids = torch.randint(0, 900, (tokens,))
    ids[: patches // 4] = model.image_token_id
    return PackedBatch(
        ids=tuple(map(str, case.lengths)),
        input_ids=ids,
        labels=torch.randint(0, 900, (tokens,)),
        loss_mask=torch.ones(tokens),
        position_ids=torch.arange(tokens).repeat(3, 1),
        real_lens=torch.tensor(case.lengths),
        cu_seqlens=torch.tensor([0, *case.lengths]).cumsum(0).int(),
        pixels=torch.zeros(patches, model.family.patches.num_bytes, dtype=torch.uint8),
        image_grid_thw=torch.tensor(case.images, dtype=torch.int64).reshape(-1, 3),
    )


@pytest.mark.parametrize(
    ("stage", "pp", "vp", "micro_batches", "held"),
    [
        (0, 1, 1, 8, (1,)),
        (0, 4, 1, 8, (4,)),
        (3, 4, 1, 8, (1,)),
        (0, 4, 1, 2, (2,)),
        (0, 2, 2, 4, (3, 2)),
        (1, 2, 2, 4, (2, 1)),
    ],
)
def test_micro_batches_in_flight(
    stage: int, pp: int, vp: int, micro_batches: int, held: tuple[int, ...]
) -> None:
    found = count_in_flight([1.0] * vp, stage=stage, pp=pp, num_micro_batches=micro_batches)
    assert found == held
