"""Broadcasts over gloo between real processes: bit for bit, and no wait for a lost receiver beyond the timeout."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from rl.weight_sync import layout as layout_module
from rl.weight_sync.collective import CollectivePlace, CollectiveReader, CollectiveSender
from rl.weight_sync.layout import Bucket, Piece, WeightError, lay_out
from tests.helpers.weights import BUCKET, describe, some_weights

TIMEOUT = 2.0
pytestmark = pytest.mark.heavy


def receive_in_process(pipe: Connection) -> None:
    """Joins and receives as told; answers with the tensors, or why there are none."""
    layout_module.BUCKET_BYTES = 8192
    reader: CollectiveReader | None = None
    pipe.send("started")
    while True:
        told = pipe.recv()
        try:
            if isinstance(told, CollectivePlace):
                reader = CollectiveReader(told, rank=0)
                pipe.send("")
            else:
                assert reader is not None
                pipe.send({name: tensor.clone().numpy(force=True) for name, tensor in reader.receive(told)})
        except WeightError as error:
            pipe.send(str(error))


class Receiver:
    def __init__(self) -> None:
        self.pipe, end = mp.Pipe()
        self.process = mp.get_context("spawn").Process(target=receive_in_process, args=(end,), daemon=True)
        self.process.start()

    def answer(self) -> Any:
        assert self.pipe.poll(30)
        return self.pipe.recv()

    def signal(self, number: int) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)


@contextmanager
def started(count: int) -> Iterator[list[Receiver]]:
    receivers = [Receiver() for _ in range(count)]
    try:
        assert [receiver.answer() for receiver in receivers] == ["started"] * count
        yield receivers
    finally:
        for receiver in receivers:
            receiver.process.kill()
            receiver.process.join()


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> Iterator[CollectiveSender]:
    monkeypatch.setattr(layout_module, "BUCKET_BYTES", 8192)  # the large tensors come in pieces
    weights = float_weights(0)
    with closing(
        CollectiveSender(lay_out(describe(weights.items()), BUCKET), host="127.0.0.1", timeout=TIMEOUT)
    ) as opened:
        yield opened


def float_weights(seed: int) -> dict[str, torch.Tensor]:
    """numpy, which carries them between the processes, has no bfloat16."""
    return {name: tensor.float() for name, tensor in some_weights(seed).items()}


def join(sender: CollectiveSender, generation: int, receivers: Sequence[Receiver]) -> None:
    for number, receiver in enumerate(receivers):
        receiver.pipe.send(
            replace(sender.place, generation=generation, num_ranks=1 + len(receivers), first_rank=1 + number)
        )
    sender.join(generation, 1 + len(receivers))
    assert [receiver.answer() for receiver in receivers] == [""] * len(receivers)


def update(sender: CollectiveSender, version: int, receivers: Sequence[Receiver]) -> None:
    for receiver in receivers:
        receiver.pipe.send(version)
    sender.send(float_weights(version).items(), version)
    for receiver in receivers:
        got = receiver.answer()
        assert got.keys() == float_weights(0).keys()
        assert all(torch.equal(torch.from_numpy(got[name]), t) for name, t in float_weights(version).items())


def interrupted(
    weights: dict[str, torch.Tensor], interrupt: Callable[[], None]
) -> Iterator[tuple[str, torch.Tensor]]:
    for number, pair in enumerate(weights.items()):
        if number == len(weights) // 2:
            interrupt()
        yield pair


def test_receiver_that_hangs_in_a_transfer_is_noticed_and_the_others_get_the_weights_in_a_new_group(
    sender: CollectiveSender,
) -> None:
    """test_transfer.py kills one."""
    with started(3) as (kept, lost, late):
        join(sender, 1, [kept, lost])
        update(sender, 1, [kept, lost])
        for receiver in (kept, lost):
            receiver.pipe.send(2)
        start = time.monotonic()
        with pytest.raises(WeightError, match=r"did not receive the weights within engine.transfer_timeout"):
            sender.send(interrupted(float_weights(2), lambda: lost.signal(signal.SIGSTOP)), 2)
        answer = kept.answer()
        assert isinstance(answer, str) and "the weights did not arrive within" in answer
        assert time.monotonic() - start < 3 * TIMEOUT
        join(sender, 2, [kept, late])
        update(sender, 2, [kept, late])
        join(sender, 3, [late])  # a group without `kept`, which takes no part
        update(sender, 3, [late])


def test_members_that_do_not_come_are_waited_for_no_longer_than_the_timeout(sender: CollectiveSender) -> None:
    start = time.monotonic()
    with pytest.raises(WeightError, match="the engines did not all come within"):
        sender.join(1, 2)
    with pytest.raises(WeightError, match="the trainer or another engine did not come within"):
        CollectiveReader(replace(sender.place, generation=2, num_ranks=2, first_rank=1), rank=0)
    assert time.monotonic() - start < 4 * TIMEOUT


def test_corrupted_bucket_is_named_and_the_transfer_goes_on_for_the_others(sender: CollectiveSender) -> None:
    publish = CollectiveSender.publish

    def flip_bit_then_publish(self: CollectiveSender, bucket: Bucket, piece: Piece) -> None:
        if bucket.tensors[0].name == "large":
            self._ring[-1][5] ^= 1
        publish(self, bucket, piece)

    with started(1) as (receiver,):
        join(sender, 1, [receiver])
        receiver.pipe.send(1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CollectiveSender, "publish", flip_bit_then_publish)
            sender.send(float_weights(1).items(), 1)
        assert "weights arrived corrupted: the bucket of large has" in receiver.answer()
        update(sender, 2, [receiver])  # in the same group
