"""The parts of a model's shape that families fill in: vision tower, and experts (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_pipeline.encode.config import PatchFormat
from megatron_omr.families.fields import Fields, Fixed, check_fixed, read_number, read_object

_WIDTH_MULTIPLE = 128  # of the tower's MLP: divides by any tp, and leaves rows that GPUs multiply fast


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower, under the names of Hugging Face's `vision_config`."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    patch_size: int
    temporal_patch_size: int
    in_channels: int
    spatial_merge_size: int
    out_hidden_size: int
    gated_mlp: bool  # three matrices with SiLU, else two with GELU
    layer_norm: bool  # norms with a mean and a bias, else RMS norms
    patch_bias: bool  # of the projection of patches
    window_size: int = 0  # pixels; 0: all layers attend to whole frames
    fullatt_block_indexes: tuple[int, ...] = ()  # with windows: the layers that attend to whole frames
    num_position_embeddings: int = 0  # a square of learned positions; 0: none
    deepstack_visual_indexes: tuple[int, ...] = ()  # layers whose output the first language layers get, too

    def __post_init__(self) -> None:
        side, head_dim = self.patch_size * self.spatial_merge_size, self.hidden_size / self.num_heads
        if head_dim % 4:
            raise ValueError(
                f"vision_config: hidden_size={self.hidden_size} / num_heads={self.num_heads} must be a multiple of 4"
            )
        if 0 < self.window_size < side:
            raise ValueError(f"vision_config.window_size={self.window_size} must be at least {side} pixels")
        if self.positions_per_side**2 != self.num_position_embeddings:
            raise ValueError(
                f"vision_config.num_position_embeddings={self.num_position_embeddings} must be a square"
            )
        levels = self.deepstack_visual_indexes
        if list(levels) != sorted({*levels}) or any(level >= self.depth for level in levels):
            raise ValueError(
                f"vision_config.deepstack_visual_indexes={list(levels)} must rise and be below depth={self.depth}"
            )

    @property
    def padded_intermediate_size(self) -> int:
        """The width of the MLPs with the zeros behind it: 3,456 for 3,420, which does not divide by 8.

        It depends on the model alone, so that checkpoints fit every layout.
        """
        return -(-self.intermediate_size // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE

    @property
    def positions_per_side(self) -> int:
        """The side of the square of learned positions."""
        return round(self.num_position_embeddings**0.5)

    @property
    def num_levels(self) -> int:
        """Deepstack features of an image token, of which language layer n gets number n."""
        return len(self.deepstack_visual_indexes)

    @property
    def num_full_layers(self) -> int:
        """Layers that attend to whole frames."""
        return len(self.fullatt_block_indexes) if self.window_size else self.depth


_SIZES = (
    *("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size"),
    *("patch_size", "temporal_patch_size", "in_channels", "spatial_merge_size"),
)
TOWER_ROPE_THETA = 10_000
"""Of the rotary positions of all vision towers; files that say another are refused."""
_FIXED: Fixed = {
    "in_channels": (3,),
    "rope_theta": (TOWER_ROPE_THETA,),
    "rope_scaling": (None,),
    "quantization_config": (None,),
    "per_layer_config": (None,),
}


def read_tower(
    vision: Fields, patches: PatchFormat, *, activations: tuple[str, ...], rope_types: tuple[str, ...]
) -> dict[str, Any]:
    """Returns the sizes of VisionConfig that all families have, of a `vision_config`.

    Raises:
        KeyError: the missing field.
        ValueError: a field has a value that is not supported.
    """
    # transformers' classes have three channels, whatever older files call in_chans
    values = {"in_channels": 3} | dict(vision)
    sizes = {name: read_number(values, name) for name in _SIZES}
    own: Fixed = {
        "hidden_act": activations,
        "patch_size": (patches.side,),  # images are cut into such patches before any model is known
        "temporal_patch_size": (patches.frames,),
        "spatial_merge_size": (patches.merge,),
        "head_dim": (None, sizes["hidden_size"] // sizes["num_heads"]),
    }
    check_fixed(vision, {**_FIXED, **own}, "vision_config.")
    rope = read_object(vision, "rope_parameters") if vision.get("rope_parameters") else {}
    check_fixed(
        rope, {"rope_type": rope_types, "rope_theta": (TOWER_ROPE_THETA,)}, "vision_config.rope_parameters."
    )
    return sizes


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Experts in place of the MLP of some language layers."""

    num_experts: int
    num_chosen: int  # experts of each token
    intermediate_size: int  # of an expert
    layers: tuple[int, ...]  # the layers with experts, from 0

    def __post_init__(self) -> None:
        if self.num_chosen > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok={self.num_chosen} must be at most num_experts={self.num_experts}"
            )
