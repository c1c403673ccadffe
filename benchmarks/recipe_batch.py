"""Samples as long as those of the published SFT corpus, with images of mixed size, for benchmarks and tests.

The lengths of the responses follow the published statistics of the 874,357 samples: quantiles, shortest and longest.
The images are an assumption, since nothing is published about them: three samples in four have one, one in twenty has
two to four, areas reach from 100 x 100 pixels to the recipe's cap of 2,048 x 2,048 (half are below 0.05 Mpixel, a
tenth above 1.3), and sides differ by up to a factor of two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from data_pipeline.encode.config import QWEN2_5_VL_PATCHES, ImageConfig
from data_pipeline.encode.images import final_size

QUANTILES = ((0.0, 26), (0.25, 102), (0.5, 180), (0.75, 464), (0.95, 3_318), (1.0, 16_483))
PACK_LENGTH = 61_440
BATCH = 2_048
_TAIL = 3  # bends the last twentieth: mean 692 and standard deviation 1,466 where 675 and 1,478 are published
_IMAGE = ImageConfig(min_pixels=3_136, max_pixels=4_194_304)


@dataclass(frozen=True, kw_only=True)
class SampleSize:
    """The size of a sample."""

    response: int  # tokens of text
    grids: tuple[tuple[int, int, int], ...] = ()  # time, height, width of its images in patches

    @property
    def tokens(self) -> int:
        return self.response + sum(math.prod(grid) // 4 for grid in self.grids)


def draw_sizes(count: int, seed: int, *, images: bool) -> list[SampleSize]:
    """Returns the sizes of `count` samples."""
    rng = np.random.default_rng(seed)
    lengths = quantile(rng.random(count)).round().astype(int).tolist()
    numbers = rng.choice([0, 1, 2, 3, 4], count, p=[0.2, 0.75, 0.03, 0.01, 0.01]).tolist() if images else []
    return [
        SampleSize(response=length, grids=tuple(_draw_grid(rng) for _ in range(number)))
        for length, number in zip(lengths, numbers or [0] * count, strict=True)
    ]


def quantile(share: np.ndarray) -> np.ndarray:
    """Returns the length below which that share of the responses is: log-linear between the published quantiles."""
    shares, lengths = np.array(QUANTILES).T
    last = shares[-2]
    above = np.maximum(0, share - last) / (1 - last)
    bent = np.where(share > last, last + (1 - last) * above**_TAIL, share)
    return np.exp(np.interp(bent, shares, np.log(lengths)))


def _draw_grid(rng: np.random.Generator) -> tuple[int, int, int]:
    area = 100**2 * (_IMAGE.max_pixels / 100**2) ** (rng.random() ** 2)
    aspect = 2 ** rng.uniform(-1, 1)
    width, height = final_size(round((area * aspect) ** 0.5), round((area / aspect) ** 0.5), _IMAGE)
    side = QWEN2_5_VL_PATCHES.side
    return 1, height // side, width // side
