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
    "Qwen3-VL-2B-Instruct",
    "Qwen3-VL-4B-Instruct",
    "Qwen3-VL-8B-Instruct",
    "Qwen3-VL-32B-Instruct",
    "Qwen3-VL-30B-A3B-Instruct",
    "Qwen3-VL-235B-A22B-Instruct",
)
"""Names of the published models, each family from the smallest."""


def published_shape(name: str) -> ModelConfig:
    """Returns the shape of a published model, by a name in PUBLISHED.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in PUBLISHED:
        raise ValueError(f"no published shape of {name!r}; there are {', '.join(PUBLISHED)}")
    return ModelConfig.from_hf(CONFIGS / name)


def find_shape(folder: str, published: str = "") -> ModelConfig:
    """Returns the shape of the model in `folder`; where that is not there, the published one of this or its own name.

    Raises:
        ValueError: there is neither, or the folder holds no such model.
    """
    name = published or Path(folder).name
    if Path(folder).exists():
        return ModelConfig.from_hf(folder)
    if name not in PUBLISHED:
        raise ValueError(
            f"model={folder} is not there, and there is no published shape {name!r}; give --shape, one of "
            f"{', '.join(PUBLISHED)}, or --model, a Hugging Face folder with at least its config.json"
        )
    return published_shape(name)
