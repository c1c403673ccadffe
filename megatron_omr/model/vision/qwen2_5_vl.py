"""Qwen2.5-VL's vision tower: window attention in most layers and whole-frame attention in some.

Legend: P patches, M merged patches (P / merge**2), I images. Patches come in the processor's order. The tower works in
window order, so that windows are contiguous, and returns its output in the processor's order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from megatron_omr.families.shapes import VisionConfig
from megatron_omr.model.attention import PackedSequences
from megatron_omr.model.vision.geometry import Grid
from megatron_omr.model.vision.tower import VisionTower


@dataclass
class WindowSequences(PackedSequences):
    """Windows as the sequences, and whole frames for the layers that attend fully."""

    frames: PackedSequences | None = None


@dataclass(frozen=True, kw_only=True)
class WindowGeometry:
    """Order and boundaries of patches, computed from the image sizes."""

    window_order_M: Tensor  # [M] merged patches, window by window
    window_order_P: Tensor  # [P] the same for patches
    positions_P: Tensor  # [P, 2] row and column of each patch in its image, processor's order
    window_cu_seqlens: Tensor  # [W + 1] int32, in patches
    frame_cu_seqlens: Tensor  # [F + 1] int32, in patches

    @classmethod
    def create(cls, grid_thw: Tensor, vision: VisionConfig) -> WindowGeometry:
        """Takes `grid_thw` [I, 3]: frames, rows and columns of patches of each image."""
        merge = vision.spatial_merge_size
        grid = Grid.create(grid_thw, merge)
        window = vision.window_size // vision.patch_size // merge
        window_M = (grid.frame_M * (grid.rows_I.max() + 1) + grid.row_M // window) * (
            grid.cols_I.max() + 1
        ) + grid.col_M // window
        window_M, order_M = torch.sort(window_M, stable=True)
        order_P = order_M[:, None] * merge**2 + torch.arange(merge**2, device=grid_thw.device)
        return cls(
            window_order_M=order_M,
            window_order_P=order_P.flatten(),
            positions_P=grid.positions_P,
            window_cu_seqlens=grid.boundaries(window_M),
            frame_cu_seqlens=grid.boundaries(grid.frame_M),
        )


class WindowLayer(TransformerLayer):
    """A transformer layer that attends to windows or to whole frames, depending on its number."""

    def forward(self, *args: Any, packed_seq_params: WindowSequences, **kwargs: Any) -> Any:
        full = self.layer_number - 1 in self.config.full_attention_layers
        sequences = packed_seq_params.frames if full else packed_seq_params
        return super().forward(*args, packed_seq_params=sequences, **kwargs)


class WindowTower(VisionTower):
    """Qwen2.5-VL's vision tower."""

    layer = WindowLayer

    def forward(self, pixels: Tensor, grid_thw: Tensor, frames: Tensor | None = None) -> Tensor:
        geometry = WindowGeometry.create(grid_thw, self.vision)
        order_P = geometry.window_order_P
        sequences = WindowSequences.create(
            geometry.window_cu_seqlens, frames=PackedSequences.create(geometry.frame_cu_seqlens)
        )
        hidden = self.decoder(
            self.embed_patches(pixels, grid_thw, frames, order_P).unsqueeze(1),
            attention_mask=None,
            rotary_pos_emb=self.rotary_table(geometry.positions_P[order_P]),
            packed_seq_params=sequences,
        )
        merged = self.merge(hidden, self.projection)
        return merged.index_select(0, torch.argsort(geometry.window_order_M))
