"""The manifest: places in buckets, checksums, and the check for completeness."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.weight_sync.manifest import ALIGNMENT, Slot, WeightError, check_complete, checksum, next_slot
from rl.weight_sync.sender import WeightSender
from tests.helpers.weights import BUCKET, some_weights


@settings(deadline=None)
@given(st.lists(st.integers(0, 3 * BUCKET), min_size=1, max_size=40))
def test_slots_never_overlap_and_fill_buckets_in_order(sizes: list[int]) -> None:
    slots: list[Slot] = []
    for size in sizes:
        slots.append(next_slot(slots[-1] if slots else None, size, BUCKET))
    assert [slot.num_bytes for slot in slots] == sizes
    for last, slot in zip(slots, slots[1:], strict=False):
        assert slot.offset % ALIGNMENT == 0
        same = slot.bucket == last.bucket and slot.offset >= last.offset + last.num_bytes
        assert same or (slot.bucket == last.bucket + 1 and slot.offset == 0)
    for slot in slots:  # only a tensor alone in its bucket may exceed the size
        assert slot.offset + slot.num_bytes <= BUCKET or slot.offset == 0


@settings(deadline=None)
@given(data=st.data(), size=st.integers(1, 100_000))
def test_checksum_changes_with_any_byte_and_with_swapped_words(data: st.DataObject, size: int) -> None:
    memory = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    before = checksum(memory)
    place = data.draw(st.integers(0, size - 1))
    memory[place] ^= data.draw(st.integers(1, 255))
    assert checksum(memory) != before
    words = memory[: size // 8 * 8].view(torch.int64)
    if len(words) > 1:
        before, (i, j) = checksum(memory), (0, data.draw(st.integers(1, len(words) - 1)))
        words[[i, j]] = words[[j, i]]
        assert checksum(memory) != before or words[i] == words[j]


def test_missing_unknown_misshapen_and_doubled_tensors_are_named() -> None:
    weights = some_weights()
    expected = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    with closing(WeightSender(bucket_bytes=BUCKET)) as sender:
        check_complete(sender.send(weights.items(), 1), expected)
        pairs = list(weights.items())
        for sent, complaint in (
            ([p for p in pairs if p[0] != "b"], "b is missing"),
            ([*pairs, ("d", torch.zeros(2))], "d is not a tensor of this model"),
            ([*pairs, pairs[0]], "a came 2 times"),
            ([("a", torch.zeros(5, 3)), *pairs[1:]], r"a has shape \(5, 3\), the model wants \(3, 5\)"),
        ):
            with pytest.raises(WeightError, match=complaint):
                check_complete(sender.send(sent, 1), expected)
