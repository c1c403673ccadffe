"""What the vision towers of all families have in common.

Legend: P patches, M merged patches (P / merge**2), D hidden size of the language model, C channels of a head.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from megatron.core.models.vision.multimodal_projector import MultimodalProjector
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from data_pipeline.encode.images import find_frames, normalise
from megatron_omr import cpu
from megatron_omr.families.shapes import TOWER_ROPE_THETA
from megatron_omr.model.spec import Backend, build_block_spec, build_mlp_submodules
from megatron_omr.model.transformer_config import VisionTransformerConfig
from megatron_omr.model_config import ModelConfig


class VisionTower(MegatronModule):
    """Turns patches into embeddings of the language model's width; the layers are Megatron's."""

    layer: ClassVar[type[TransformerLayer]]

    def __init__(
        self,
        config: VisionTransformerConfig,
        projector_config: TransformerConfig,
        model: ModelConfig,
        backend: Backend,
    ) -> None:
        super().__init__(config=config)
        vision = model.vision
        self.vision, self.patches = vision, model.family.patches
        self.merged_size = vision.hidden_size * vision.spatial_merge_size**2
        self.output_size = vision.out_hidden_size * (1 + vision.num_levels)
        # the checkpoint's strided convolution sees each patch once: a linear layer on the flattened patch
        self.patch_embed = nn.Linear(
            vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            vision.hidden_size,
            bias=vision.patch_bias,
            dtype=config.params_dtype,
            device=cpu.device(),
        )
        spec = build_block_spec(backend, config.num_layers, causal=False, layer=self.layer)
        self.decoder = TransformerBlock(config, spec)  # its final norm is the merger's
        self.projection = build_projector(projector_config, backend, self.merged_size)

    @abstractmethod
    def forward(self, pixels: Tensor, grid_thw: Tensor, frames: Tensor | None = None) -> Tensor:
        """Turns pixels, grid_thw [I, 3] and frames [I], see Example, into [M, (1 + levels) * D].

        First the embeddings, then the features that the first language layers get (`vision.num_levels` of them).
        """

    def embed_patches(
        self, pixels: Tensor, grid_thw: Tensor, frames: Tensor | None, order_P: Tensor | None = None
    ) -> Tensor:
        """Turns the patches of images and pairs of frames into [P, hidden size of the tower], in this order."""

        def take(rows: Tensor) -> Tensor:
            return pixels.index_select(0, rows if order_P is None else rows[order_P])

        if frames is None:
            values = normalise(pixels if order_P is None else pixels.index_select(0, order_P), self.patches)
        else:
            first_P, second_P = find_frames(grid_thw, frames)
            values = normalise(take(first_P), self.patches, take(second_P))
        return self.patch_embed(values.to(self.config.params_dtype))

    def rotary_table(self, positions_P: Tensor) -> Tensor:
        """Returns angles [P, 1, 1, C]: a quarter of the head by row, a quarter by column, then the same again."""
        half = self.vision.hidden_size // self.vision.num_heads // 2
        steps = torch.arange(0, half, 2, device=positions_P.device).float()
        inverse_frequency = 1.0 / TOWER_ROPE_THETA ** (steps / half)
        angles = (positions_P[:, :, None].float() * inverse_frequency).flatten(1)
        return torch.cat([angles, angles], dim=1)[:, None, None, :]

    def merge(self, hidden: Tensor, projection: Any) -> Tensor:
        """Turns [P, 1, hidden size of the tower], or the same values in any form, into [M, D]."""
        return projection(hidden.reshape(-1, 1, self.merged_size)).squeeze(1)


def build_projector(config: TransformerConfig, backend: Backend, input_size: int) -> MultimodalProjector:
    """Returns a merger's two linear layers, which take merged patches of `input_size` channels."""
    return MultimodalProjector(config, build_mlp_submodules(backend, with_norm=False), "mlp", input_size)
