"""The tokens in the place of an image or a video, as the processors of transformers and vLLM write them (pure).

Qwen2.5-VL gives a video's tokens the times of its frames as positions. Qwen3-VL writes the time of each pair of frames
as a text before it, and each pair then counts as an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.encode.chat_format import VISION_END, VISION_START, ChatFormat
from data_pipeline.encode.config import PatchFormat
from data_pipeline.encode.video_times import count_pairs, pair_seconds, seconds_per_pair
from data_pipeline.types import Video

Grid = tuple[int, int, int]
"""Pairs of frames, and rows and columns of patches. An image has one pair: itself twice."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Medium:
    """An image or a video of a prompt."""

    size: tuple[int, int]  # width and height in pixels, final but for an image's orientation
    grid: Grid
    token_ids: np.ndarray  # [n] int64, in the place of its placeholder
    blocks: tuple[Grid, ...]  # the pieces in which its tokens lie
    step: float = 1.0  # positions from one time of a block to the next

    @property
    def reach(self) -> int:
        """The positions of its times."""
        return max(int((pairs - 1) * self.step) for pairs, _, _ in self.blocks) + 1

    @property
    def patches(self) -> tuple[int, ...]:
        """The patches of each pair of frames."""
        pairs, rows, columns = self.grid
        return (rows * columns,) * pairs


def place_image(size: tuple[int, int], chat: ChatFormat, patches: PatchFormat) -> Medium:
    """Returns an image of this final size."""
    grid = _cut(size, 1, patches)
    ids = np.full(math.prod(grid) // patches.merge**2, chat.image_token_id)
    return Medium(size=size, grid=grid, token_ids=ids, blocks=(grid,))


def place_video(
    video: Video, size: tuple[int, int], chat: ChatFormat, patches: PatchFormat, tokens_per_second: float
) -> Medium:
    """Returns a video whose frames have this final size."""
    grid = _cut(size, count_pairs(len(video.frames)), patches)
    tokens = math.prod(grid) // patches.merge**2
    if not patches.timestamps:
        # the processors hand the seconds on in single precision; vLLM multiplies in double
        step = float(np.float32(seconds_per_pair(video))) * tokens_per_second
        ids = np.full(tokens, chat.video_token_id)
        return Medium(size=size, grid=grid, token_ids=ids, blocks=(grid,), step=step)
    pads = [chat.video_token_id] * (tokens // grid[0])
    ids = list[int]()
    for seconds in pair_seconds(video):
        time = chat.tokenize(f"<{seconds:.1f} seconds>")
        ids += [*time, chat.special[VISION_START], *pads, chat.special[VISION_END]]
    return Medium(size=size, grid=grid, token_ids=np.array(ids), blocks=((1, *grid[1:]),) * grid[0])


def _cut(size: tuple[int, int], pairs: int, patches: PatchFormat) -> Grid:
    width, height = size
    return pairs, height // patches.side, width // patches.side


def order_media(
    ids: Sequence[int], images: Sequence[Medium], videos: Sequence[Medium], chat: ChatFormat
) -> Iterator[tuple[int, Medium]]:
    """Yields the place of each placeholder among the ids, and its image or video, in order."""
    rest = {chat.image_token_id: iter(images), chat.video_token_id: iter(videos)}
    for place in np.flatnonzero(np.isin(ids, list(rest))).tolist():
        yield place, next(rest[ids[place]])


def expand(values: np.ndarray, parts: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    """Returns the values with those at the places of `parts` replaced by the parts."""
    pieces, done = [], 0
    for place, part in parts:
        pieces += [values[done:place], part]
        done = place + 1
    return np.concatenate([*pieces, values[done:]])
