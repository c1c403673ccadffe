"""The two spellings of the names of Hugging Face tensors."""

from __future__ import annotations

import pytest

from megatron_omr.convert.names import modern_name, stored_name

SPELLINGS = {  # in published files -> in transformers' modules
    "visual.blocks.0.norm1.weight": "model.visual.blocks.0.norm1.weight",
    "visual.merger.mlp.0.bias": "model.visual.merger.mlp.0.bias",
    "model.layers.0.mlp.up_proj.weight": "model.language_model.layers.0.mlp.up_proj.weight",
    "model.norm.weight": "model.language_model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}


@pytest.mark.parametrize(("stored", "modern"), SPELLINGS.items())
def test_both_spellings_name_the_same_tensor(stored: str, modern: str) -> None:
    assert modern_name(stored) == modern_name(modern) == modern
    assert stored_name(modern) == stored_name(stored) == stored
