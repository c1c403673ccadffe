"""What flows through the data pipeline: Sample (a record) -> Example (tokenised) -> PackedBatch (tensors).

Legend of shape suffixes: T packed tokens, S sequences, P vision patches, I images.
A sample of two images and the text "7+5" becomes one Example; a PackedBatch holds S such examples
end to end, and attention never crosses `cu_seqlens`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_MARK = "<image>"
"""Stands in a message's text where an image goes; the n-th mark is the sample's n-th image."""

SYSTEM_PROMPT = (
    "You are a helpful assistant. When the user asks a question, your response must include two parts: "
    "first, the reasoning process enclosed in <think>...</think> tags, then the final answer enclosed in "
    "<answer>...</answer> tags.Please provide a clear, concise response within <answer> </answer> tags that "
    "directly addresses the question."
)
"""The recipe's system prompt, byte for byte (no space after `tags.`): SFT, RL and evaluation share it."""


@dataclass(frozen=True, kw_only=True)
class Message:
    role: str  # system | user | assistant
    content: str  # plain text with IMAGE_MARK where an image goes


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One record of a corpus. `messages` end with the assistant's turn when there is one to learn from."""

    id: str  # unique and stable: "digits/train/00012"
    source: str  # the corpus: "digits"
    messages: tuple[Message, ...]
    images: tuple[bytes, ...] = ()  # encoded files (PNG, JPEG, ...), untouched
    answer: str = ""  # the reference answer, as the answer checker takes it
    metadata: dict[str, str | int | float] = field(default_factory=dict)  # kind, lineage


@dataclass(frozen=True, kw_only=True)
class SampleRef:
    """Where a sample lies, so that images travel by reference: its tar members, from the first one's header on."""

    id: str
    shard: str  # relative to the folder or mixture whose index this is from, or in full
    offset: int  # bytes
    size: int  # bytes
    crc32: int | None = None  # of these bytes; None where a reference was written down without


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A tokenised sample. `loss_mask[t]` is 1 where *token t itself* is to be learned (not shifted)."""

    id: str
    input_ids: Tensor  # [T] int64, image pads expanded to one per merged patch group
    loss_mask: Tensor  # [T] float32
    position_ids: Tensor  # [3, T] int64, M-RoPE (time, height, width)
    pixels: Tensor  # [P, 14 * 14 * 3] uint8, see images.py
    image_grid_thw: Tensor  # [I, 3] int64, in patches

    def __len__(self) -> int:
        return self.input_ids.numel()


@dataclass(frozen=True, kw_only=True, eq=False)
class Tree:
    """Examples that stay together in a pack: each branch goes on where the root ends. See sharing.py.

    Without branches it is one plain example, the root.
    """

    root: Example  # with branches its id is "": it is part of theirs
    branches: tuple[Example, ...] = ()

    @property
    def examples(self) -> tuple[Example, ...]:
        return (self.root, *self.branches)


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedBatch:
    """Examples end to end: one micro-batch. Everything per token is *shifted*: position t predicts labels[t].

    The last position of each sequence predicts nothing: its label is 0 and its loss_mask 0.
    """

    ids: tuple[str, ...]  # S sample ids
    input_ids: Tensor  # [T] int64
    labels: Tensor  # [T] int64, the next token of the same sequence
    loss_mask: Tensor  # [T] float32, 1 where labels[t] is to be learned
    position_ids: Tensor  # [3, T] int64
    cu_seqlens: Tensor  # [S + 1] int32, 0 = first
    pixels: Tensor  # [P, 14 * 14 * 3] uint8 (P = 0 for text only)
    image_grid_thw: Tensor  # [I, 3] int64
    # [S] int64, the sequence that each goes on from, -1 for none; None where none does
    parents: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return self.input_ids.numel()

    @property
    def num_sequences(self) -> int:
        return len(self.ids)

    def prefix_lens(self) -> Tensor:
        """[S] tokens of its parent that each sequence attends to."""
        lengths = self.cu_seqlens.diff()
        return lengths * 0 if self.parents is None else lengths[self.parents] * (self.parents >= 0)

    def to(self, device: str) -> PackedBatch:
        """The same batch with its tensors on `device`; from pinned memory it is copied while others compute."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> PackedBatch:
        """The same batch in pinned memory; raises RuntimeError where there is no CUDA."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> PackedBatch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "ids"}
        return replace(self, **{name: change(t) for name, t in tensors.items() if t is not None})
