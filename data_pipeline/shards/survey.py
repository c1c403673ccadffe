"""Counts what a folder of shards holds, from its index and from a bounded random draw of its samples."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median_low

from data_pipeline.encode.config import ImageConfig
from data_pipeline.encode.image_header import image_size
from data_pipeline.errors import BadSample
from data_pipeline.shards.config import InspectConfig
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.index import ShardIndex
from data_pipeline.storage import is_local
from data_pipeline.types import Sample

log = logging.getLogger(__name__)

FEW_TOKENS = 4
"""Images of at most so many tokens get a hint: 2 x 2 of 28 pixels, too few to tell shapes or digits apart."""
MORE_TOKENS = 16
LOOKED_AT = 64
"""Samples that are drawn for the hint."""
MAX_DRAWN = 1_000
"""Samples that are drawn: a share is then known to about three percentage points."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Numbers of a folder, and some of its samples."""

    shards: int
    samples: int
    bytes: int
    digest: str
    sources: dict[str, int]  # of the drawn samples, the most frequent first
    tokens: tuple[int, ...]  # estimated, of each of them
    image_sizes: tuple[tuple[int, int], ...]  # width and height of each of their images
    text_only: int
    unanswered: int  # without a reference answer
    broken: tuple[str, ...]  # the errors of drawn samples that cannot be read
    shown: tuple[Sample, ...]  # in the order of the folder

    @property
    def looked_at(self) -> int:
        return len(self.tokens)


def survey(config: InspectConfig) -> Survey:
    """Draws samples and counts, the same for the same folder and seed; raises ValueError without index or samples."""
    index = ShardIndex.load(config.shards)
    if not len(index):
        raise ValueError(f"shards={config.shards} holds no samples; write some first")
    size = min(len(index), max(config.samples, MAX_DRAWN))
    drawn = random.Random(config.seed).sample(range(len(index)), size)
    on_page = set(drawn[: config.samples])
    sources: Counter[str] = Counter()
    tokens, sizes, shown, broken = [], [], [], []
    text_only = unanswered = 0
    for number in sorted(drawn):  # shard by shard
        try:
            sample = read_sample(config.shards, index[number])
        except BadSample as error:
            broken.append(str(error))
            continue
        sources[sample.source] += 1
        tokens.append(index.tokens(number))
        for image in sample.images:
            with suppress(BadSample):
                sizes.append(image_size(image))
        text_only += not sample.pictures
        unanswered += not sample.answer
        shown += [sample] if number in on_page else []
    return Survey(
        shards=len(index.shards),
        samples=len(index),
        bytes=sum(shard.bytes for shard in index.shards),
        digest=index.digest,
        sources=dict(sources.most_common()),
        tokens=tuple(tokens),
        image_sizes=tuple(sizes),
        text_only=text_only,
        unanswered=unanswered,
        broken=tuple(broken),
        shown=tuple(shown),
    )


def hint_small_images(sizes: Sequence[tuple[int, int]], image: ImageConfig) -> str:
    """Returns the advice to scale images up where half of `sizes` (width, height) become few tokens, else ""."""
    from data_pipeline.encode.images import USUAL_FACTOR, final_size  # imports torch

    area, counts = USUAL_FACTOR**2, []
    for size in sizes:
        with suppress(BadSample):
            counts.append((math.prod(final_size(*size, image)) // area, size))
    if not counts or median_low(counts)[0] > FEW_TOKENS:
        return ""
    tokens, (width, height) = median_low(counts)
    return (
        f"images become few tokens: with image.min_pixels={image.min_pixels} half of {len(counts)} images that were "
        f"looked at have at most {tokens} (such as {width} x {height} pixels); --image.min_pixels "
        f"{MORE_TOKENS * area} makes it {MORE_TOKENS} or more; set it in sft, rl and eval alike"
    )


def warn_of_small_images(shards: str, image: ImageConfig) -> None:
    """Logs hint_small_images for a draw of samples; not for shards at an address, where each costs a request."""
    if not is_local(shards):
        return
    index = ShardIndex.load(shards)
    sizes = []
    for number in sorted(random.Random(0).sample(range(len(index)), min(len(index), LOOKED_AT))):
        with suppress(BadSample):
            sizes += map(image_size, read_sample(shards, index[number]).images)
    if hint := hint_small_images(sizes, image):
        log.warning(hint)
