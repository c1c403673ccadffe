"""Turns our configs into Megatron's TransformerConfig: language model, vision tower, projector."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_omr import cpu
from megatron_omr.config import ParallelConfig
from megatron_omr.dtypes import Precision, torch_dtype
from megatron_omr.model.rotary import rotary_frequencies
from megatron_omr.model.stages import split_layers
from megatron_omr.model_config import ModelConfig

_VISION_NORM_EPS = 1e-6  # the same in all families, and not part of their configs


@dataclass
class VisionTransformerConfig(TransformerConfig):
    """Adds what the layers of a tower need to know. (Megatron's own `window_size` means sliding windows.)"""

    full_attention_layers: tuple[int, ...] = ()  # the others attend to windows
    deepstack_layers: tuple[int, ...] = ()  # whose outputs the language model gets, too


def build_language_config(
    model: ModelConfig, parallel: ParallelConfig, shared: dict[str, Any]
) -> TransformerConfig:
    """Returns the config of the language model's layers; `shared` has the fields that all parts of the model have."""
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.intermediate_size,
        num_attention_heads=model.num_heads,
        num_query_groups=model.num_kv_heads,
        kv_channels=model.head_dim,
        # queries and keys are both multiplied by YaRN's factor
        softmax_scale=rotary_frequencies(model)[1] ** 2 / model.head_dim**0.5,
        add_bias_linear=False,
        layernorm_epsilon=model.rms_norm_eps,
        mrope_section=list(model.rope.mrope_section),
        context_parallel_size=parallel.cp,
        sequence_parallel=parallel.sp,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",  # Megatron asks for it with variable lengths, dense models too
        add_qkv_bias=model.qkv_bias,
        qk_layernorm=model.qk_norm,
        **_swiglu(),
        **(shared | _pipeline(model, parallel) | _experts(model, parallel)),
    )


def _experts(model: ModelConfig, parallel: ParallelConfig) -> dict[str, Any]:
    moe = model.moe
    if moe is None:
        return {}
    # a list, even of ones, would make Megatron name the layers of a checkpoint one by one
    mixed = [int(layer in moe.layers) for layer in range(model.num_layers)]
    return dict(
        num_moe_experts=moe.num_experts,
        moe_router_topk=moe.num_chosen,
        moe_ffn_hidden_size=moe.intermediate_size,
        moe_layer_freq=mixed if 0 in mixed else 1,
        moe_router_dtype="fp32",
        moe_router_load_balancing_type="none",  # the router's own
        moe_aux_loss_coeff=0.0,
        expert_model_parallel_size=parallel.ep,
        expert_tensor_parallel_size=parallel.expert_tp,
    )


def _pipeline(model: ModelConfig, parallel: ParallelConfig) -> dict[str, Any]:
    if parallel.pp == 1:
        return {}
    chunks = [["decoder"] * number for number in split_layers(model, parallel)]
    chunks[0].insert(0, "embedding")
    chunks[-1].append("loss")
    fields = dict(pipeline_model_parallel_size=parallel.pp, pipeline_model_parallel_layout=chunks)
    if parallel.vp == 1:
        return fields
    # forward and backward are then exchanged apart; together they would go to one peer, where lengths that differ
    # between micro-batches take each other's place
    return fields | dict(
        virtual_pipeline_model_parallel_size=parallel.vp, overlap_p2p_comm=True, batch_p2p_comm=False
    )


def build_vision_config(model: ModelConfig, shared: dict[str, Any]) -> VisionTransformerConfig:
    """Returns the tower's config: tensor parallel only, on the first stage; CP ranks share the images."""
    vision = model.vision
    return VisionTransformerConfig(
        num_layers=vision.depth,
        hidden_size=vision.hidden_size,
        ffn_hidden_size=vision.padded_intermediate_size,
        num_attention_heads=vision.num_heads,
        kv_channels=vision.hidden_size // vision.num_heads,
        add_bias_linear=True,
        layernorm_epsilon=_VISION_NORM_EPS,
        add_qkv_bias=True,
        full_attention_layers=vision.fullatt_block_indexes,
        deepstack_layers=vision.deepstack_visual_indexes,
        **(_swiglu() if vision.gated_mlp else _gelu_tanh()),
        **(shared | _normalization(model)),
    )


def build_projector_config(model: ModelConfig, shared: dict[str, Any]) -> TransformerConfig:
    """Returns the config of a merger's two linear layers, from merged patches to the language model's width."""
    vision = model.vision
    return TransformerConfig(
        num_layers=1,
        hidden_size=vision.out_hidden_size,
        ffn_hidden_size=vision.hidden_size * vision.spatial_merge_size**2,
        num_attention_heads=vision.num_heads,  # unused, but must divide by tp
        add_bias_linear=True,
        activation_func=F.gelu,
        layernorm_epsilon=_VISION_NORM_EPS,
        **(shared | _normalization(model)),
    )


def _normalization(model: ModelConfig) -> dict[str, Any]:
    return {"normalization": "LayerNorm" if model.vision.layer_norm else "RMSNorm"}


def _swiglu() -> dict[str, Any]:
    # one kernel that keeps its input only; the projector's gelu would become the tanh form, so it stays in steps
    return dict(gated_linear_unit=True, activation_func=F.silu, bias_activation_fusion=True)


def _gelu_tanh() -> dict[str, Any]:
    # Megatron's fused kernel rounds each of its steps to the model's precision
    return dict(activation_func=partial(F.gelu, approximate="tanh"))


def _leave(weight: Tensor) -> None:
    """Leaves a weight as memory was: all are loaded, and drawing them takes longer than reading them."""


def recompute_fields(recompute: Literal["none", "mlp", "full"]) -> dict[str, Any]:
    """Returns what makes layers compute again in the backward pass. Megatron checks these when a config is made.

    Not offered: "core_attn", which saves nothing, since no attention here keeps scores; and "mlp" in the tower, where
    Megatron 0.16's calls itself without end.
    """
    match recompute:
        case "none":
            return {}
        case "mlp":
            return dict(recompute_granularity="selective", recompute_modules=["mlp"])
        case "full":  # each layer by itself: only its input is kept
            return dict(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1)


def shared_fields(
    parallel: ParallelConfig, precision: Precision, *, fuse_rotary: bool, fuse_weight_gradients: bool = False
) -> dict[str, Any]:
    """Returns the fields that language model, tower and projector have in common."""
    dtype = torch_dtype(precision)
    fields = dict(
        normalization="RMSNorm",
        init_method=_leave,
        output_layer_init_method=_leave,
        embedding_init_method=_leave,
        tensor_model_parallel_size=parallel.tp,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=precision == "bf16",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        attention_softmax_in_fp32=True,
        calculate_per_token_loss=True,
        # The kernel, Transformer Engine's, takes a table of angles [T, 1, 1, D] with a row for each token, which M-RoPE
        # and the tower have: tokens go in as "sbhd" of batch 1 (PackedSequences). Its "thd" form would restart the
        # positions of each sequence. It cannot scale, and need not: YaRN's factor is in softmax_scale.
        apply_rope_fusion=fuse_rotary,
        deallocate_pipeline_outputs=True,
        gradient_accumulation_fusion=fuse_weight_gradients,
    )
    return fields | cpu.transformer_overrides()
