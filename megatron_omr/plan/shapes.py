"""Finds the shape of a model: from its folder, else from the published shapes that come with this package."""

from __future__ import annotations

from pathlib import Path

from megatron_omr.model_config import ModelConfig

CONFIGS = Path(__file__).parent / "configs"
PUBLISHED = (
    "Qwen2.5-VL-3B-Instruct",
    "Qwen2.5-VL-7B-Instruct",
    "Qwen2.5-VL-32B-Instruct",
    "Qwen2.5-VL-72B-Instruct",
)
"""Names of the published models, from the smallest."""


def published_shape(name: str) -> ModelConfig:
    """Returns the shape of a published model, by a name in PUBLISHED.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in PUBLISHED:
        raise ValueError(f"no published shape of {name!r}; there are {', '.join(PUBLISHED)}")
    return ModelConfig.from_hf(CONFIGS / name)
