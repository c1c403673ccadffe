"""Records of the data pipeline: Sample (from a corpus) -> Example (tokenised) -> PackedBatch (a micro-batch).

Legend of shape suffixes: T packed tokens, S sequences, P patches of frames, I images and pairs of a video's frames.
A PackedBatch holds S examples end to end; attention never crosses the boundaries in `cu_seqlens`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_MARK = "<image>"
"""Marks the place of an image in a message's text; the n-th mark is the sample's n-th image."""

VIDEO_MARK = "<video>"
"""The same of a video. In a sample without videos it is text: a tag of HTML."""

ROLES = ("system", "user", "assistant")

SYSTEM_PROMPT = (
    "You are a helpful assistant. When the user asks a question, your response must include two parts: "
    "first, the reasoning process enclosed in <think>...</think> tags, then the final answer enclosed in "
    "<answer>...</answer> tags.Please provide a clear, concise response within <answer> </answer> tags that "
    "directly addresses the question."
)
"""The system prompt of SFT, RL and evaluation: the recipe's, byte for byte (no space after `tags.`)."""

FORMAT_PHRASES = re.compile(
    r"Context: N/A|Output the thinking process in <think> </think> and final answer in <answer> </answer> tags\."
    r"|Answer the question using a single word or phrase\."
)
"""Phrases that corpora append to questions; the recipe removes them before it asks a teacher."""


@dataclass(frozen=True, kw_only=True)
class Message:
    role: str  # one of ROLES
    content: str  # plain text with IMAGE_MARK where an image goes, VIDEO_MARK where a video does


@dataclass(frozen=True, kw_only=True)
class Video:
    """Frames that were chosen from a video, and where they stood in it. Its sound is not kept."""

    frames: tuple[bytes, ...]  # encoded files (PNG, JPEG, ...) of one size, untouched
    indices: tuple[int, ...]  # of each frame, its number in the video, ascending from 0
    fps: float  # frames a second of the video
    num_source_frames: int  # frames of the video

    @property
    def seconds(self) -> tuple[float, ...]:
        """The time of each frame."""
        return tuple(index / self.fps for index in self.indices)

    @property
    def times(self) -> str:
        """All that is known of its times, for hashes: videos of the same frames may differ in these alone."""
        return f"{self.indices} of {self.num_source_frames} at {float(self.fps)}"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A record of a corpus. To learn from it, its last message must be the assistant's."""

    id: str  # unique and stable: "digits/train/00012"
    source: str  # the corpus: "digits"
    messages: tuple[Message, ...]
    images: tuple[bytes, ...] = ()  # encoded files (PNG, JPEG, ...), untouched
    videos: tuple[Video, ...] = ()
    answer: str = ""  # the reference, in the form that the answer checker reads
    metadata: dict[str, str | int | float] = field(default_factory=dict)  # kind, lineage

    @property
    def pictures(self) -> tuple[bytes, ...]:
        """The images, then the frames of the videos."""
        return (*self.images, *(frame for video in self.videos for frame in video.frames))


@dataclass(frozen=True, kw_only=True)
class SampleRef:
    """A reference to a sample in a shard: the range of bytes that holds its tar members with their headers."""

    id: str
    shard: str  # relative to the folder or mixture of the index, or absolute
    offset: int  # bytes
    size: int  # bytes
    crc32: int | None = None  # of these bytes; None is not checked


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A tokenised sample. `loss_mask[t]` is 1 where token t itself is to be learned (not shifted)."""

    id: str
    input_ids: Tensor  # [T] int64, image and video pads expanded to one per merged patch group
    loss_mask: Tensor  # [T] float32
    position_ids: Tensor  # [3, T] int64, M-RoPE (time, height, width)
    pixels: Tensor  # [P, side * side * 3] uint8, see images.py
    image_grid_thw: Tensor  # [I, 3] int64, in patches; of a video each pair of frames has its own
    frames: Tensor | None = None  # [I] int64, frames of each in `pixels`: 1 or 2; None: 1

    def __len__(self) -> int:
        return self.input_ids.numel()


@dataclass(frozen=True, kw_only=True, eq=False)
class Tree:
    """Examples that are packed together: each branch continues the root, see prompt_sharing.py.

    Without branches it is a plain example, the root.
    """

    root: Example  # with branches its id is ""
    branches: tuple[Example, ...] = ()

    @property
    def examples(self) -> tuple[Example, ...]:
        return (self.root, *self.branches)


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedBatch:
    """A micro-batch: examples end to end. Labels and mask are shifted: position t predicts labels[t].

    The last position of each sequence predicts nothing; its label and its loss_mask are 0.
    """

    ids: tuple[str, ...]  # S sample ids
    input_ids: Tensor  # [T] int64
    labels: Tensor  # [T] int64, the next token of the same sequence
    loss_mask: Tensor  # [T] float32, 1 where labels[t] is to be learned
    position_ids: Tensor  # [3, T] int64
    cu_seqlens: Tensor  # [S + 1] int32, 0 = first
    real_lens: Tensor  # [S] int64, tokens of each sequence without padding; 0: a blank one
    pixels: Tensor  # [P, side * side * 3] uint8 (P = 0 for text only)
    image_grid_thw: Tensor  # [I, 3] int64
    frames: Tensor | None = None  # [I] int64, see Example
    parents: Tensor | None = None  # [S] int64, the sequence that each continues or -1; None: all are -1
    routed_experts: Tensor | None = None
    """[T, language layers, experts of a token] int16: those that an engine chose, -1 where it chose none."""

    @property
    def num_tokens(self) -> int:
        return self.input_ids.numel()

    @property
    def num_real_tokens(self) -> int:
        """Tokens without padding."""
        return int(self.real_lens.sum())

    @property
    def num_sequences(self) -> int:
        return len(self.ids)

    def prefix_lens(self) -> Tensor:
        """Returns [S], the tokens of its parent that each sequence attends to."""
        lengths = self.cu_seqlens.diff()
        return lengths * 0 if self.parents is None else lengths[self.parents] * (self.parents >= 0)

    def to(self, device: str) -> PackedBatch:
        """Returns the batch on `device`; from pinned memory the copy does not block."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def without_pixels(self) -> PackedBatch:
        """Returns the batch as later pipeline stages need it: images and their sizes stay on the first."""
        return replace(self, pixels=self.pixels[:0])

    def pin(self) -> PackedBatch:
        """Returns the batch in pinned memory; raises RuntimeError without CUDA."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> PackedBatch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "ids"}
        return replace(self, **{name: change(t) for name, t in tensors.items() if t is not None})
