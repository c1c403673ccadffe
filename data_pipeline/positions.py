"""M-RoPE positions of one sample, before it is packed (pure).

Text counts up in all three rows. The tokens of an image share one time, count rows and columns in the other
two, and the text behind goes on past the longer side. Legend: T tokens, I images.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mrope_position_ids(
    input_ids: Tensor, image_grid_thw: Tensor, *, image_token_id: int, spatial_merge_size: int
) -> Tensor:
    """Positions [3, T] int64 (time, height, width) of `input_ids` [T], images expanded to their tokens.

    Args:
        image_grid_thw: [I, 3] in patches, in the order of the images.

    Raises:
        ValueError: the image tokens do not fit the grids.
    """
    image_tokens = torch.nonzero(input_ids == image_token_id).flatten().tolist()
    grids = [(t, h // spatial_merge_size, w // spatial_merge_size) for t, h, w in image_grid_thw.tolist()]
    needed = sum(t * h * w for t, h, w in grids)
    if needed != len(image_tokens):
        raise ValueError(f"{len(image_tokens)} image tokens, but {len(grids)} images need {needed}")
    parts: list[Tensor] = []
    done = used = position = 0  # tokens placed, image tokens placed, next text position
    for time, height, width in grids:
        count = time * height * width
        start = image_tokens[used]
        if image_tokens[used + count - 1] != start + count - 1:
            raise ValueError(f"the {count} tokens of the image at token {start} are not in one piece")
        parts.append(_text_positions(position, start - done))
        position += start - done
        parts.append(_image_positions(time, height, width) + position)
        position += max(height, width)
        done, used = start + count, used + count
    parts.append(_text_positions(position, input_ids.numel() - done))
    return torch.cat(parts, dim=1)


def _text_positions(first: int, count: int) -> Tensor:
    return torch.arange(first, first + count).expand(3, count)


def _image_positions(time: int, height: int, width: int) -> Tensor:
    axes = torch.meshgrid(torch.arange(time), torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack(axes).reshape(3, -1)
