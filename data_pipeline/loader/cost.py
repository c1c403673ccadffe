"""What a sample costs to train on, for an even split of work over ranks (pure)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.encode.config import ImageConfig, PatchFormat
from data_pipeline.encode.images import final_size
from data_pipeline.errors import BadSample


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """FLOPs of a forward pass by their parts; by default a token costs 1 and nothing else costs anything.

    megatron_omr/flops.py computes the parts of a model.
    """

    token: float = 1.0  # of the language model
    token_pair: float = 0.0  # of a sequence, by the square of its length
    patch: float = 0.0  # of the vision tower, with windows
    patch_pair: float = 0.0  # of an image, by the square of its patches: the layers that attend to all of it

    def sequence(self, tokens: int, prefix: int = 0) -> float:
        """Returns the cost of a sequence that attends to itself and to `prefix` tokens before it."""
        return self.token * tokens + self.token_pair * (tokens**2 + 2 * tokens * prefix)

    def images(self, patches: Sequence[int]) -> float:
        """Returns the cost of images of so many patches each."""
        return sum(self.patch * count + self.patch_pair * count**2 for count in patches)

    def sample(self, tokens: int, patches: Sequence[int] = ()) -> float:
        """Returns the cost of a sample of `tokens` tokens, those of its images among them."""
        return self.sequence(tokens) + self.images(patches)


TOKENS_ALONE = CostModel()


def count_patches(sizes: Sequence[tuple[int, int]], image: ImageConfig, patches: PatchFormat) -> list[int]:
    """Returns the patches of images of these widths and heights; those that have no size within the limits none."""
    counts = []
    for width, height in sizes:
        try:
            size = final_size(width, height, image, patches.token_side) if width * height else (0, 0)
        except BadSample:  # the loader skips and counts its sample
            size = (0, 0)
        counts.append(math.prod(size) // patches.side**2)
    return counts
