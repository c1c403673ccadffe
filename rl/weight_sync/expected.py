"""The tensors that an engine's model takes."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from megatron_omr.convert.names import modern_name
from megatron_omr.model_config import ModelConfig
from rl.weight_sync.layout import WeightError


def read_expected_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of a Hugging Face folder's tensors, spelled as exports spell them."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightError(f"{folder} has no .safetensors file with the names of the model's tensors")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            shapes |= {modern_name(name): tuple(tensors.get_slice(name).get_shape()) for name in names}
    if ModelConfig.from_hf(folder).tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes
