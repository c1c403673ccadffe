"""M-RoPE positions of one sample, before it is packed (pure).

Text counts up in all three rows. The tokens of an image share one time and count its rows and columns in the other
two; the text after it continues past the longer side. Legend: T tokens, I images.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def mrope_position_ids(
    input_ids: Tensor, image_grid_thw: Tensor, *, image_token_id: int, spatial_merge_size: int
) -> Tensor:
    """Returns positions [3, T] int64 (time, height, width) of `input_ids` [T], where images are expanded.

    Args:
        image_grid_thw: [I, 3] in patches, in the order of the images.

    Raises:
        ValueError: the image tokens do not fit the grids.
    """
    image_tokens = np.flatnonzero(input_ids.numpy() == image_token_id)
    grids = [(t, h // spatial_merge_size, w // spatial_merge_size) for t, h, w in image_grid_thw.tolist()]
    needed = sum(t * h * w for t, h, w in grids)
    if needed != len(image_tokens):
        raise ValueError(f"{len(image_tokens)} image tokens, but {len(grids)} images need {needed}")
    positions = np.empty((3, input_ids.numel()), dtype=np.int64)
    done = used = position = 0  # tokens placed, image tokens placed, next text position
    for time, height, width in grids:
        count = time * height * width
        start = int(image_tokens[used])
        if image_tokens[used + count - 1] != start + count - 1:
            raise ValueError(f"the {count} tokens of the image at token {start} are not in one piece")
        positions[:, done:start] = np.arange(position, position + start - done)
        position += start - done
        positions[:, start : start + count] = _image_positions(time, height, width) + position
        position += max(height, width)
        done, used = start + count, used + count
    positions[:, done:] = np.arange(position, position + input_ids.numel() - done)
    return torch.from_numpy(positions)


@lru_cache(maxsize=256)
def _image_positions(time: int, height: int, width: int) -> np.ndarray:
    return np.indices((time, height, width)).reshape(3, -1)
