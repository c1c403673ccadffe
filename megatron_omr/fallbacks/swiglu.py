"""SwiGLU that keeps only its input for the backward pass, in plain torch operations.

Megatron's own is written for its jit fuser, which needs CUDA's compiler. Without it, it takes twice as long as this,
and in bfloat16 rounds after each of its ten steps. Gradients here are those of torch's silu, to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def bias_swiglu(
    x: Tensor, bias: Tensor | None, fp8_input: bool = False, offload_input: bool = False
) -> Tensor:
    """Turns gate and linear half [..., 2 F], and a bias [2 F], into silu(gate) * linear [..., F].

    Has the arguments of megatron.core.fusions.fused_bias_swiglu.bias_swiglu_impl.
    """
    assert not fp8_input and not offload_input, "these need CUDA"
    return _BiasSwiGLU.apply(x, bias)


class _BiasSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, bias)
        gate, linear = (x if bias is None else x + bias).chunk(2, -1)
        return F.silu(gate).mul_(linear)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        x, bias = ctx.saved_tensors
        biased = x if bias is None else x + bias
        gate, linear = biased.chunk(2, -1)
        out = torch.empty_like(biased)
        grad_gate, grad_linear = out.chunk(2, -1)
        torch.mul(grad, F.silu(gate), out=grad_linear)
        torch.ops.aten.silu_backward.grad_input(grad * linear, gate, grad_input=grad_gate)
        return out, out.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
