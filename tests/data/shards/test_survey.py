"""The hint at images that become too few tokens."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.encode.config import QWEN2_5_VL_PATCHES, ImageConfig
from data_pipeline.encode.images import cut_patches, load_pixels
from data_pipeline.shards.survey import FEW_TOKENS, MORE_TOKENS, hint_small_images, warn_of_small_images
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from tests.helpers.alike import ask, png

SMALL = [(64, 64)] * 6
LARGE = [(640, 480)] * 5


def count_tokens(size: tuple[int, int], config: ImageConfig) -> int:
    pixels = load_pixels(png(Image.new("RGB", size)), config)
    return len(cut_patches([pixels], QWEN2_5_VL_PATCHES)[0]) // 4


@pytest.mark.parametrize("min_pixels", [784, 3_136])
def test_hint_has_the_tokens_and_the_option_that_gives_more(min_pixels: int):
    config = ImageConfig(min_pixels=min_pixels)
    hint = hint_small_images(SMALL + LARGE, config)
    assert f"image.min_pixels={min_pixels} half of 11 images" in hint and "(such as 64 x 64 pixels)" in hint
    assert (
        f"at most {count_tokens((64, 64), config)} " in hint and count_tokens((64, 64), config) <= FEW_TOKENS
    )
    wanted = int(hint.partition("--image.min_pixels ")[2].split()[0])
    raised = ImageConfig(min_pixels=wanted)
    assert count_tokens((64, 64), raised) == MORE_TOKENS and not hint_small_images(SMALL + LARGE, raised)


@pytest.mark.parametrize("sizes", [[], LARGE, SMALL + LARGE * 2, [(112, 56)], [(1, 300)]])
def test_no_hint_where_most_images_have_more_tokens(sizes: list[tuple[int, int]]):
    assert not hint_small_images(sizes, ImageConfig())


def test_shards_of_small_images_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    write_shards(digit_samples("train", 40, 0), tmp_path / "digits")
    write_shards([ask(f"t{n}", "Without an image?", answer="1") for n in range(3)], tmp_path / "text")
    for name in ("digits", "text"):
        warn_of_small_images(str(tmp_path / name), ImageConfig(min_pixels=784))
    assert not caplog.messages
    image = png(Image.new("RGB", (64, 64)))
    samples = [replace(ask(f"q{n}", "Which?", answer="1"), images=(image,)) for n in range(3)]
    write_shards(samples, tmp_path / "small")
    warn_of_small_images(str(tmp_path / "small"), ImageConfig(min_pixels=784))
    assert len(caplog.messages) == 1 and "half of 3 images" in caplog.messages[0]
