"""What config.json of a family says, and what its folders and files look like (standard library only)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_pipeline.encode.config import PatchFormat
from megatron_omr.families.fields import Fields, Fixed
from megatron_omr.families.shapes import VisionConfig


@dataclass(frozen=True, kw_only=True)
class Family:
    """One `model_type`, as everything but its layers and its table of weights sees it.

    Layers are chosen by the model's shape, which `model/` reads. `model/vision/choose.py` lists the vision towers by
    family, `convert/mapping.py` their tables of weights.
    """

    model_type: str
    name: str  # as it is published
    patches: PatchFormat
    fixed_text: Fixed
    fixed_rope: Fixed
    read_text: Callable[[Fields], dict[str, Any]]
    """Returns the fields of ModelConfig that other families do not have, or have from elsewhere."""
    read_vision: Callable[[Fields], VisionConfig]
    text_ties: bool  # tie_word_embeddings counts in text_config, too, not only beside it
    interleaved_rope: bool  # time, height and width in turns over the frequencies, else one after the other
    old_names: (
        bool  # published files say `model.` and `visual.` where modules say `model.language_model.` and so on
    )
