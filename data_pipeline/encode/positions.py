"""M-RoPE positions of one sample, before it is packed (pure).

Text counts up in all three rows. The tokens of an image share one time and count its rows and columns in the other
two; of a video each pair of frames has its time. The text after it continues one past the largest position: vLLM's
rule, which the trainer must follow. transformers continues past the longer side, also where a video's times reach
further. Legend: T tokens, I images and videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def mrope_position_ids(
    input_ids: Tensor,
    image_grid_thw: Tensor,
    *,
    image_token_id: int,
    spatial_merge_size: int,
    video_token_id: int = -1,
    steps: Sequence[float] | None = None,
) -> Tensor:
    """Returns positions [3, T] int64 (time, height, width) of `input_ids` [T], where images and videos are expanded.

    Args:
        image_grid_thw: [I, 3] in patches, in the order of their tokens.
        steps: positions from one time to the next of each; None: 1, which an image does not need.

    Raises:
        ValueError: the image tokens do not fit the grids.
    """
    image_tokens = np.flatnonzero(np.isin(input_ids.numpy(), (image_token_id, video_token_id)))
    grids = [(t, h // spatial_merge_size, w // spatial_merge_size) for t, h, w in image_grid_thw.tolist()]
    needed = sum(t * h * w for t, h, w in grids)
    if needed != len(image_tokens):
        raise ValueError(f"{len(image_tokens)} image tokens, but {len(grids)} images need {needed}")
    positions = np.empty((3, input_ids.numel()), dtype=np.int64)
    done = used = position = 0  # tokens placed, image tokens placed, next text position
    for (time, height, width), step in zip(grids, steps or [1.0] * len(grids), strict=True):
        count = time * height * width
        start = int(image_tokens[used])
        if image_tokens[used + count - 1] != start + count - 1:
            raise ValueError(f"the {count} tokens of the image at token {start} are not in one piece")
        positions[:, done:start] = np.arange(position, position + start - done)
        position += start - done
        own = _image_positions(time, height, width, step)
        positions[:, start : start + count] = own + position
        position += int(own.max()) + 1
        done, used = start + count, used + count
    positions[:, done:] = np.arange(position, position + input_ids.numel() - done)
    return torch.from_numpy(positions)


@lru_cache(maxsize=256)
def _image_positions(time: int, height: int, width: int, step: float) -> np.ndarray:
    positions = np.indices((time, height, width)).reshape(3, -1)
    positions[0] = (positions[0] * step).astype(np.int64)  # in double precision, as vLLM
    return positions
