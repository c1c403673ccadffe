"""What a trainer or an engine makes prompts with, described so that both can be compared before weights are sent.

Both read the same fields of one config, but the model folder is a path: on another machine it may hold other files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.encode.limits import ModelLimits
from data_pipeline.encode.processor import read_image_processor
from data_pipeline.files import parse_json, to_json
from rl.config import EvalConfig, RLConfig
from rl.weight_sync.layout import WeightMismatch

SHOWN = 40
"""Longer values are described by a digest."""


def describe_inputs(config: RLConfig | EvalConfig, limits: ModelLimits) -> dict[str, str]:
    """Returns name -> value, or its digest, of all that decides which tokens, patches and probabilities a prompt gives.

    Tokenizer and template are those that `limits` has loaded.
    """
    folder = Path(config.model)
    _, processor = read_image_processor(folder)
    vision = parse_json((folder / "config.json").read_bytes()).get("vision_config", {})
    values = {
        "image.min_pixels": config.image.min_pixels,
        "image.max_pixels": config.image.max_pixels,
        "image.frame_pixels": config.image.frame_pixels,
        "image.video_pixels": config.image.video_pixels,
        "sampling.temperature": config.sampling.temperature,
        "sampling.top_p": config.sampling.top_p,
        **limits.chat.describe(),
        **{f"image processor: {name}": value for name, value in processor.items()},
        **{f"config.json: vision_config.{name}": value for name, value in vision.items()},
    }
    return {name: _shorten(value) for name, value in values.items()}


def check_inputs(trainer: Mapping[str, str], engine: Mapping[str, str]) -> None:
    """Compares what both were described with.

    Raises:
        WeightMismatch: they differ; the message names the fields and both values.
    """
    names = sorted(trainer.keys() | engine.keys())
    differing = [name for name in names if trainer.get(name) != engine.get(name)]
    if not differing:
        return
    shown = "; ".join(
        f"{name} is {trainer.get(name, 'missing')} in the trainer, {engine.get(name, 'missing')} in the engine"
        for name in differing[:5]
    )
    more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
    raise WeightMismatch(
        f"trainer and engine make different prompts: {shown}{more}. Both must read the same model folder, with the "
        "same files on all machines, and the same image and sampling settings"
    )


def _shorten(value: Any) -> str:
    text = to_json(value, sort_keys=True)
    return text if len(text) <= SHOWN else f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"
