"""The sender: weights arrive as they were sent, and its shared memory is reused, grows and is freed."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest
import torch

from rl.weight_sync.manifest import WeightError
from rl.weight_sync.sender import WeightSender
from tests.helpers.weights import BUCKET, received, some_weights


def test_tensors_arrive_bit_for_bit_and_memory_is_reused() -> None:
    with closing(WeightSender(bucket_bytes=BUCKET)) as sender:
        first = sender.send(some_weights(0).items(), version=1)
        paths = [bucket.path for bucket in first.buckets]
        second = sender.send(some_weights(1).items(), version=2)
        assert len(paths) > 2 and [bucket.path for bucket in second.buckets] == paths
        assert second.version == 2 and second.num_bytes == sum(t.nbytes for t in some_weights(1).values())
        for name, tensor in some_weights(1).items():
            assert torch.equal(received(second)[name], tensor), name
        with pytest.raises(
            WeightError, match="a arrived corrupted"
        ):  # the older manifest describes overwritten memory
            received(first)


def test_memory_grows_for_larger_models() -> None:
    with closing(WeightSender(bucket_bytes=64)) as sender:
        for size in (10, 4000, 10):
            weights = {f"{i}": torch.randn(size) for i in range(3)}
            assert all(
                torch.equal(received(sender.send(weights.items(), 1))[n], t) for n, t in weights.items()
            )


def test_dtype_that_weights_do_not_have_is_refused() -> None:
    with closing(WeightSender()) as sender, pytest.raises(ValueError, match="ids is torch.int64"):
        sender.send([("ids", torch.zeros(3, dtype=torch.int64))], version=1)


def test_closed_sender_frees_the_weights() -> None:
    sender = WeightSender(bucket_bytes=BUCKET)
    manifest = sender.send(some_weights().items(), version=1)
    sender.close()
    with pytest.raises(WeightError, match="is gone"):
        received(replace(manifest, version=2))
