"""Rotary frequencies of the language model, plain or stretched by YaRN."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor
from transformers import Qwen2_5_VLTextConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_omr.model_config import ModelConfig


def rotary_frequencies(model: ModelConfig) -> tuple[Tensor, float]:
    """Returns the frequencies [head size / 2] fp32, and the factor by which queries and keys are scaled."""
    rope = model.rope
    if rope.yarn is None:
        steps = torch.arange(0, model.head_dim, 2, dtype=torch.float)
        return 1.0 / rope.theta ** (steps / model.head_dim), 1.0
    config = Qwen2_5_VLTextConfig(
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_heads,
        max_position_embeddings=rope.yarn.original_max_position_embeddings,
        rope_parameters={"rope_type": "yarn", "rope_theta": rope.theta} | asdict(rope.yarn),
    )
    return ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
