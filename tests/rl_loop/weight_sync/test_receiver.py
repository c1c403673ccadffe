"""Reading sent weights: in another process, or with an error that names the tensor. test_engine.py loads them."""

from __future__ import annotations

import multiprocessing as mp
import os
from multiprocessing.connection import Connection

import pytest
import torch

from rl.weight_sync.manifest import Bucket, WeightError, WeightManifest
from rl.weight_sync.sender import WeightSender
from tests.helpers.weights import BUCKET, describe, received, sent, some_weights


def test_corrupted_tensor_is_named() -> None:
    with sent(some_weights().items(), 1) as manifest:
        bucket = next(b for b in manifest.buckets if any(e.name == "c" for e in b.tensors))
        offset = next(e.offset for e in bucket.tensors if e.name == "c")
        flip_bit(bucket, offset + 100)
        with pytest.raises(WeightError, match="c arrived corrupted"):
            received(manifest)


def flip_bit(bucket: Bucket, offset: int) -> None:
    memory = torch.from_file(bucket.path, shared=True, size=bucket.num_bytes, dtype=torch.uint8)
    memory[offset] ^= 1


def _send_and_wait(pipe: Connection) -> None:
    sender = WeightSender(describe(some_weights().items()), bucket_bytes=BUCKET)
    pipe.send(sender.send(some_weights().items(), version=5))
    pipe.recv()


def test_another_process_reads_weights_until_the_sender_is_killed() -> None:
    pipe, child_pipe = mp.Pipe()
    child = mp.get_context("spawn").Process(target=_send_and_wait, args=(child_pipe,))
    child.start()
    try:
        assert pipe.poll(60)
        manifest: WeightManifest = pipe.recv()
        # anonymous memory: the kernel frees it with the process
        assert all(os.readlink(bucket.path).startswith("/memfd:") for bucket in manifest.buckets)
        assert all(torch.equal(received(manifest)[name], tensor) for name, tensor in some_weights().items())
    finally:
        child.kill()
        child.join()
    with pytest.raises(WeightError, match="is gone"):
        received(manifest)
