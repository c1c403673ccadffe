"""Builds this rank's part of the model from a Hugging Face-like config and a layout."""

from __future__ import annotations

from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_block import get_num_layers_to_build

from megatron_omr import cpu
from megatron_omr.config import ComputeConfig, ParallelConfig
from megatron_omr.dtypes import Precision
from megatron_omr.model.rotary import rotary_frequencies
from megatron_omr.model.spec import build_block_spec, choose_backend
from megatron_omr.model.transformer_config import (
    build_language_config,
    build_projector_config,
    build_vision_config,
    recompute_fields,
    shared_fields,
)
from megatron_omr.model.vision import VisionModel
from megatron_omr.model.vlm import Qwen25VL
from megatron_omr.model_config import ModelConfig
from megatron_omr.parallel import Ranks


def build_model(
    model: ModelConfig,
    parallel: ParallelConfig,
    ranks: Ranks,
    *,
    precision: Precision,
    compute: ComputeConfig = ComputeConfig(),  # noqa: B008 (frozen)
) -> list[Qwen25VL]:
    """Returns the model chunks of this pipeline stage (always one), on `cpu.device()`, with weights yet to be loaded.

    Raises:
        ValueError: the layout cannot hold the model, or the backend does not work here.
    """
    parallel.check_model(model)
    backend = choose_backend(compute.backend)
    shared = shared_fields(parallel, precision, fuse_rotary=backend.fuses_rotary)
    config = build_language_config(model, parallel, shared | recompute_fields(compute.recompute))
    language_model = GPTModel(
        config,
        build_block_spec(backend, get_num_layers_to_build(config), causal=True),
        vocab_size=model.vocab_size,
        max_sequence_length=model.max_position_embeddings,
        pre_process=ranks.is_first_stage,
        post_process=ranks.is_last_stage,
        parallel_output=True,
        share_embeddings_and_output_weights=model.tie_word_embeddings,
        position_embedding_type="mrope",
        scatter_embedding_sequence_parallel=False,  # images go in first
    )
    language_model.rotary_pos_emb.inv_freq = rotary_frequencies(model)[0].to(cpu.device())
    vision_model = None
    if ranks.is_first_stage:
        vision_model = VisionModel(
            build_vision_config(model, shared | recompute_fields(compute.recompute_vision)),
            build_projector_config(model, shared),
            model.vision,
            backend,
        )
    return [Qwen25VL(language_model, vision_model, model, ranks)]
