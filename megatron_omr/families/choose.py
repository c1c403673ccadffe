"""Finds the family of a config.json."""

from __future__ import annotations

from megatron_omr.families.family import Family
from megatron_omr.families.qwen2_5_vl import QWEN2_5_VL
from megatron_omr.families.qwen3_vl import QWEN3_VL, QWEN3_VL_MOE

FAMILIES = {family.model_type: family for family in (QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE)}
"""By config.json's `model_type`."""


def find_family(model_type: object) -> Family:
    """Returns the family of this `model_type`; raises ValueError for another, with those that are supported."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        names = ", ".join(f"{family.model_type!r} ({family.name})" for family in FAMILIES.values())
        raise ValueError(
            f"model_type={model_type!r} is not supported; these are: {names}. docs/families.md says what a new "
            "family needs"
        )
    return FAMILIES[model_type]
