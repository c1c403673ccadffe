"""Turns image files into pixels of their final size and then into patches, as Qwen-VL's image processors do.

An image is decoded and resized here, for trainer and engine alike: the engine's own processor then finds nothing to
resize, and both see the same pixels and count the same tokens. Legend: P patches, I images, H W height and width.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor
from torch.nn.functional import interpolate

from data_pipeline.encode.config import QWEN2_5_VL_PATCHES, ImageConfig, PatchFormat
from data_pipeline.encode.image_header import image_format, read_turn
from data_pipeline.errors import BadSample

try:
    from simplejpeg import decode_jpeg
except ImportError:  # Pillow gives the same pixels
    decode_jpeg = None

USUAL_FACTOR = QWEN2_5_VL_PATCHES.token_side
"""Pixels of a token's side where no model is known yet."""
MAX_SOURCE_PIXELS = 89_478_485
"""Larger images count as decompression bombs and are not decoded (Pillow's own warning level)."""
MAX_ASPECT_RATIO = 200


def load_pixels(data: bytes, config: ImageConfig, factor: int = USUAL_FACTOR) -> np.ndarray:
    """Decodes an image file into RGB pixels [H, W, 3] uint8, upright and of their final size.

    Raises:
        BadSample: not an image, broken, too large, too elongated, or no size fits the limits.
    """
    try:
        with Image.open(io.BytesIO(data)) as file:
            width, height = file.size  # from the header: nothing is decoded yet
            if width * height > MAX_SOURCE_PIXELS:
                raise ValueError(f"{width} x {height} pixels, more than {MAX_SOURCE_PIXELS}")
            pixels = _decode(file, data)
    except Exception as error:  # Pillow's decoders raise all sorts of errors on broken files
        raise BadSample("image", f"cannot decode {len(data)} bytes: {error}") from error
    height, width, _ = pixels.shape
    size = final_size(width, height, config, factor)
    return pixels if size == (width, height) else _resize(pixels, size)


def load_image(data: bytes, config: ImageConfig, factor: int = USUAL_FACTOR) -> Image.Image:
    """Returns what load_pixels() does, as an image of Pillow's. Raises as load_pixels()."""
    return Image.fromarray(load_pixels(data, config, factor))


def scale_down(data: bytes, max_pixels: int) -> bytes:
    """Returns the image as a file of the size that load_image() gives it under that cap.

    JPEG stays JPEG, at a quality (95, full colour) without visible loss; everything else becomes PNG. Raises as
    load_image().
    """
    image = load_image(data, ImageConfig(max_pixels=max_pixels))
    file = io.BytesIO()
    if image_format(data) == "jpg":
        image.save(file, "JPEG", quality=95, subsampling=0)
    else:
        image.save(file, "PNG")
    return file.getvalue()


def final_size(width: int, height: int, config: ImageConfig, factor: int = USUAL_FACTOR) -> tuple[int, int]:
    """Returns Qwen's smart_resize: multiples of `factor` near the same shape, with an area within the limits.

    Raises:
        BadSample: too elongated, or the limits leave no such size.
    """
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        detail = f"{width} x {height} pixels is more than {MAX_ASPECT_RATIO} times longer than wide"
        raise BadSample("image", detail)
    sides = [round(side / factor) * factor for side in (width, height)]
    if math.prod(sides) > config.max_pixels:
        shrink = math.sqrt(width * height / config.max_pixels)
        sides = [max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height)]
    elif math.prod(sides) < config.min_pixels:
        grow = math.sqrt(config.min_pixels / (width * height))
        sides = [math.ceil(side * grow / factor) * factor for side in (width, height)]
    if not config.min_pixels <= math.prod(sides) <= config.max_pixels:
        limits = f"image.min_pixels={config.min_pixels} and image.max_pixels={config.max_pixels}"
        detail = (
            f"{width} x {height} pixels has no size in multiples of {factor} between {limits}; widen them"
        )
        raise BadSample("image", detail)
    return sides[0], sides[1]


def cut_patches(images: Sequence[np.ndarray], patches: PatchFormat) -> tuple[Tensor, Tensor]:
    """Cuts RGB images [H, W, 3] uint8 whose sides are multiples of `patches.token_side` into patches.

    Returns:
        pixels [P, side * side * 3] uint8, the patches of a token next to each other, colours last;
        image_grid_thw [I, 3] int64, in patches.
    """
    if not images:
        return empty_patches(patches.num_bytes)
    found = [_patchify(image, patches) for image in images]
    pixels = found[0] if len(found) == 1 else np.concatenate(found)
    grids = [(1, image.shape[0] // patches.side, image.shape[1] // patches.side) for image in images]
    return torch.from_numpy(pixels), torch.tensor(grids)


def cut_groups(
    groups: Sequence[Sequence[np.ndarray]], patches: PatchFormat
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cuts images, and pairs of a video's frames: a group is one or two frames of the same size.

    Returns:
        pixels [P, side * side * 3] uint8, as cut_patches() of frame after frame;
        image_grid_thw [I, 3] int64, of each group;
        frames [I] int64, or None where all groups have one.
    """
    pixels, grids = cut_patches([frame for group in groups for frame in group], patches)
    frames = torch.tensor([len(group) for group in groups], dtype=torch.int64)
    if bool((frames == 1).all()):
        return pixels, grids, None
    return pixels, grids[frames.cumsum(0) - frames], frames


def find_frames(image_grid_thw: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Returns for each patch of the tower [P] the rows of `pixels` with its first and its second frame.

    Where there is one frame, both are the same row.
    """
    patches_I = image_grid_thw.prod(dim=1)
    total, rows_I = int(patches_I.sum()), patches_I * frames
    # from the number of a patch to its row: what earlier images have more rows than patches
    offset_I = rows_I.cumsum(0) - rows_I - (patches_I.cumsum(0) - patches_I)
    first = torch.arange(total, device=frames.device)
    first = first + offset_I.repeat_interleave(patches_I, output_size=total)
    second = first + ((frames - 1) * patches_I).repeat_interleave(patches_I, output_size=total)
    return first, second


def empty_patches(num_bytes: int = 0) -> tuple[Tensor, Tensor]:
    """Returns what cut_patches() returns for no image, with patches of so many bytes."""
    return torch.empty(0, num_bytes, dtype=torch.uint8), torch.empty(0, 3, dtype=torch.int64)


def normalise(pixels: Tensor, patches: PatchFormat, second: Tensor | None = None) -> Tensor:
    """Returns patches [P, S * S * 3] uint8 as [P, 3 * 2 * S * S] float32, with both frames, on the same device.

    Args:
        second: the second frame of each patch; None repeats the first.

    Equal to Hugging Face's pixel_values in every bit: values are looked up, not computed.
    """
    tables = torch.from_numpy(_value_tables(patches)).to(pixels.device)
    row = 256 * torch.arange(3, device=pixels.device)[:, None]

    def look_up(frame: Tensor) -> Tensor:
        return tables.flatten()[frame.view(-1, patches.side**2, 3).mT.long() + row]

    values = look_up(pixels)
    if second is not None:
        return torch.stack([values, look_up(second)], dim=2).flatten(1)
    return values[:, :, None].expand(-1, -1, patches.frames, -1).flatten(1)


def _decode(file: ImageFile.ImageFile, data: bytes) -> np.ndarray:
    """Decodes an opened image file into RGB pixels [H, W, 3] uint8, upright.

    simplejpeg decodes JPEG into the same pixels as Pillow, faster. It is strict here and refuses any damage; whether a
    damaged file is still an image, Pillow decides.
    """
    is_plain_jpeg = file.format in ("JPEG", "MPO") and file.mode in ("L", "RGB")
    if decode_jpeg and is_plain_jpeg and read_turn(file) is None:
        with suppress(ValueError):
            return decode_jpeg(data)
    file.load()
    turn = read_turn(file)
    return np.array(_to_rgb(file if turn is None else file.transpose(turn)))


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes pixels [H, W, 3] with torch, as transformers' image processor does: at most 2 levels off Pillow.

    torch is fast, several times as fast as Pillow, where the colours of a pixel lie next to each other.
    """
    colours_last = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # a view, [1, 3, H, W]
    resized = interpolate(colours_last, size[::-1], mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()


def _patchify(image: np.ndarray, patches: PatchFormat) -> np.ndarray:
    """Returns the patches [P, side * side * 3] uint8 of an RGB image [H, W, 3].

    A row of a patch is 3 x side consecutive bytes of the image: moving whole rows is much faster than moving bytes.
    """
    height, width, _ = image.shape
    side, merge, step = patches.side, patches.merge, patches.token_side
    pieces = np.ascontiguousarray(image).reshape(-1).view(f"V{3 * side}")
    blocks = pieces.reshape(height // step, merge, side, width // step, merge)
    blocks = blocks.transpose(0, 3, 1, 4, 2)  # token row, token column, patch row, patch column, y
    return np.ascontiguousarray(blocks).view(np.uint8).reshape(-1, patches.num_bytes)


@cache
def _value_tables(patches: PatchFormat) -> np.ndarray:
    """Returns the normalised values [3, 256] of each byte, with the processor's rounding: bytes are not scaled."""
    mean, std = (255 * np.array(x, dtype=np.float32)[:, None] for x in (patches.mean, patches.std))
    return (np.arange(256, dtype=np.float32) - mean) / std


def _to_rgb(image: Image.Image) -> Image.Image:
    """Returns the image as RGB, on white where it is transparent: black text must not become black on black."""
    if image.mode == "F":
        raise ValueError("pixels are floats without a known range; save them with 8 bits")
    if image.mode.startswith("I"):  # 16-bit greys; Pillow would clip them to white
        image = _from_16_bits(np.asarray(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(values: np.ndarray) -> Image.Image:
    """Returns 16-bit greys as an 8-bit image; raises ValueError where all of it would be black or white."""
    low, high = int(values.min()), int(values.max())
    if low > 65_535 or low < 0 or 0 < high < 257:
        raise ValueError(
            f"16-bit pixels lie between {low} and {high}; scale them to 0 to 65535, or save 8 bits"
        )
    return Image.fromarray(np.clip(values // 257, 0, 255).astype(np.uint8))
