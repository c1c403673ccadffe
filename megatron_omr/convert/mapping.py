"""The one list of parameters: Megatron's names, places and cuts <-> Hugging Face tensors. Imports no Megatron."""

from __future__ import annotations

from megatron_omr.convert.rule import Rule
from megatron_omr.convert.tables import qwen2_5_vl, qwen3_vl
from megatron_omr.convert.tables.language import list_language
from megatron_omr.model_config import ModelConfig

_VISION = {
    "qwen2_5_vl": qwen2_5_vl.list_vision,
    "qwen3_vl": qwen3_vl.list_vision,
    "qwen3_vl_moe": qwen3_vl.list_vision,
}


def build_rules(model: ModelConfig) -> list[Rule]:
    """Returns a rule for each parameter of `model`, in the order of the export."""
    return [*_VISION[model.family_name](model), *list_language(model)]
