"""Image files -> pixels of their final size -> patches, as Qwen2.5-VL's image processor makes them.

An image is brought to its final size here, once: the processors of trainer and engine then find nothing left
to resize and count the same tokens. Legend: P patches, I images, D patch features.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from data_pipeline.config import ImageConfig
from data_pipeline.types import BadSample

PATCH, MERGE, TEMPORAL = 14, 2, 2
"""Pixels of a patch's side, patches of a token's side, frames of a patch (a still image is repeated)."""
PATCH_FEATURES = 3 * TEMPORAL * PATCH * PATCH
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_SOURCE_PIXELS = 89_478_485
"""Larger files are taken for decompression bombs and not decoded (Pillow's own warning level)."""
MAX_ASPECT_RATIO = 200


def load_image(data: bytes, config: ImageConfig, factor: int = PATCH * MERGE) -> Image.Image:
    """Decode an image file into RGB pixels, upright and of its final size.

    Raises:
        BadSample: not an image, broken, too large, too elongated, or no size fits the limits.
    """
    try:
        with Image.open(io.BytesIO(data)) as file:
            width, height = file.size  # from the header: nothing is decoded yet
            if width * height > MAX_SOURCE_PIXELS:
                raise ValueError(f"{width} x {height} pixels, more than {MAX_SOURCE_PIXELS}")
            image = _to_rgb(ImageOps.exif_transpose(file))
    except Exception as error:  # Pillow's decoders raise all sorts of errors on broken files
        raise BadSample("image", f"cannot decode {len(data)} bytes: {error}") from error
    size = final_size(image.width, image.height, config, factor)
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def final_size(width: int, height: int, config: ImageConfig, factor: int = PATCH * MERGE) -> tuple[int, int]:
    """Qwen's smart_resize: multiples of `factor` near the same shape, with an area within the limits.

    Raises:
        BadSample: longer than 200 times its width, or the limits leave no such size.
    """
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise BadSample(
            "image", f"{width} x {height} pixels is more than {MAX_ASPECT_RATIO} times longer than wide"
        )
    sides = [round(side / factor) * factor for side in (width, height)]
    if math.prod(sides) > config.max_pixels:
        shrink = math.sqrt(width * height / config.max_pixels)
        sides = [max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height)]
    elif math.prod(sides) < config.min_pixels:
        grow = math.sqrt(config.min_pixels / (width * height))
        sides = [math.ceil(side * grow / factor) * factor for side in (width, height)]
    if not config.min_pixels <= math.prod(sides) <= config.max_pixels:
        raise BadSample(
            "image",
            f"{width} x {height} pixels has no size in multiples of {factor} between image.min_pixels="
            f"{config.min_pixels} and image.max_pixels={config.max_pixels}; widen the limits",
        )
    return sides[0], sides[1]


def patches(images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
    """Normalised patches of RGB images whose sides are multiples of 28, equal to Hugging Face's processor.

    Returns:
        pixel_values [P, D] float32, the patches of a merged token next to each other;
        image_grid_thw [I, 3] int64, in patches.
    """
    if not images:
        return torch.empty(0, PATCH_FEATURES), torch.empty(0, 3, dtype=torch.int64)
    values = np.concatenate([_patchify(np.asarray(image)) for image in images])
    grids = [(1, image.height // PATCH, image.width // PATCH) for image in images]
    return torch.from_numpy(values), torch.tensor(grids)


def _patchify(pixels: np.ndarray) -> np.ndarray:
    """Pixels [height, width, 3] uint8 -> patches [P, D] float32."""
    height, width, _ = pixels.shape
    step = PATCH * MERGE
    blocks = pixels.reshape(height // step, MERGE, PATCH, width // step, MERGE, PATCH, 3)
    blocks = blocks.transpose(
        0, 3, 1, 4, 6, 2, 5
    )  # token row, token column, patch row, patch column, channel, y, x
    blocks = blocks.reshape(-1, 3, PATCH * PATCH)
    values = np.empty((len(blocks), 3, TEMPORAL, PATCH * PATCH), np.float32)
    for channel, table in enumerate(_value_tables()):
        values[:, channel] = table.take(blocks[:, channel])[:, None]
    return values.reshape(-1, PATCH_FEATURES)


@cache
def _value_tables() -> np.ndarray:
    """Normalised value [3, 256] of each byte, with the processor's roundings: float64 scaling, then float32.

    Looking values up is several times faster than computing them for every pixel, and exact.
    """
    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    mean, std = (np.array(x, dtype=np.float32)[:, None] for x in (MEAN, STD))
    return (scaled - mean) / std


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB on white where the file is transparent: black on nothing must not become black on black."""
    if image.mode.startswith("I"):  # 16-bit greys; Pillow would clip them to white
        image = Image.fromarray(np.clip(np.asarray(image) // 257, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
