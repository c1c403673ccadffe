"""The sender: weights arrive as they were sent, and its shared memory is reused and freed."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest
import torch

from rl.weight_sync import sender as sender_module
from rl.weight_sync.manifest import WeightError
from rl.weight_sync.sender import WeightSender
from tests.helpers.weights import BUCKET, describe, received, some_weights


def test_tensors_arrive_bit_for_bit_and_memory_is_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "_PIECE", 1000)  # large tensors are copied in pieces
    with closing(WeightSender(describe(some_weights().items()), bucket_bytes=BUCKET)) as sender:
        first = sender.send(some_weights(0).items(), version=1)
        paths = [bucket.path for bucket in first.buckets]
        strided = {name: t.T.contiguous().T if t.dim() == 2 else t for name, t in some_weights(1).items()}
        second = sender.send(strided.items(), version=2)
        assert len(paths) > 2 and [bucket.path for bucket in second.buckets] == paths
        assert second.version == 2 and second.num_bytes == sum(t.nbytes for t in some_weights(1).values())
        for name, tensor in some_weights(1).items():
            assert torch.equal(received(second)[name], tensor), name
        with pytest.raises(
            WeightError, match="a arrived corrupted"
        ):  # the older manifest describes overwritten memory
            received(first)


def test_fewer_or_more_tensors_than_planned_are_refused() -> None:
    weights = list(some_weights().items())
    with closing(WeightSender(describe(weights))) as sender:
        for other in (weights[:-1], [*weights, weights[0]]):
            with pytest.raises(ValueError, match="argument 2 is"):
                sender.send(other, version=1)


def test_closed_sender_frees_the_weights() -> None:
    sender = WeightSender(describe(some_weights().items()), bucket_bytes=BUCKET)
    manifest = sender.send(some_weights().items(), version=1)
    sender.close()
    with pytest.raises(WeightError, match="is gone"):
        received(replace(manifest, version=2))
