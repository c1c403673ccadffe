"""Sizes and patches equal transformers'; unusual files decode as in a viewer, hostile ones are refused."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor, smart_resize

from data_pipeline.encode import images as vision
from data_pipeline.encode.config import QWEN2_5_VL_PATCHES as PATCHES
from data_pipeline.encode.config import ImageConfig
from data_pipeline.encode.image_header import image_size
from data_pipeline.encode.images import cut_patches, final_size, load_image, load_pixels, normalise
from data_pipeline.errors import BadSample

CONFIG = ImageConfig(max_pixels=300_000)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def rotation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@settings(deadline=None)
@given(width=st.integers(1, 3_000), height=st.integers(1, 3_000))
def test_final_size_equals_smart_resize_and_is_stable(width, height):
    try:
        size = final_size(width, height, CONFIG)
    except BadSample:
        assert max(width, height) > 200 * min(width, height)
        return
    assert size[::-1] == smart_resize(height, width, 28, CONFIG.min_pixels, CONFIG.max_pixels)
    assert final_size(*size, CONFIG) == size


@pytest.mark.parametrize("size", [(56, 56), (112, 56), (100, 77), (20, 33), (900, 700)])
def test_pixels_and_patches_equal_the_processor(size):
    original = noise(*size)
    pixels = load_pixels(encode(original), CONFIG)
    got_pixels, got_grid = cut_patches([pixels], PATCHES)
    processor = Qwen2VLImageProcessor(min_pixels=CONFIG.min_pixels, max_pixels=CONFIG.max_pixels)
    for given_image in (original, Image.fromarray(pixels)):  # the processor does not resize ours
        wanted = processor(images=[given_image], return_tensors="pt")
        assert torch.equal(got_grid, wanted["image_grid_thw"])
        assert got_pixels.dtype == torch.uint8 and torch.equal(
            normalise(got_pixels, PATCHES), wanted["pixel_values"]
        )


@pytest.mark.parametrize("size", [(100, 77), (20, 33), (900, 700), (3_000, 60), (1_500, 1_500)])
def test_resized_pixels_are_near_pillows(size):
    original = noise(*size)
    pixels = load_pixels(encode(original, compress_level=1), CONFIG)
    wanted = original.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC)
    assert np.abs(pixels.astype(int) - np.asarray(wanted, dtype=int)).max() <= 2


def test_patches_of_several_images_and_of_no_image():
    images = [np.asarray(noise(56, 84, 1)), np.asarray(noise(112, 28, 2))]
    values, grid = cut_patches(images, PATCHES)
    assert grid.tolist() == [[1, 6, 4], [1, 2, 8]]
    assert torch.equal(values, torch.cat([cut_patches([image], PATCHES)[0] for image in images]))
    values, grid = cut_patches([], PATCHES)
    assert values.shape == (0, 3 * 14 * 14) and grid.shape == (0, 3)
    assert values.dtype == torch.uint8 and grid.dtype == torch.int64
    assert normalise(values, PATCHES).shape == (0, 1176)


@pytest.mark.parametrize("side", [10_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_by_its_header(side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"\0" * 1_000))
    with pytest.raises(BadSample, match="image: cannot decode .* pixels") as caught:
        load_image(bomb, CONFIG)
    assert caught.value.reason == "image"


@pytest.mark.parametrize(
    "data", [b"", b"no image at all", encode(noise(56, 56))[:900], encode(noise(90, 90), "JPEG")[:1_000]]
)
def test_broken_files_are_refused(data):
    with pytest.raises(BadSample, match="cannot decode"):
        load_image(data, CONFIG)


def test_damaged_files_are_bad_samples_or_images():
    good = encode(noise(56, 56))
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(good)
        damaged[int(rng.integers(len(good)))] ^= int(rng.integers(1, 256))
        try:
            assert load_image(bytes(damaged), CONFIG).mode == "RGB"
        except BadSample:
            continue


JPEGS = {
    "colour": encode(noise(61, 47), "JPEG"),
    "full colour": encode(noise(61, 47), "JPEG", subsampling=0, restart_marker_blocks=2),
    "progressive": encode(noise(61, 47), "JPEG", progressive=True),
    "rgb": encode(noise(61, 47), "JPEG", keep_rgb=True),
    "grey": encode(noise(61, 47).convert("L"), "JPEG"),
    "cmyk": encode(noise(61, 47).convert("CMYK"), "JPEG"),
    "several frames": encode(noise(61, 47), "MPO", save_all=True, append_images=[noise(61, 47, 1)]),
    "rotated": encode(noise(61, 47), "JPEG", exif=rotation(6)),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about damaged tags
@pytest.mark.parametrize("kind", JPEGS)
def test_jpegs_are_pillows_with_and_without_simplejpeg(kind, monkeypatch):
    pytest.importorskip("simplejpeg")
    good, rng = JPEGS[kind], np.random.default_rng(0)
    damaged = [bytearray(good) for _ in range(150)]
    for data in damaged:
        data[int(rng.integers(2, len(good)))] ^= int(rng.integers(1, 256))
    cut = [good[:length] for length in range(0, len(good) // 3, 20)]  # of the first frame
    files = [good, *map(bytes, damaged), *cut]
    fast = [decode(data) for data in files]
    monkeypatch.setattr(vision, "decode_jpeg", None)
    for data, pixels in zip(files, fast, strict=True):
        assert np.array_equal(pixels, decode(data))
    assert fast[0].size and not any(pixels.size for pixels in fast[-len(cut) :])


def decode(data: bytes) -> np.ndarray:
    """Returns the pixels, none of a file that is refused."""
    try:
        return load_pixels(data, ImageConfig(min_pixels=1), factor=1)
    except BadSample:
        return np.empty(0)


def test_elongated_and_too_small_limits_are_refused_with_reason():
    with pytest.raises(BadSample, match="longer than wide"):
        load_image(encode(noise(1_000, 4)), CONFIG)
    with pytest.raises(BadSample, match=r"no size .*image\.max_pixels=3136"):
        load_image(encode(noise(280, 28)), ImageConfig(max_pixels=3_136))


def test_transparency_becomes_white():
    for mode in ("RGBA", "LA"):
        clear = Image.new(mode, (56, 56), 0)
        assert np.asarray(load_image(encode(clear), CONFIG)).min() == 255
    for mode, colour in (("P", 0), ("L", 0), ("RGB", (0, 0, 0))):  # one colour is transparent
        black = Image.new(mode, (56, 56), colour)
        assert np.asarray(load_image(encode(black, transparency=colour), CONFIG)).min() == 255


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_and_the_header_tells_the_same_size(kind: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.new("RGB", (84, 56), "white")
    picture.paste("black", (0, 0, 42, 28))
    data = encode(picture, kind, exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    found = load_image(data, CONFIG)
    assert found.size == wanted.size == image_size(data)
    assert np.abs(np.asarray(found, int) - np.asarray(wanted, int)).max() < 2


def test_damaged_exif_costs_no_photograph():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "Maker", 72.0
    exif.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    good = encode(noise(112, 56), "JPEG", exif=exif)
    tags = exif.tobytes()[8:]
    start, rng = good.index(tags), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(good)
        for place in rng.integers(start, start + len(tags), 3):
            damaged[place] = rng.integers(256)
        with warnings.catch_warnings(action="ignore"):
            found, size = load_image(bytes(damaged), CONFIG), image_size(bytes(damaged))
        assert found.size == size in ((56, 112), (112, 56))


@pytest.mark.filterwarnings("ignore:Tag data larger")
def test_tags_that_can_be_read_but_not_written_turn_the_image():
    exif = Image.Exif()
    exif[0x0112], exif[0x0132] = 6, "2020:01:01"
    good = encode(noise(112, 56), "JPEG", exif=exif)
    broken = good.replace(struct.pack("<HH", 0x0132, 2), struct.pack("<HH", 0x0132, 5))  # no longer a text
    broken = broken.replace(struct.pack(">HH", 0x0132, 2), struct.pack(">HH", 0x0132, 5))
    assert broken != good
    assert load_image(broken, CONFIG).tobytes() == load_image(good, CONFIG).tobytes()
    assert image_size(broken) == (56, 112)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_all_modes_become_rgb(mode):
    image = load_image(encode(noise(56, 56).convert(mode), "TIFF" if mode == "CMYK" else "PNG"), CONFIG)
    assert image.mode == "RGB" and image.size == (56, 56)


def test_sixteen_bit_greys_are_scaled():
    ramp = np.linspace(0, 65_535, 56 * 56).astype(np.uint16).reshape(56, 56)
    pixels = np.asarray(load_image(encode(Image.fromarray(ramp)), CONFIG))
    assert abs(float(pixels.mean()) - 127.5) < 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((56, 56), 200, np.uint16), "between 200 and 200; scale them"),
        (np.full((56, 56), 70_000, np.int32), "between 70000 and 70000; scale them"),
        (np.full((56, 56), 0.5, np.float32), "floats without a known range"),
    ],
)
def test_greys_that_would_all_be_black_or_white_are_refused(values: np.ndarray, message: str):
    with pytest.raises(BadSample, match=message):
        load_image(encode(Image.fromarray(values), "TIFF"), CONFIG)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
