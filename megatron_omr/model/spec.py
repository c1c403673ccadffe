"""Chooses the classes of the layers: plain torch (`local`) or Transformer Engine (`te`).

One provider for language model and vision tower, so that both backends build the same model with the same
checkpoint keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from megatron_omr import cpu
from megatron_omr.config import ComputeConfig, resolve_backend
from megatron_omr.dtypes import Precision
from megatron_omr.model.attention import CoreAttention, PackedSequences, attend
from megatron_omr.model.moe.layer import experts_spec
from megatron_omr.model.names import FUSED_NORM_KEYS


class RMSNorm(nn.Module):
    """RMS norm in fp32, rounded before the weight as in transformers; supports sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=cpu.device()))
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        return _Normalise.apply(x, self.weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """torch's layer norm, as Megatron builds norms."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=cpu.device())
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel


class LocalNorm:
    """Builds the norm that a config names, as Transformer Engine's does."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float) -> nn.Module:
        return (LayerNorm if config.normalization == "LayerNorm" else RMSNorm)(config, hidden_size, eps)


class _Normalise(torch.autograd.Function):
    """weight * x / rms(x), with its own backward: a third fewer passes over memory than autograd makes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.size(-1))
        scale = mean_square.add_(eps).rsqrt_()
        normed = (wide * scale).to(x.dtype)
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        normed, scale, weight = ctx.saved_tensors
        grad_weight = (grad * normed).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        wide, grad_normed = normed.float(), (grad * weight).float()
        # the part of the gradient along x drops out: dx = (g - n mean(g n)) / rms
        along = (grad_normed * wide).mean(-1, keepdim=True)
        return torch.addcmul(grad_normed, wide, along, value=-1).mul_(scale).to(grad.dtype), grad_weight, None


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Classes with the constructors that Megatron calls."""

    norm: Any  # the one that its config names
    column_linear: Any
    norm_column_linear: Any | None  # norm and linear in one module; None where they stay two
    row_linear: Any
    core_attention: Any
    grouped_experts: (
        Any | None
    )  # module and submodules of all experts in one product; None: one after the other
    fuses_rotary: bool  # whether Megatron has a kernel for rotary positions, which is Transformer Engine's


@cache
def te_problem() -> str:
    """Returns why Transformer Engine cannot be used here; empty when it can."""
    if cpu.device() != "cuda":
        return "there is no CUDA device"
    error = cpu.find_import_error("transformer_engine.pytorch")
    return "" if error is None else f"import transformer_engine.pytorch: {cpu.describe(error)}"


def choose_backend(
    compute: ComputeConfig = ComputeConfig(), *, precision: Precision = "bf16", cp: int = 1
) -> Backend:
    """Returns the layers that `compute.backend` names on this machine; see resolve_backend."""
    chosen = resolve_backend(
        compute, device=cpu.device(), te_problem=te_problem(), precision=precision, cp=cp
    )
    return _te_backend() if chosen == "te" else _local_backend()


def choose_window_attention(compute: ComputeConfig, backend: Backend, *, has_windows: bool) -> Backend:
    """Returns `backend` with the attention that the vision tower is to have.

    Raises:
        ValueError: Transformer Engine's is asked for beside local layers.
    """
    if compute.window_attention == "te" and backend.core_attention is CoreAttention:
        raise ValueError(
            "compute.window_attention=te goes with Transformer Engine's layers, and this run has local ones; "
            "use compute.window_attention=auto"
        )
    if compute.window_attention == "local" or (compute.window_attention == "auto" and has_windows):
        return replace(backend, core_attention=CoreAttention)
    return backend


def _local_backend() -> Backend:
    return Backend(
        norm=LocalNorm,
        column_linear=ColumnParallelLinear,
        norm_column_linear=None,
        row_linear=RowParallelLinear,
        core_attention=CoreAttention,
        grouped_experts=None,
        fuses_rotary=False,
    )


@cache
def _te_backend() -> Backend:
    from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider

    te = TESpecProvider()

    class PackedTEAttention(te.core_attention()):
        """Transformer Engine's attention, which takes packed tokens as [T, N, D] in format "thd"."""

        def forward(
            self,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None = None,
            /,
            **kwargs: Any,
        ) -> Tensor:
            packed: PackedSequences = kwargs.pop("packed_seq_params")
            if packed.parents is not None:  # its kernels have no sequences with a shared beginning
                return attend(query, key, value, packed.plan, causal=True, scale=self.config.softmax_scale)
            params = PackedSeqParams(
                qkv_format="thd",
                cu_seqlens_q=packed.cu_seqlens_q,
                cu_seqlens_kv=packed.cu_seqlens_kv,
                max_seqlen_q=packed.max_seqlen_q,
                max_seqlen_kv=packed.max_seqlen_kv,
            )
            qkv = (t.squeeze(1) for t in (query, key, value))
            out = super().forward(*qkv, attention_mask, packed_seq_params=params, **kwargs)
            return out.flatten(1).unsqueeze(1)

    return Backend(
        norm=te.layer_norm(rms_norm=True),
        column_linear=te.column_parallel_linear(),
        norm_column_linear=te.column_parallel_layer_norm_linear(),
        row_linear=te.row_parallel_linear(),
        core_attention=PackedTEAttention,
        grouped_experts=te.grouped_mlp_modules(True, False),
        fuses_rotary=True,
    )


def build_block_spec(
    backend: Backend,
    num_layers: int,
    *,
    causal: bool,
    layer: type[TransformerLayer] = TransformerLayer,
    qk_norm: bool = False,
    has_experts: Sequence[bool] = (),
) -> ModuleSpec:
    """Returns the spec of `num_layers` pre-norm layers and a final norm.

    Args:
        has_experts: of each layer, whether it has experts and no MLP; empty: none has.
    """
    with_experts = has_experts or [False] * num_layers
    specs = {
        kind: _layer_spec(backend, causal=causal, layer=layer, qk_norm=qk_norm, with_experts=kind)
        for kind in {*with_experts}
    }
    submodules = TransformerBlockSubmodules(
        layer_specs=[specs[kind] for kind in with_experts], layer_norm=backend.norm
    )
    return ModuleSpec(module=TransformerBlock, submodules=submodules)


def build_mlp_submodules(backend: Backend, *, with_norm: bool) -> MLPSubmodules:
    fused = backend.norm_column_linear if with_norm else None
    return MLPSubmodules(linear_fc1=fused or backend.column_linear, linear_fc2=backend.row_linear)


def _layer_spec(
    backend: Backend, *, causal: bool, layer: type[TransformerLayer], qk_norm: bool, with_experts: bool
) -> ModuleSpec:
    fused = backend.norm_column_linear
    norm = IdentityOp if fused else backend.norm
    attention = SelfAttentionSubmodules(
        linear_qkv=fused or backend.column_linear,
        core_attention=backend.core_attention,
        linear_proj=backend.row_linear,
        q_layernorm=backend.norm if qk_norm else IdentityOp,
        k_layernorm=backend.norm if qk_norm else IdentityOp,
    )
    add: Any = get_bias_dropout_add
    mask = AttnMaskType.causal if causal else AttnMaskType.no_mask
    mlp = ModuleSpec(module=MLP, submodules=build_mlp_submodules(backend, with_norm=True))
    if with_experts:
        mlp = experts_spec(backend.column_linear, backend.row_linear, backend.grouped_experts)
    keys = dict(FUSED_NORM_KEYS)
    if with_experts:  # no linear layer for the norm to be fused into
        del keys["pre_mlp_layernorm."]
    return ModuleSpec(
        module=layer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=SelfAttention, params={"attn_mask_type": mask}, submodules=attention
            ),
            self_attn_bda=add,
            pre_mlp_layernorm=backend.norm if with_experts else norm,
            mlp=mlp,
            mlp_bda=add,
            sharded_state_dict_keys_map={} if fused else keys,
        ),
    )
