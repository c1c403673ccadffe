"""The layout: places in buckets, pieces, checksums, and the check for completeness."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.files import parse_json, to_json
from megatron_omr.convert.hf_tensor import HfTensor
from rl.weight_sync import layout as layout_module
from rl.weight_sync.layout import ALIGNMENT, WeightError, WeightMismatch, check_complete, lay_out, read_layout
from tests.helpers.weights import BUCKET, describe, open_memory, received, sent, some_weights


@settings(deadline=None)
@given(st.lists(st.integers(0, BUCKET), min_size=1, max_size=40))
def test_tensors_never_overlap_and_fill_buckets_in_order(sizes: list[int]) -> None:
    tensors = [HfTensor(name=f"{i}", shape=(size,), precision="fp32") for i, size in enumerate(sizes)]
    layout = lay_out(tensors, BUCKET)
    assert [tensor.name for tensor in layout.tensors] == [tensor.name for tensor in tensors]
    start = 0
    for bucket in layout.buckets:
        assert bucket.start == start and bucket.num_bytes % ALIGNMENT == 0
        start, end = start + bucket.num_bytes, 0
        for tensor in bucket.tensors:
            assert tensor.offset % ALIGNMENT == 0 and 0 <= tensor.offset - end < ALIGNMENT
            end = tensor.offset + tensor.num_bytes
        assert end + 8 <= bucket.num_bytes  # the checksum has a place
        assert (
            end <= BUCKET or len(bucket.tensors) == 1
        )  # only a tensor alone in its bucket may exceed the size
    assert start == layout.num_bytes
    for bucket, following in zip(layout.buckets, layout.buckets[1:], strict=False):
        last = bucket.tensors[-1]
        assert last.offset + last.num_bytes + following.tensors[0].num_bytes > BUCKET - ALIGNMENT


@given(st.integers(0, 1000))
def test_pieces_cover_a_bucket_and_the_last_has_the_checksum(size: int) -> None:
    layout = lay_out([HfTensor(name="a", shape=(size,), precision="fp32")], BUCKET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_module, "BUCKET_BYTES", 512)
        pieces = layout.buckets[0].pieces()
    assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
    assert pieces[-1].end == layout.buckets[0].num_bytes
    assert all(piece.end - piece.start <= 512 + ALIGNMENT for piece in pieces)
    assert pieces[-1].end - pieces[-1].start > ALIGNMENT


def test_layout_survives_a_serialiser_without_dataclasses() -> None:
    layout = lay_out(describe(some_weights().items()), BUCKET)
    assert read_layout(parse_json(to_json(asdict(layout)))) == layout


@settings(deadline=None)
@given(data=st.data(), size=st.integers(1, 50_000))
def test_any_changed_byte_and_swapped_words_are_seen(data: st.DataObject, size: int) -> None:
    bits = torch.randint(-(2**15), 2**15, (size,), generator=torch.Generator().manual_seed(size))
    with sent([("a", bits.to(torch.int16).view(torch.bfloat16))], 1) as place:
        received(place, 1)
        memory = open_memory(place)[: 2 * size]
        at, flip = data.draw(st.integers(0, len(memory) - 1)), data.draw(st.integers(1, 255))
        memory[at] ^= flip
        with pytest.raises(WeightError, match="corrupted: the bucket of a has"):
            received(place, 1)
        memory[at] ^= flip
        received(place, 1)
        words = memory[: len(memory) // 8 * 8].view(torch.int64)
        if len(words) < 2:
            return
        i, j = 0, data.draw(st.integers(1, len(words) - 1))
        words[[i, j]] = words[[j, i]]
        if words[i] != words[j]:
            with pytest.raises(WeightError, match="corrupted"):
                received(place, 1)


def test_missing_unknown_misshapen_and_doubled_tensors_are_named() -> None:
    weights = some_weights()
    expected = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    pairs = list(weights.items())
    check_complete(lay_out(describe(pairs)), expected)
    for faulty, complaint in (
        ([p for p in pairs if p[0] != "b"], "b is missing"),
        ([*pairs, ("d", torch.zeros(2))], "d is not a tensor of this model"),
        ([*pairs, pairs[0]], "a came 2 times"),
        ([("a", torch.zeros(5, 3)), *pairs[1:]], r"a has shape \(5, 3\), the model wants \(3, 5\)"),
    ):
        with pytest.raises(WeightMismatch, match=complaint):
            check_complete(lay_out(describe(faulty)), expected)
