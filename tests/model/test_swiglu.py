"""Our SwiGLU against torch's steps: equal to the bit, in less memory; and that the model's layers use it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_omr.config import ParallelConfig
from megatron_omr.fallbacks.swiglu import bias_swiglu
from tests.helpers.memory import peak_bytes, saved_bytes
from tests.helpers.ranks import run_ranks
from tests.helpers.trainers import tiny_trainer


def in_steps(x: Tensor, bias: Tensor | None) -> Tensor:
    gate, linear = (x if bias is None else x + bias).chunk(2, -1)
    return F.silu(gate) * (linear + 0.0)  # as Megatron's MLP has it without fusion


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_torch_to_the_bit_in_less_memory(dtype: torch.dtype, with_bias: bool) -> None:
    x, bias, grad = torch.randn(96, 1, 128), torch.randn(128), torch.randn(96, 1, 64)
    inputs = [t.to(dtype).requires_grad_() for t in ((x, bias) if with_bias else (x,))]
    seen = []
    for fn in (in_steps, bias_swiglu):
        out = fn(inputs[0], inputs[1] if with_bias else None)
        grads = torch.autograd.grad(out, inputs, grad.to(dtype))

        def call(fn=fn) -> Tensor:
            return fn(inputs[0], inputs[1] if with_bias else None)

        peak = peak_bytes(lambda call=call: torch.autograd.grad(call(), inputs, grad.to(dtype)))
        seen.append((out, grads, saved_bytes(call, skip=inputs[1:]), peak))
    (out, grads, saved, peak), (our_out, our_grads, our_saved, our_peak) = seen
    assert our_out.equal(out) and all(a.equal(b) for a, b in zip(our_grads, grads, strict=True))
    half = 96 * 64 * dtype.itemsize
    assert (saved, our_saved) == (4 * half, 2 * half)
    assert our_peak < peak


@pytest.mark.heavy
def test_layers_keep_three_widths_of_the_mlp_rather_than_five(tiny_hf: Path) -> None:
    language, tower, projector = run_ranks(_saved_in_mlps, 1, str(tiny_hf))[0]
    assert language == tower == 3.0
    assert projector == 2.0  # its gelu is the exact one, in steps: fc1's output and fc2's input


def _saved_in_mlps(folder: str) -> list[float]:
    """Returns what MLPs of language model, tower and projector keep beside their input, in widths of their middle."""
    from megatron_omr.train.trainer import unwrap_chunks

    trainer = tiny_trainer(folder, ParallelConfig())
    (chunk,) = unwrap_chunks(trainer)
    mlps = [chunk.language_model.decoder.layers[0].mlp, chunk.vision_model.decoder.layers[0].mlp]
    mlps.append(chunk.vision_model.projection.encoder)
    seen = []
    for mlp in mlps:
        x = torch.randn(64, 1, mlp.linear_fc1.weight.size(1), requires_grad=True)
        saved = saved_bytes(lambda mlp=mlp, x=x: mlp(x), skip=[x, *mlp.parameters()])
        seen.append(saved / (64 * 4 * mlp.linear_fc2.weight.size(1)))
    return seen
