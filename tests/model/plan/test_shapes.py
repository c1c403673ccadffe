"""The published shapes, against transformers' own models of them and the published numbers of parameters."""

from __future__ import annotations

import pytest
import torch

from megatron_omr.config import ParallelConfig
from megatron_omr.plan.shapes import CONFIGS, PUBLISHED, published_shape

QWEN2_5, QWEN3 = ([name for name in PUBLISHED if name.startswith(family)] for family in ("Qwen2.5", "Qwen3"))
PARAMETERS = {
    **dict(zip(QWEN2_5, (3_754_622_976, 8_292_166_656, 33_452_718_336, 73_410_777_344), strict=True)),
    **dict(zip(QWEN3[:4], (2_127_532_032, 4_437_815_808, 8_767_123_696, 33_357_390_064), strict=True)),
    **dict(zip(QWEN3[4:], (31_070_754_032, 235_670_022_896), strict=True)),  # with experts
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_builds_the_published_number_of_parameters(name: str) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(CONFIGS / name))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_only_the_small_ones_tie_their_embeddings() -> None:
    tied = [name for name in PUBLISHED if published_shape(name).tie_word_embeddings]
    assert tied == [QWEN2_5[0], *QWEN3[:2]]


def test_another_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'Qwen3'; there are Qwen2.5-VL-3B-Instruct"):
        published_shape("Qwen3")


@pytest.mark.parametrize(("name", "heads"), zip(PUBLISHED, (2, 4, 8, 8, 8, 8, 8, 8, 4, 4), strict=True))
def test_tensor_parallelism_reaches_the_number_of_key_heads(name: str, heads: int) -> None:
    ParallelConfig(tp=heads, sp=True).check_model(published_shape(name))
    allowed = ", ".join(str(tp) for tp in (1, 2, 4, 8) if tp <= heads)
    with pytest.raises(
        ValueError, match=f"tp={2 * heads} must divide num_key_value_heads={heads}; .* tp = {allowed}$"
    ):
        ParallelConfig(tp=2 * heads).check_model(published_shape(name))


def test_padding_makes_the_small_models_towers_as_wide_as_the_large_ones() -> None:
    towers = [published_shape(name).vision for name in QWEN2_5]
    assert [tower.intermediate_size for tower in towers] == [3420, 3420, 3456, 3456]
    assert {tower.padded_intermediate_size for tower in towers} == {3456}
