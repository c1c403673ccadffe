"""The manifest: places in buckets, checksums, and the check for completeness."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_omr.convert.hf_tensor import HfTensor
from rl.weight_sync.manifest import ALIGNMENT, WeightError, check_complete, place_tensors
from tests.helpers.weights import BUCKET, received, sent, some_weights


@settings(deadline=None)
@given(st.lists(st.integers(0, BUCKET), min_size=1, max_size=40))
def test_tensors_never_overlap_and_fill_buckets_in_order(sizes: list[int]) -> None:
    tensors = [HfTensor(name=f"{i}", shape=(size,), precision="fp32") for i, size in enumerate(sizes)]
    buckets = place_tensors(tensors, BUCKET)
    assert [tensor for bucket in buckets for tensor, _ in bucket] == tensors
    for bucket in buckets:
        end = 0
        for tensor, offset in bucket:
            assert offset % ALIGNMENT == 0 and 0 <= offset - end < ALIGNMENT
            end = offset + tensor.num_bytes
        assert end <= BUCKET or len(bucket) == 1  # only a tensor alone in its bucket may exceed the size
    for bucket, following in zip(buckets, buckets[1:], strict=False):
        tensor, offset = bucket[-1]
        assert offset + tensor.num_bytes + following[0][0].num_bytes > BUCKET - ALIGNMENT


@settings(deadline=None)
@given(data=st.data(), size=st.integers(1, 50_000))
def test_any_changed_byte_and_swapped_words_are_seen(data: st.DataObject, size: int) -> None:
    bits = torch.randint(-(2**15), 2**15, (size,), generator=torch.Generator().manual_seed(size))
    with sent([("a", bits.to(torch.int16).view(torch.bfloat16))], 1) as manifest:
        received(manifest)
        (bucket,) = manifest.buckets
        memory = torch.from_file(bucket.path, shared=True, size=bucket.num_bytes, dtype=torch.uint8)
        place, flip = data.draw(st.integers(0, len(memory) - 1)), data.draw(st.integers(1, 255))
        memory[place] ^= flip
        with pytest.raises(WeightError, match="a arrived corrupted"):
            received(manifest)
        memory[place] ^= flip
        received(manifest)
        words = memory[: len(memory) // 8 * 8].view(torch.int64)
        if len(words) < 2:
            return
        i, j = 0, data.draw(st.integers(1, len(words) - 1))
        words[[i, j]] = words[[j, i]]
        if words[i] != words[j]:
            with pytest.raises(WeightError, match="a arrived corrupted"):
                received(manifest)


def test_missing_unknown_misshapen_and_doubled_tensors_are_named() -> None:
    weights = some_weights()
    expected = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    pairs = list(weights.items())
    with sent(pairs, 1) as manifest:
        check_complete(manifest, expected)
    for faulty, complaint in (
        ([p for p in pairs if p[0] != "b"], "b is missing"),
        ([*pairs, ("d", torch.zeros(2))], "d is not a tensor of this model"),
        ([*pairs, pairs[0]], "a came 2 times"),
        ([("a", torch.zeros(5, 3)), *pairs[1:]], r"a has shape \(5, 3\), the model wants \(3, 5\)"),
    ):
        with sent(faulty, 1) as manifest, pytest.raises(WeightError, match=complaint):
            check_complete(manifest, expected)
