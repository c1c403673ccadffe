"""A layer of experts against transformers' block: output, gradients, auxiliary loss and load, in each layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_omr.config import ParallelConfig
from tests.helpers.ranks import init_ranks, run_ranks

pytestmark = pytest.mark.heavy

TOKENS, BALANCE = 24, 0.1
LAYOUTS = {
    "ep2": ParallelConfig(ep=2),
    "tp2": ParallelConfig(tp=2, sp=True),
    "tp2 ep2": ParallelConfig(tp=2, sp=True, ep=2, etp=1),
    "cp2 ep2": ParallelConfig(cp=2, ep=2),
}


def test_layer_is_that_of_transformers(tiny_moe_hf: Path) -> None:
    wanted = _run_transformers(str(tiny_moe_hf))
    found, _ = run_ranks(_run_layouts, 2, str(tiny_moe_hf), list(LAYOUTS.values()))
    for name, one in zip(LAYOUTS, found, strict=True):
        # ranks of data parallelism have micro-batches of their own, whose auxiliary losses are not that of both
        own = {"out", "fc1", "fc2", "load"} if name == "ep2" else wanted.keys()
        gaps = {
            key: float((torch.tensor(one[key]) - wanted[key]).abs().max() / wanted[key].abs().max())
            for key in own
        }
        assert max(gaps.values()) < 1e-5, (name, gaps)


def _draw() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden, grad = (torch.randn(TOKENS, 128, generator=generator) for _ in range(2))
    return hidden, grad, torch.arange(TOKENS) % 6 != 5


def _load_block(folder: str) -> Any:
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.model.language_model.layers[1].mlp


def _run_transformers(folder: str) -> dict[str, Tensor]:
    from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import load_balancing_loss_func

    block, (hidden, grad, is_real) = _load_block(folder), _draw()
    hidden.requires_grad_()
    out = block(hidden[None])
    out = out[0] if isinstance(out, tuple) else out
    logits = hidden[is_real] @ block.gate.weight.T
    balance = load_balancing_loss_func((logits,), block.gate.num_experts, block.gate.top_k)
    # as a loss whose gradients are divided by the number of tokens afterwards
    loss = (out[0] * grad).sum() + BALANCE * balance / block.gate.top_k * is_real.sum()
    loss.backward()
    chosen = logits.topk(block.gate.top_k, dim=1).indices
    return {
        "out": out[0].detach(),
        "hidden": hidden.grad,
        "router": block.gate.weight.grad,
        "fc1": block.experts.gate_up_proj.grad,
        "fc2": block.experts.down_proj.grad,
        "load": chosen.flatten().bincount(minlength=block.gate.num_experts).float(),
        "balance": balance.detach() / block.gate.top_k,
    }


def _run_layouts(folder: str, layouts: list[ParallelConfig]) -> list[dict[str, Any]]:
    from megatron_omr.parallel import shutdown

    found = []
    for number, layout in enumerate(layouts):
        ranks = init_ranks(layout, world=str(number))
        found.append({name: tensor.tolist() for name, tensor in _run_layer(folder, layout, ranks).items()})
        shutdown()
    return found


def _run_layer(folder: str, layout: ParallelConfig, ranks: Any) -> dict[str, Tensor]:
    """Returns whole tensors: what ranks hold parts of is joined, and gradients of the same weights are summed up."""
    import torch.distributed as dist
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
    from megatron.core.transformer.spec_utils import build_module

    from megatron_omr.model.moe.layer import experts_spec
    from megatron_omr.model.moe.router import Routing
    from megatron_omr.model.spec import choose_backend
    from megatron_omr.model.transformer_config import build_language_config, shared_fields
    from megatron_omr.model_config import ModelConfig

    model, backend = ModelConfig.from_hf(folder), choose_backend(precision="fp32")
    config = build_language_config(model, layout, shared_fields(layout, "fp32", fuse_rotary=False))
    layer = build_module(experts_spec(backend.column_linear, backend.row_linear, None), config=config)
    layer.set_layer_number(2)
    block = _load_block(folder)
    fc1, fc2 = block.experts.gate_up_proj.data, block.experts.down_proj.data
    inner = fc2.size(2) // ranks.etp_size
    own = slice(ranks.etp_rank * inner, (ranks.etp_rank + 1) * inner)
    with torch.no_grad():
        layer.router.weight.copy_(block.gate.weight)
        for expert, local in zip(layer.local_expert_indices, layer.experts.local_experts, strict=True):
            gate, up = fc1[expert].chunk(2)
            local.linear_fc1.weight.copy_(torch.cat([gate[own], up[own]]))
            local.linear_fc2.weight.copy_(fc2[expert][:, own])
    hidden, grad, is_real = (t.chunk(2)[ranks.rank] for t in _draw())
    MoEAuxLossAutoScaler.main_loss_backward_scale = torch.ones(1)
    layer.routing_of_batch, layer.router.balance = Routing(is_real=is_real), BALANCE
    hidden = hidden.clone().requires_grad_()
    out = layer(hidden[:, None])[0].squeeze(1)
    (out * grad).sum().backward()
    whole = {"out": out.detach(), "hidden": hidden.grad}
    joined = {name: torch.cat(_gather(t)) for name, t in whole.items()}
    grad_fc1, grad_fc2, router = (
        torch.zeros_like(fc1),
        torch.zeros_like(fc2),
        layer.router.weight.grad.clone(),
    )
    for expert, local in zip(layer.local_expert_indices, layer.experts.local_experts, strict=True):
        halves = local.linear_fc1.weight.grad.chunk(2)
        for half, into in zip(halves, grad_fc1[expert].chunk(2), strict=True):
            into[own] = half
        grad_fc2[expert][:, own] = local.linear_fc2.weight.grad
    totals = {
        "router": router,
        "fc1": grad_fc1,
        "fc2": grad_fc2,
        "load": layer.router.load,
        "sum": layer.router.balance_sum,
    }
    for tensor in totals.values():
        dist.all_reduce(tensor)
    total, number = totals.pop("sum")
    return joined | totals | {"balance": total / number}


def _gather(tensor: Tensor) -> list[Tensor]:
    import torch.distributed as dist

    parts = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(parts, tensor.contiguous())
    return parts
