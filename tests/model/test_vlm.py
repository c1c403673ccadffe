"""The model: packing, gradients, checkpoint keys and wrong batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_omr.config import ParallelConfig
from megatron_omr.model_config import ModelConfig
from tests.helpers.ranks import init_ranks, run_ranks

pytestmark = pytest.mark.heavy


def test_packed_samples_do_not_see_each_other(tiny_hf: Path) -> None:
    neighbour_changed, self_changed, packing_changed = run_ranks(_differences_of_neighbours, 1, str(tiny_hf))[
        0
    ]
    assert neighbour_changed == 0.0
    assert self_changed > 1e-2
    # packed and alone, products are summed in another order, which rounds; attending to a neighbour changes digits
    assert packing_changed < 1e-4 * self_changed


@pytest.mark.parametrize(("parallel", "processes"), [(ParallelConfig(), 1), (ParallelConfig(pp=2), 2)])
def test_every_parameter_gets_a_gradient_from_text_alone(
    tiny_hf: Path, parallel: ParallelConfig, processes: int
) -> None:
    results = run_ranks(_gradients_of_text, processes, str(tiny_hf), parallel)
    without = [name for names, _ in results for name in names]
    assert without == []
    assert results[0][1] == 0.0  # the vision tower's gradients, on the first stage


def test_checkpoint_keys_are_those_of_fused_norms(tiny_hf: Path) -> None:
    """Transformer Engine fuses norms into linears; checkpoints made here must load there."""
    keys = run_ranks(_checkpoint_keys, 1, str(tiny_hf))[0]
    for block in ("language_model", "vision_model"):
        assert f"{block}.decoder.layers.self_attention.linear_qkv.layer_norm_weight" in keys
        assert f"{block}.decoder.layers.mlp.linear_fc1.layer_norm_weight" in keys
    assert not any("input_layernorm" in key or "pre_mlp_layernorm" in key for key in keys)


def test_wrong_number_of_image_tokens_is_named(tiny_hf: Path) -> None:
    message = run_ranks(_forward_without_patches, 1, str(tiny_hf))[0]
    assert "0 patches" in message and "image tokens" in message


def _build(folder: str, parallel: ParallelConfig):
    from megatron_omr.convert.load import load_hf
    from megatron_omr.model.build import build_model

    ranks, model = init_ranks(parallel), ModelConfig.from_hf(folder)
    chunks = build_model(model, parallel, ranks, precision="fp32")
    load_hf(chunks, folder, model, ranks)
    return ranks, model, chunks[0]


@torch.no_grad()
def _differences_of_neighbours(folder: str) -> tuple[float, float, float]:
    """Of the second and the first sample when the first one's images change; of both when they are packed."""
    from data_pipeline.loader.packing import merge
    from megatron_omr.oracle import draw_example

    _, model, chunk = _build(folder, ParallelConfig())
    generator = torch.Generator().manual_seed(1)
    first, second = (draw_example(model, name, 2, generator) for name in "ab")
    other = replace(first, pixels=255 - first.pixels)

    def logits(*examples):
        out = chunk(merge(examples, multiple=1, pad_token_id=0)).squeeze(1)
        return out.split([len(e) for e in examples])

    def difference(a, b):
        return float((a - b).abs().max())

    together, changed = logits(first, second), logits(other, second)
    alone = logits(first)[0], logits(second)[0]
    packing = max(difference(a, b) for a, b in zip(together, alone, strict=True))
    return difference(together[1], changed[1]), difference(together[0], changed[0]), packing


def _gradients_of_text(folder: str, parallel: ParallelConfig):
    from data_pipeline.loader.packing import merge
    from megatron_omr.oracle import draw_example

    ranks, model, chunk = _build(folder, parallel)
    batch = merge([draw_example(model, "a", 0, torch.Generator().manual_seed(1))], pad_token_id=0)
    if not ranks.is_first_stage:
        chunk.set_input_tensor(torch.randn(batch.num_tokens, 1, model.hidden_size))
    chunk(batch).sum().backward()
    without = [name for name, p in chunk.named_parameters() if p.grad is None]
    vision = (
        []
        if chunk.vision_model is None
        else [float(p.grad.abs().max()) for p in chunk.vision_model.parameters()]
    )
    return without, max(vision, default=0.0)


def _checkpoint_keys(folder: str) -> set[str]:
    *_, chunk = _build(folder, ParallelConfig())
    return {tensor.key for tensor in chunk.sharded_state_dict().values()}


def _forward_without_patches(folder: str) -> str:
    from data_pipeline.loader.packing import merge
    from megatron_omr.oracle import draw_example

    _, model, chunk = _build(folder, ParallelConfig())
    example = draw_example(model, "a", 1, torch.Generator().manual_seed(1))
    batch = merge([replace(example, pixels=example.pixels[:0])], pad_token_id=0)
    with pytest.raises(ValueError) as error:
        chunk(batch)
    return str(error.value)
