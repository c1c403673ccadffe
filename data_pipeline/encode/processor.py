"""Reads a model folder's image processor, which the engine uses, and checks that it leaves our images as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.encode.config import PATCH_FORMATS, QWEN2_5_VL_PATCHES, ImageConfig, PatchFormat
from data_pipeline.files import parse_json

_DEFAULT_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}  # transformers'
_FORMATS = {patches.side: patches for patches in PATCH_FORMATS}


def read_image_processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Returns the settings of the image processor and their file, as transformers 5 chooses it.

    transformers 5 saves them in processor_config.json under `image_processor`, 4 in preprocessor_config.json.

    Raises:
        ValueError: neither file has them, or one is not JSON.
    """
    for name, key in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        path = folder / name
        if not path.is_file():
            continue
        try:
            found = parse_json(path.read_bytes())
            found = found.get(key) if key else found
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} is not a JSON object: {error}") from error
        if isinstance(found, dict):
            return path, found
    raise ValueError(
        f"{folder} has neither preprocessor_config.json nor image_processor in processor_config.json; "
        "give a complete folder of the model"
    )


def pixel_limits(processor: dict[str, Any]) -> tuple[int, int]:
    """Returns the smallest and largest area of an image that the processor does not resize."""
    size = processor.get("size") or _DEFAULT_SIZE
    smallest = processor.get("min_pixels") or size.get("shortest_edge") or 0
    return smallest, processor.get("max_pixels") or size.get("longest_edge") or _DEFAULT_SIZE["longest_edge"]


def read_tokens_per_second(folder: Path) -> float:
    """Returns the positions of a second of a video that config.json says, or transformers' default."""
    config = folder / "config.json"
    vision = parse_json(config.read_bytes()).get("vision_config", {}) if config.is_file() else {}
    return vision.get("tokens_per_second", 4)


def read_max_positions(folder: Path) -> int | None:
    """Returns the max_position_embeddings of config.json; None without one."""
    config = folder / "config.json"
    found = parse_json(config.read_bytes()) if config.is_file() else {}
    return found.get("text_config", found).get("max_position_embeddings")


def find_patches(folder: Path, image: ImageConfig) -> PatchFormat:
    """Returns how the folder's image processor cuts images.

    Raises:
        ValueError: it cuts or scales colours otherwise than any family's, or would change images of the sizes in
            `image`.
    """
    path, processor = read_image_processor(folder)
    smallest, largest = pixel_limits(processor)
    if not smallest <= image.min_pixels <= image.max_pixels <= largest:
        raise ValueError(
            f"image.min_pixels={image.min_pixels} and image.max_pixels={image.max_pixels} must lie between "
            f"{smallest} and {largest}, the limits of {path}: the engine would resize images again"
        )
    side = processor.get("patch_size", QWEN2_5_VL_PATCHES.side)  # transformers' default
    if side not in _FORMATS:
        raise ValueError(f"{path}: patch_size={side} is not supported; {sorted(_FORMATS)} are")
    patches = _FORMATS[side]
    for name, value in _settings(patches).items():
        if processor.get(name, value) != value:
            raise ValueError(f"{path}: {name}={processor[name]}, but the model's own processor has {value}")
    return patches


def _settings(patches: PatchFormat) -> dict[str, Any]:
    return {
        "merge_size": patches.merge,
        "temporal_patch_size": patches.frames,
        "image_mean": list(patches.mean),
        "image_std": list(patches.std),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
    }
