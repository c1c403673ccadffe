"""Qwen3-VL's vision tower: learned positions, whole-frame attention, and features of several depths (deepstack).

Legend: P patches in the processor's order, I images, S side of the square of learned positions, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from megatron_omr import cpu
from megatron_omr.model.attention import PackedSequences
from megatron_omr.model.spec import Backend
from megatron_omr.model.transformer_config import VisionTransformerConfig
from megatron_omr.model.vision.geometry import Grid
from megatron_omr.model.vision.tower import VisionTower, build_projector
from megatron_omr.model_config import ModelConfig


@dataclass
class TappedSequences(PackedSequences):
    """Frames as the sequences, and the outputs of some layers, which these put in."""

    taps: list[Tensor] | None = field(default_factory=list)  # None once they are taken


class TappedLayer(TransformerLayer):
    """A transformer layer that keeps its output for the language model, if its number is one of those.

    Computed again in the backward pass, a layer keeps nothing more: what it put in before is what recomputation
    returns, as long as it computes each layer by itself (transformer_config.recompute_fields).
    """

    def forward(self, *args: Any, packed_seq_params: TappedSequences, **kwargs: Any) -> Any:
        output: Any = super().forward(*args, packed_seq_params=packed_seq_params, **kwargs)
        taps = packed_seq_params.taps
        if taps is not None and self.layer_number - 1 in self.config.deepstack_layers:
            taps.append(output[0])
        return output


class DeepstackMerger(MegatronModule):
    """Norm and projection of merged patches; the last merger's norm, in contrast, is of each patch."""

    def __init__(self, config: TransformerConfig, backend: Backend, merged_size: int) -> None:
        super().__init__(config=config)
        self.norm = backend.norm(config=config, hidden_size=merged_size, eps=config.layernorm_epsilon)
        self.projection = build_projector(config, backend, merged_size)

    def forward(self, merged: Tensor) -> Tensor:
        return self.projection(self.norm(merged))


class DeepstackMergers(MegatronModule):
    """One merger for each level; Megatron's checkpoints see through its own modules only, not through a ModuleList."""

    def __init__(
        self, config: TransformerConfig, backend: Backend, merged_size: int, num_levels: int
    ) -> None:
        super().__init__(config=config)
        for level in range(num_levels):
            self.add_module(str(level), DeepstackMerger(config, backend, merged_size))


class DeepstackTower(VisionTower):
    """Qwen3-VL's vision tower."""

    layer = TappedLayer

    def __init__(
        self,
        config: VisionTransformerConfig,
        projector_config: TransformerConfig,
        model: ModelConfig,
        backend: Backend,
    ) -> None:
        super().__init__(config, projector_config, model, backend)
        vision = model.vision
        self.pos_embed = nn.Embedding(
            vision.num_position_embeddings,
            vision.hidden_size,
            dtype=config.params_dtype,
            device=cpu.device(),
        )
        self.deepstack = DeepstackMergers(projector_config, backend, self.merged_size, vision.num_levels)

    def forward(self, pixels: Tensor, grid_thw: Tensor, frames: Tensor | None = None) -> Tensor:
        grid = Grid.create(grid_thw, self.vision.spatial_merge_size)
        sequences = TappedSequences.create(grid.boundaries(grid.frame_M))
        patches = self.embed_patches(pixels, grid_thw, frames)
        hidden = self.decoder(
            (patches + self._positions(grid).to(patches.dtype)).unsqueeze(1),
            attention_mask=None,
            rotary_pos_emb=self.rotary_table(grid.positions_P),
            packed_seq_params=sequences,
        )
        # recomputation's nodes hold the sequences: taps left in them would hold these nodes, for ever
        taps, sequences.taps = sequences.taps or [], None
        features = zip(taps, self.deepstack.children(), strict=True)
        levels = [self.merge(tap, merger) for tap, merger in features]
        return torch.cat([self.merge(hidden, self.projection), *levels], dim=1)

    def _positions(self, grid: Grid) -> Tensor:
        """Returns the learned positions, stretched over each image, of each patch: [P, H] in float32."""
        side = self.vision.positions_per_side
        sizes_I = torch.stack([grid.rows_I, grid.cols_I], dim=1) * grid.merge
        sizes_P = sizes_I[grid.image_M].repeat_interleave(grid.merge**2, dim=0)
        # the first and the last row of an image are those of the square
        places = grid.positions_P.float() * (side - 1) / (sizes_P - 1).clamp(min=1)
        low = places.floor().long()
        high = (low + 1).clamp(max=side - 1)
        share = places - low  # [P, 2] of the higher neighbour
        taps = torch.stack([low, high], dim=2)
        weights = torch.stack([1 - share, share], dim=2)
        index = (taps[:, 0, :, None] * side + taps[:, 1, None, :]).flatten(1)  # [P, 4]
        weight = (weights[:, 0, :, None] * weights[:, 1, None, :]).flatten(1)
        return (self.pos_embed(index) * weight[:, :, None]).sum(1)
