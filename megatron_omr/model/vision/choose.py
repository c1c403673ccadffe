"""The vision tower of each family."""

from __future__ import annotations

from megatron_omr.model.vision.qwen2_5_vl import WindowTower
from megatron_omr.model.vision.qwen3_vl import DeepstackTower

TOWERS = {"qwen2_5_vl": WindowTower, "qwen3_vl": DeepstackTower, "qwen3_vl_moe": DeepstackTower}
"""By config.json's `model_type`."""
