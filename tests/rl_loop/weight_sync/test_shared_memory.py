"""Shared memory: tensors arrive as they were sent, while they are sent; torn, late and lost ones are seen."""

from __future__ import annotations

import multiprocessing as mp
import os
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from threading import Thread

import pytest
import torch

from rl.weight_sync import layout as layout_module
from rl.weight_sync import writing
from rl.weight_sync.layout import WeightError
from rl.weight_sync.shared_memory import SharedMemoryReader, SharedPlace
from tests.helpers.weights import open_memory, open_sender, received, sent, some_weights


def test_tensors_arrive_bit_for_bit_and_memory_is_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_STEP", 1000)  # large tensors are copied in steps
    monkeypatch.setattr(layout_module, "BUCKET_BYTES", 8192)  # and in pieces
    with closing(open_sender(some_weights().items())) as sender:
        assert max(len(bucket.pieces()) for bucket in sender.place.layout.buckets) > 2
        sender.send(some_weights(0).items(), version=1)
        with closing(SharedMemoryReader(sender.place)) as reader:
            assert equal({n: t.clone() for n, t in reader.receive(1)}, some_weights(0))
            strided = {name: t.T.contiguous().T if t.dim() == 2 else t for name, t in some_weights(1).items()}
            sender.send(strided.items(), version=2)
            assert equal(dict(reader.receive(2)), some_weights(1))


def equal(found: dict[str, torch.Tensor], sent: dict[str, torch.Tensor]) -> bool:
    return found.keys() == sent.keys() and all(torch.equal(found[name], sent[name]) for name in sent)


def test_each_bucket_is_read_as_soon_as_it_is_written() -> None:
    weights = some_weights()
    with closing(open_sender(weights.items())) as sender, closing(SharedMemoryReader(sender.place)) as reader:
        last_of_first = sender.place.layout.buckets[0].tensors[-1].name
        seen: list[str] = []

        def export() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights.items():
                yield name, tensor
                if name == last_of_first:
                    deadline = time.monotonic() + 20
                    while last_of_first not in seen and time.monotonic() < deadline:
                        time.sleep(0.001)
                    assert seen[-1] == last_of_first  # read before the next tensor is exported

        def receive() -> None:
            for name, _ in reader.receive(1):
                seen.append(name)

        thread = Thread(target=receive)
        thread.start()
        sender.send(export(), version=1)
        thread.join()
        assert seen == list(weights)


def test_reader_of_an_older_version_sees_that_it_is_overwritten() -> None:
    with (
        closing(open_sender(some_weights().items())) as sender,
        closing(SharedMemoryReader(sender.place)) as reader,
    ):
        sender.send(some_weights(0).items(), version=1)
        reading = reader.receive(1)
        next(reading)
        sender.send(some_weights(1).items(), version=2)
        with pytest.raises(WeightError, match="weights 1 were overwritten by weights 2"):
            list(reading)
        assert len(list(reader.receive(2))) == len(some_weights())
        sender.send(some_weights(0).items(), version=3)
        with pytest.raises(WeightError, match="weights 2 were overwritten by weights 3"):
            reader.confirm(2)  # views that were not copied when the last bucket was checked


def test_fewer_or_more_tensors_than_planned_are_refused() -> None:
    weights = list(some_weights().items())
    with closing(open_sender(weights)) as sender:
        for other in (weights[:-1], [*weights, weights[0]]):
            with pytest.raises(ValueError, match="argument 2 is"):
                sender.send(other, version=1)


def test_reader_waits_for_its_version_no_longer_than_the_timeout() -> None:
    with closing(open_sender(some_weights().items(), timeout=0.2)) as sender:
        sender.send(some_weights().items(), version=1)
        with (
            closing(SharedMemoryReader(sender.place)) as reader,
            pytest.raises(
                WeightError, match=r"wrote nothing of weights 2 for 0.2 s \(engine.transfer_timeout\)"
            ),
        ):
            list(reader.receive(2))


def test_corrupted_bucket_is_named() -> None:
    with sent(some_weights().items(), 1) as place:
        bucket = next(b for b in place.layout.buckets if any(t.name == "c" for t in b.tensors))
        offset = next(t.offset for t in bucket.tensors if t.name == "c")
        open_memory(place)[bucket.start + offset + 100] ^= 1
        names = f"{bucket.tensors[0].name} to {bucket.tensors[-1].name}"
        with pytest.raises(WeightError, match=f"corrupted: the bucket of {names} has"):
            received(place, 1)


def test_closed_sender_frees_the_weights() -> None:
    sender = open_sender(some_weights().items())
    sender.send(some_weights().items(), version=1)
    sender.close()
    with pytest.raises(WeightError, match="is gone"):
        received(sender.place, 1)


def _send_and_wait(pipe: Connection) -> None:
    sender = open_sender(some_weights().items(), timeout=60)
    sender.send(some_weights().items(), version=5)
    pipe.send(sender.place)
    pipe.recv()


def test_another_process_reads_weights_until_the_sender_is_killed() -> None:
    pipe, child_pipe = mp.Pipe()
    child = mp.get_context("spawn").Process(target=_send_and_wait, args=(child_pipe,))
    child.start()
    try:
        assert pipe.poll(60)
        place: SharedPlace = pipe.recv()
        assert os.readlink(place.path).startswith("/memfd:")  # the kernel frees it with the process
        assert equal(received(place, 5), some_weights())
        reader = SharedMemoryReader(place)
    finally:
        child.kill()
        child.join()
    with closing(reader), pytest.raises(WeightError, match="is gone"):
        list(reader.receive(6))  # at once, not after the timeout of 60 s
    with pytest.raises(WeightError, match="is gone"):
        received(place, 5)
