"""Builds this rank's part of the model from a Hugging Face-like config and a layout."""

from __future__ import annotations

from typing import Any

from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, get_transformer_layer_offset
from torch import Tensor

from megatron_omr import cpu
from megatron_omr.config import ComputeConfig, ParallelConfig
from megatron_omr.dtypes import Precision
from megatron_omr.model.deepstack import DeepstackLayer
from megatron_omr.model.fp8 import build_fp8_fields, set_up_fp8
from megatron_omr.model.moe.layer import connect_routers, mark_experts
from megatron_omr.model.rotary import MRotary
from megatron_omr.model.spec import Backend, build_block_spec, choose_backend, choose_window_attention
from megatron_omr.model.transformer_config import (
    build_language_config,
    build_projector_config,
    build_vision_config,
    recompute_fields,
    shared_fields,
)
from megatron_omr.model.vision.choose import TOWERS
from megatron_omr.model.vlm import VisionLanguageModel
from megatron_omr.model_config import ModelConfig
from megatron_omr.parallel import Ranks


def build_model(
    model: ModelConfig,
    parallel: ParallelConfig,
    ranks: Ranks,
    *,
    precision: Precision,
    compute: ComputeConfig = ComputeConfig(),
) -> list[VisionLanguageModel]:
    """Returns this stage's `parallel.vp` model chunks, on `cpu.device()`, with weights yet to be loaded.

    Raises:
        ValueError: the layout cannot hold the model, or this machine cannot compute as `compute` says.
    """
    parallel.check_model(model)
    compute.check_model(model, parallel)
    _check_head(compute, precision)
    backend = choose_backend(compute, precision=precision, cp=parallel.cp)
    shared = shared_fields(
        parallel,
        precision,
        fuse_rotary=backend.fuses_rotary,
        fuse_weight_gradients=cpu.fuses_weight_gradients(compute.wgrad_fusion),
    )
    own = recompute_fields(compute.recompute) | build_fp8_fields(compute.fp8, compute.fp8_bf16_layers)
    config = build_language_config(model, parallel, shared | own)
    vision_model = None
    if ranks.is_first_stage:
        vision_model = TOWERS[model.family_name](
            build_vision_config(model, shared | recompute_fields(compute.recompute_vision)),
            build_projector_config(model, shared),
            model,
            choose_window_attention(compute, backend, has_windows=model.vision.window_size > 0),
        )
    config.moe_grouped_gemm = model.moe is not None and backend.grouped_experts is not None
    chunks = []
    for number in range(parallel.vp):
        is_first, is_last = number == 0, number == parallel.vp - 1
        vp_stage = number if parallel.vp > 1 else None
        language_model = GPTModel(
            config,
            _block_spec(backend, model, config, vp_stage),
            vocab_size=model.vocab_size,
            max_sequence_length=model.max_position_embeddings,
            pre_process=is_first and ranks.is_first_stage,
            post_process=is_last and ranks.is_last_stage,
            parallel_output=True,
            share_embeddings_and_output_weights=model.tie_word_embeddings,
            position_embedding_type="mrope",
            scatter_embedding_sequence_parallel=False,  # images go in first
            vp_stage=vp_stage,
        )
        language_model.rotary_pos_emb = MRotary(model)
        if compute.fp32_head and language_model.post_process:
            _multiply_in_fp32(language_model.output_layer)
        connect_routers(language_model.decoder)
        set_up_fp8(language_model.decoder, compute.fp8, compute.fp8_bf16_layers)
        chunks.append(VisionLanguageModel(language_model, vision_model if is_first else None, model, ranks))
    mark_experts(chunks)
    return chunks


def _check_head(compute: ComputeConfig, precision: Precision) -> None:
    if compute.fp32_head and precision == "fp32":
        raise ValueError(
            "compute.fp32_head=True changes nothing with precision=fp32, which computes all in float32; drop one"
        )


def _block_spec(
    backend: Backend, model: ModelConfig, config: TransformerConfig, vp_stage: int | None
) -> ModuleSpec:
    number, first = get_num_layers_to_build(config, vp_stage), get_transformer_layer_offset(config, vp_stage)
    layers = model.moe.layers if model.moe else ()
    has_experts = [layer in layers for layer in range(first, first + number)]
    return build_block_spec(
        backend,
        number,
        causal=True,
        layer=DeepstackLayer if model.vision.num_levels else TransformerLayer,
        qk_norm=model.qk_norm,
        has_experts=has_experts,
    )


def _multiply_in_fp32(output_layer: Any) -> None:
    """Makes a ColumnParallelLinear compute in float32; its weights, and so their gradients, keep their precision."""
    multiply = output_layer._forward_impl

    def forward(*, input: Tensor, weight: Tensor, **how: Any) -> Tensor:
        how["gradient_accumulation_fusion"] = False  # the weights that are multiplied are a copy
        return multiply(input=input.float(), weight=weight.float(), **how)

    output_layer._forward_impl = forward
