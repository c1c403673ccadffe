"""FP8 in the linear layers of the language model's decoder: by Transformer Engine on GPUs, emulated elsewhere.

The emulation rounds what Transformer Engine would, with the recipe's scales, and multiplies in float32: it shows what
FP8 does to a loss, not what it does to a step's time. Vision tower, merger and output layer stay in BF16, and so do
the decoder's first and last layers as `compute.fp8_bf16_layers` says.

Legend: T tokens, K input and N output features of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any, Literal

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor, nn

from megatron_omr import cpu

Block = tuple[int, int]
"""Rows and columns of a matrix that share a scale."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Formats and scales. A weight has two blocks: for the output, and for the gradient of the input."""

    megatron_format: Literal["hybrid", "e4m3"]
    gradient: torch.dtype
    row: Block | None = None  # of the factors of output and input gradient; None: one scale for the matrix
    column: Block | None = None  # of the factors of the weight gradient, which sums over tokens
    weight: Block | None = None
    weight_backward: Block | None = None

    @property
    def power_of_two(self) -> bool:
        return self.row is not None


RECIPES = {
    "tensorwise": Recipe(megatron_format="hybrid", gradient=torch.float8_e5m2),
    "blockwise": Recipe(
        megatron_format="e4m3",
        gradient=torch.float8_e4m3fn,
        row=(1, 128),
        column=(128, 1),
        weight=(128, 128),
        weight_backward=(128, 128),
    ),
    "mxfp8": Recipe(
        megatron_format="e4m3",
        gradient=torch.float8_e4m3fn,
        row=(1, 32),
        column=(32, 1),
        weight=(1, 32),
        weight_backward=(32, 1),
    ),
}

_ANY = (99, 0)
_FP8_NEEDS = {  # recipe: compute capability from and below, Transformer Engine, the former in words, CUDA
    "tensorwise": ((8, 9), _ANY, (2, 2), "Ada, Hopper or newer", (12, 1)),
    "blockwise": ((9, 0), _ANY, (2, 3), "Hopper or newer", (12, 9)),
    "mxfp8": ((10, 0), (12, 0), (2, 1), "data-centre Blackwell", (12, 8)),
}


def build_fp8_fields(fp8: str, bf16_layers: int) -> dict[str, Any]:
    """Returns the fields of the language model's TransformerConfig that make Transformer Engine compute in FP8.

    None where there is no GPU: Megatron-Core would take FP8 for granted, and compute without.
    """
    return megatron_fields(fp8, bf16_layers) if cpu.device() == "cuda" else {}


def megatron_fields(fp8: str, bf16_layers: int) -> dict[str, Any]:
    """Returns those fields, on any machine; none for "off"."""
    if fp8 == "off":
        return {}
    return dict(
        fp8=RECIPES[fp8].megatron_format,
        fp8_recipe=fp8,
        fp8_param=False,  # weights stay in BF16, so that export and checkpoints are the same
        fp8_dot_product_attention=False,
        first_last_layers_bf16=bf16_layers > 0,
        num_layers_at_start_in_bf16=bf16_layers,
        num_layers_at_end_in_bf16=bf16_layers,
    )


def set_up_fp8(decoder: TransformerBlock, fp8: str, bf16_layers: int) -> None:
    """Checks that this GPU can compute in FP8; without a GPU, turns the emulation on in this stage's layers.

    Raises:
        ValueError: the GPU, its software or Transformer Engine cannot run the recipe.
    """
    if fp8 == "off":
        return
    if cpu.device() == "cuda":
        _check_gpu(fp8)
        return
    for layer in _fp8_layers(decoder, bf16_layers):
        for linear in _linears(layer):
            linear._forward_impl = partial(_compute_rounded, RECIPES[fp8])


def count_emulated(module: nn.Module) -> int:
    """Returns how many linear layers of a module round."""
    return sum("_forward_impl" in vars(m) for m in module.modules())


def _check_gpu(recipe: str) -> None:
    """Raises ValueError, with the reason, where this GPU cannot compute in FP8 with a recipe."""
    engine = metadata.version("transformer-engine")
    if problem := find_fp8_problem(recipe, cpu.capability() or (0, 0), cpu.cuda_version(), engine):
        raise ValueError(f"compute.fp8={recipe} {problem}; use compute.fp8=off")


def find_fp8_problem(
    recipe: str, capability: tuple[int, int], cuda: tuple[int, ...], transformer_engine: str
) -> str:
    """Returns why a GPU of this compute capability, with these versions, cannot run an FP8 recipe; "" if it can."""
    lowest, above, engine, chips, least_cuda = _FP8_NEEDS[recipe]
    if not lowest <= capability < above:
        return f"needs {chips}, and this GPU has compute capability {'.'.join(map(str, capability))}"
    if cuda < least_cuda:
        return f"needs CUDA {'.'.join(map(str, least_cuda))}, and torch was built with {'.'.join(map(str, cuda))}"
    installed = tuple(int(part) for part in transformer_engine.split(".")[:2])
    if installed < engine:
        return f"needs Transformer Engine {'.'.join(map(str, engine))}, and {transformer_engine} is installed"
    return ""


def _fp8_layers(decoder: Any, bf16_layers: int) -> Iterator[nn.Module]:
    for layer in decoder.layers:  # numbered from 1 over all stages
        if bf16_layers < layer.layer_number <= decoder.config.num_layers - bf16_layers:
            yield layer


def _linears(layer: nn.Module) -> Iterator[Any]:
    return (m for m in layer.modules() if isinstance(m, ColumnParallelLinear | RowParallelLinear))


def _compute_rounded(
    recipe: Recipe,
    *,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sequence_parallel: bool,
    allreduce_dgrad: bool,
    tp_group: Any,
    **_: Any,  # options of fused gradient accumulation
) -> Tensor:
    """Takes the place of Megatron's product of [T, 1, K] and [N, K], with its tensor-parallel collectives."""
    if sequence_parallel:
        input = gather_from_sequence_parallel_region(input, group=tp_group)
    elif allreduce_dgrad:
        input = copy_to_tensor_model_parallel_region(input, group=tp_group)
    output = _RoundedLinear.apply(input, weight, recipe)
    return output if bias is None else output + bias


class _RoundedLinear(torch.autograd.Function):
    """input @ weight.T where all three products have rounded factors. The sums are exact to float32."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, recipe: Recipe) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.recipe = recipe
        x_TK = round_to_fp8(input.flatten(0, -2), block=recipe.row, power_of_two=recipe.power_of_two)
        w_NK = round_to_fp8(weight, block=recipe.weight, power_of_two=recipe.power_of_two)
        return (x_TK @ w_NK.T).to(input.dtype).view(*input.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        input, weight = ctx.saved_tensors
        recipe: Recipe = ctx.recipe
        round_: Callable[..., Tensor] = partial(round_to_fp8, power_of_two=recipe.power_of_two)
        grad_TN, grad_input, grad_weight = grad.flatten(0, -2), None, None
        if ctx.needs_input_grad[0]:
            g_TN = round_(grad_TN, recipe.gradient, block=recipe.row)
            grad_input = (
                (g_TN @ round_(weight, block=recipe.weight_backward)).to(input.dtype).view(input.shape)
            )
        if ctx.needs_input_grad[1]:
            g_TN = round_(grad_TN, recipe.gradient, block=recipe.column)
            grad_weight = (g_TN.T @ round_(input.flatten(0, -2), block=recipe.column)).to(weight.dtype)
        return grad_input, grad_weight, None


def round_to_fp8(
    x: Tensor,
    dtype: torch.dtype = torch.float8_e4m3fn,
    *,
    block: Block | None = None,
    power_of_two: bool = False,
) -> Tensor:
    """Returns a matrix [rows, columns] in float32, rounded to a float8 format with one scale for each block.

    Args:
        block: rows and columns that share a scale; those at the end of the matrix may be smaller. None: all share one.
        power_of_two: round scales down to powers of two.
    """
    x = x.float()
    if block is None:
        return _round(x, x.abs().amax(), dtype, power_of_two)
    rows, columns = x.shape
    padded = nn.functional.pad(x, (0, -columns % block[1], 0, -rows % block[0]))
    blocks = padded.unflatten(1, (-1, block[1])).unflatten(
        0, (-1, block[0])
    )  # [blocks, rows, blocks, columns]
    rounded = _round(blocks, blocks.abs().amax(dim=(1, 3), keepdim=True), dtype, power_of_two)
    return rounded.flatten(2, 3).flatten(0, 1)[:rows, :columns]


def _round(x: Tensor, largest: Tensor, dtype: torch.dtype, power_of_two: bool) -> Tensor:
    highest = torch.finfo(dtype).max
    scale = torch.where(largest > 0, highest / largest, 1.0).clamp(max=torch.finfo(torch.float32).max)
    if power_of_two:
        scale = torch.ldexp(torch.ones_like(scale), torch.frexp(scale).exponent - 1)
    return (x * scale).clamp(-highest, highest).to(dtype).float() * scale.reciprocal()
