"""The vision tower: Megatron layers over patches, with window attention in most and whole-frame attention in some.

Legend: P patches, M merged patches (P / merge**2), I images, D head size. Patches come in the processor's
order: image, frame, merge block by merge block. The tower works in window order, so that windows are
contiguous, and returns its output in the processor's order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.vision.multimodal_projector import MultimodalProjector
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from data_pipeline.encode.images import normalise
from megatron_omr import cpu
from megatron_omr.families.shapes import VisionConfig
from megatron_omr.model.attention import PackedSequences
from megatron_omr.model.spec import Backend, build_block_spec, build_mlp_submodules
from megatron_omr.model.transformer_config import VisionTransformerConfig
from megatron_omr.model_config import ModelConfig

_ROPE_THETA = 10_000.0  # fixed in Qwen2.5-VL's vision tower


@dataclass
class VisionSequences(PackedSequences):
    """Windows as the sequences, and whole frames for the layers that attend fully."""

    frames: PackedSequences | None = None


@dataclass(frozen=True, kw_only=True)
class VisionGeometry:
    """Order and boundaries of patches, computed from the image sizes."""

    window_order_M: Tensor  # [M] merged patches, window by window
    window_order_P: Tensor  # [P] the same for patches
    positions_P: Tensor  # [P, 2] row and column of each patch in its image, processor's order
    window_cu_seqlens: Tensor  # [W + 1] int32, in patches
    frame_cu_seqlens: Tensor  # [F + 1] int32, in patches

    @classmethod
    def create(cls, grid_thw: Tensor, vision: VisionConfig) -> VisionGeometry:
        """Takes `grid_thw` [I, 3]: frames, rows and columns of patches of each image."""
        merge, device = vision.spatial_merge_size, grid_thw.device
        frames, rows, cols = (grid_thw // torch.tensor([1, merge, merge], device=device)).unbind(1)
        merged_I = frames * rows * cols
        num_merged = int(merged_I.sum())
        image_M = torch.arange(len(grid_thw), device=device).repeat_interleave(
            merged_I, output_size=num_merged
        )
        index_M = torch.arange(num_merged, device=device) - (merged_I.cumsum(0) - merged_I)[image_M]
        frame_M = image_M * (frames.max() + 1) + index_M // (rows * cols)[image_M]
        row_M = index_M // cols[image_M] % rows[image_M]
        col_M = index_M % cols[image_M]
        window = vision.window_size // vision.patch_size // merge
        window_M = (frame_M * (rows.max() + 1) + row_M // window) * (cols.max() + 1) + col_M // window
        window_M, order_M = torch.sort(window_M, stable=True)
        side = torch.arange(merge, device=device)
        inside = torch.cartesian_prod(side, side)  # rows and columns in a merge block
        corners_M = torch.stack([row_M, col_M], dim=1) * merge
        order_P = order_M[:, None] * merge**2 + torch.arange(merge**2, device=device)
        return cls(
            window_order_M=order_M,
            window_order_P=order_P.flatten(),
            positions_P=(corners_M[:, None] + inside).flatten(0, 1),
            window_cu_seqlens=_boundaries(window_M, merge**2),
            frame_cu_seqlens=_boundaries(frame_M, merge**2),
        )


def _boundaries(key_M: Tensor, unit: int) -> Tensor:
    """Returns where a sorted key changes, counted in patches, with both ends."""
    counts = torch.unique_consecutive(key_M, return_counts=True)[1] * unit
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()


class VisionLayer(TransformerLayer):
    """A transformer layer that attends to windows or to whole frames, depending on its number."""

    def forward(self, *args: Any, packed_seq_params: VisionSequences, **kwargs: Any) -> Any:
        full = self.layer_number - 1 in self.config.full_attention_layers
        sequences = packed_seq_params.frames if full else packed_seq_params
        return super().forward(*args, packed_seq_params=sequences, **kwargs)


class VisionModel(MegatronModule):
    """Turns patches into embeddings of the language model's width."""

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
        # the checkpoint's strided convolution sees each patch once: a linear layer on the flattened patch
        self.patch_embed = nn.Linear(
            vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            vision.hidden_size,
            bias=False,
            dtype=config.params_dtype,
            device=cpu.device(),
        )
        spec = build_block_spec(backend, config.num_layers, causal=False, layer=VisionLayer)
        self.decoder = TransformerBlock(config, spec)  # its final norm is the merger's
        self.merged_size = vision.hidden_size * vision.spatial_merge_size**2
        self.projection = MultimodalProjector(
            projector_config, build_mlp_submodules(backend, with_norm=False), "mlp", self.merged_size
        )

    def forward(self, pixels: Tensor, grid_thw: Tensor) -> Tensor:
        """Turns pixels [P, 14 * 14 * 3] uint8, grid_thw [I, 3] into [M, hidden size of the language model]."""
        geometry = VisionGeometry.create(grid_thw, self.vision)
        order_P = geometry.window_order_P
        sequences = VisionSequences.create(
            geometry.window_cu_seqlens, frames=PackedSequences.create(geometry.frame_cu_seqlens)
        )
        pixel_values = normalise(pixels.index_select(0, order_P), self.patches)
        patches = self.patch_embed(pixel_values.to(self.config.params_dtype))
        hidden = self.decoder(
            patches.unsqueeze(1),
            attention_mask=None,
            rotary_pos_emb=self._rotary_table(geometry.positions_P[order_P]),
            packed_seq_params=sequences,
        )
        merged = self.projection(hidden.reshape(-1, 1, self.merged_size)).squeeze(1)
        return merged.index_select(0, torch.argsort(geometry.window_order_M))

    def _rotary_table(self, positions_P: Tensor) -> Tensor:
        """Returns angles [P, 1, 1, D]: a quarter of the head by row, a quarter by column, then the same again."""
        half = self.vision.hidden_size // self.vision.num_heads // 2
        steps = torch.arange(0, half, 2, device=positions_P.device).float()
        inverse_frequency = 1.0 / _ROPE_THETA ** (steps / half)
        angles = (positions_P[:, :, None].float() * inverse_frequency).flatten(1)
        return torch.cat([angles, angles], dim=1)[:, None, None, :]
