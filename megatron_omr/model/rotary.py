"""Rotary positions of the language model: the frequencies, plain or stretched by YaRN, and which axis turns which."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_omr import cpu
from megatron_omr.model_config import ModelConfig, RopeConfig


class MRotary(nn.Module):
    """Angles of tokens with three positions each; takes the place of Megatron's module, which has no turns of axes."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        # attributes, not buffers: no checkpoint has them
        self.frequencies = rotary_frequencies(model)[0].to(cpu.device())
        self.axes = frequency_axes(model.rope).to(cpu.device())

    def forward(self, position_ids: Tensor, mrope_section: list[int], cp_group: Any = None) -> Tensor:
        """Turns time, height and width [3, 1, T] of this rank's tokens into angles [T, 1, 1, head size]."""
        positions = position_ids[:, 0].index_select(0, self.axes).float()  # [head size / 2, T]
        angles = positions.T * self.frequencies
        return torch.cat([angles, angles], dim=1)[:, None, None, :]


def frequency_axes(rope: RopeConfig) -> Tensor:
    """Returns which of time, height and width each frequency is for: [head size / 2]."""
    _, height, width = rope.mrope_section
    if not rope.interleaved:
        return torch.arange(3).repeat_interleave(torch.tensor(rope.mrope_section))
    axes = torch.zeros(sum(rope.mrope_section), dtype=torch.long)
    axes[1 : 3 * height : 3] = 1
    axes[2 : 3 * width : 3] = 2
    return axes


def rotary_frequencies(model: ModelConfig) -> tuple[Tensor, float]:
    """Returns the frequencies [head size / 2] fp32, and the factor by which queries and keys are scaled."""
    rope = model.rope
    if rope.yarn is None:
        steps = torch.arange(0, model.head_dim, 2, dtype=torch.float)
        return 1.0 / rope.theta ** (steps / model.head_dim), 1.0
    config = PretrainedConfig(
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_heads,
        head_dim=model.head_dim,
        max_position_embeddings=rope.yarn.original_max_position_embeddings,
        rope_parameters={"rope_type": "yarn", "rope_theta": rope.theta} | asdict(rope.yarn),
    )
    return ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
