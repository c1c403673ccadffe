"""One rank of a replica reads and decodes; its peers on the machine get the same batches, errors and counts."""

from __future__ import annotations

import hashlib
import os
import signal
from dataclasses import fields, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch import Tensor

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.config import ImageConfig
from data_pipeline.failures import RankError
from data_pipeline.loader.config import LoaderConfig
from data_pipeline.loader.loader import Loader
from data_pipeline.loader.sharing import SharedBatches, open_batches
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import PackedBatch
from megatron_omr.config import ParallelConfig
from tests.helpers.ranks import init_ranks, run_ranks

IMAGE = ImageConfig(min_pixels=784)
STEPS = 5


class Seen(NamedTuple):
    """What a rank gets from its loader."""

    digests: list[str]  # of all tensors of each step
    states: list[dict[str, Any]]  # after each step
    decoded: int
    skipped: dict[str, int]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> LoaderConfig:
    folder = tmp_path_factory.mktemp("peers") / "shards"
    good = list(digit_samples("train", 17, 0, cell=28))
    bad = [replace(good[0], id=f"bad {n}", images=(b"no image",)) for n in range(3)]
    write_shards([*good, *bad], folder, ShardConfig(samples_per_shard=8))
    return LoaderConfig(shards=str(folder), global_batch_size=6, pack_length=400, num_workers=2)


@pytest.mark.heavy
@pytest.mark.parametrize("parallel", [{"tp": 2, "sp": True}, {"cp": 2}, {"pp": 2}], ids=str)
def test_peers_get_what_a_rank_would_read_itself(
    tiny_hf: Path, config: LoaderConfig, parallel: dict[str, Any]
) -> None:
    layout = ParallelConfig(**parallel)
    alone = read(config, tiny_hf, layout)
    reader, other = run_ranks(_read_with_peers, 2, config, str(tiny_hf), layout)
    assert reader.digests == other.digests == alone.digests and len(set(alone.digests)) == STEPS
    assert reader.states == other.states == alone.states
    assert reader.skipped == other.skipped == alone.skipped and sum(alone.skipped.values()) >= 3
    # threads read ahead of the last step
    assert reader.decoded >= STEPS * config.global_batch_size and other.decoded == 0


@pytest.mark.heavy
def test_replicas_read_apart(tiny_hf: Path, config: LoaderConfig) -> None:
    first, second = run_ranks(_read_with_peers, 2, config, str(tiny_hf), ParallelConfig())
    assert first.digests != second.digests and first.decoded and second.decoded


@pytest.mark.heavy
def test_too_many_bad_samples_end_all_peers_by_name(tiny_hf: Path, config: LoaderConfig) -> None:
    strict = replace(config, max_bad_samples=1)
    with pytest.raises(RankError, match=r"(?s)max_bad_samples=1 allows.*image, the first: bad") as error:
        run_ranks(_read_with_peers, 2, strict, str(tiny_hf), ParallelConfig(tp=2))
    assert isinstance(error.value, ValueError)


@pytest.mark.heavy
def test_a_missing_shard_ends_all_peers_by_name(tiny_hf: Path, config: LoaderConfig, tmp_path: Path) -> None:
    """The reader alone sees it, in a thread."""
    with pytest.raises(RankError, match="rank 0 has no shard today"):
        run_ranks(_fail_on_reader, 2, config, str(tiny_hf), ParallelConfig(tp=2))


@pytest.mark.heavy
def test_a_killed_reader_ends_its_peers(tiny_hf: Path, config: LoaderConfig) -> None:
    with pytest.raises(RankError, match="rank 0 was killed by SIGKILL"):
        run_ranks(_die_while_reading, 2, config, str(tiny_hf), ParallelConfig(tp=2))


def test_shared_batches_stay_after_they_are_closed(tiny_hf: Path, config: LoaderConfig) -> None:
    encoder = ChatEncoder.from_hf(tiny_hf, IMAGE)
    batches = next(iter(Loader(config, encoder, dp_rank=0, dp_size=1)))
    shared = SharedBatches(batches)
    opened = open_batches(shared.place)
    assert digest(opened) == digest(shared) == digest(batches)
    path = shared.place.path
    shared.close()
    assert not os.path.exists(path)
    del shared
    assert digest(opened) == digest(batches)


def read(config: LoaderConfig, folder: str | Path, parallel: ParallelConfig, peers: Any = None) -> Seen:
    """Reads STEPS steps as the first replica of one, or with peers as this rank's."""
    encoder, decoded = ChatEncoder.from_hf(folder, IMAGE), []
    encode = ChatEncoder.encode

    def count(self: ChatEncoder, *args: Any) -> Any:
        decoded.append(1)
        return encode(self, *args)

    ChatEncoder.encode = count
    ranks = dict(dp_rank=0, dp_size=1) if peers is None else peers[0]
    loader = Loader(
        config,
        encoder,
        **ranks,
        multiple=parallel.sequence_multiple,
        pack_multiple=parallel.pack_multiple(),
        peers=peers[1] if peers else None,
    )
    digests, states = [], []
    try:
        for batches in islice(loader, STEPS):
            digests.append(digest(batches))
            states.append(loader.state_dict())
    finally:
        ChatEncoder.encode = encode
    return Seen(digests, states, len(decoded), dict(loader.skipped))


def digest(batches: list[PackedBatch]) -> str:
    found = hashlib.sha256()
    for batch in batches:
        found.update(repr(batch.ids).encode())
        for field in fields(batch):
            value = getattr(batch, field.name)
            if isinstance(value, Tensor):
                found.update(f"{field.name} {value.dtype} {tuple(value.shape)}".encode())
                found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()


def _peers(parallel: ParallelConfig) -> tuple[dict[str, int], Any]:
    from megatron_omr.train.peers import find_peers

    ranks = init_ranks(parallel)
    return dict(dp_rank=ranks.dp_rank, dp_size=ranks.dp_size), find_peers(ranks, timedelta(seconds=60))


def _read_with_peers(config: LoaderConfig, folder: str, parallel: ParallelConfig) -> Seen:
    return read(config, folder, parallel, _peers(parallel))


def _fail_on_reader(config: LoaderConfig, folder: str, parallel: ParallelConfig) -> None:
    peers, encode = _peers(parallel), ChatEncoder.encode

    def fail(self: ChatEncoder, sample: Any, *args: Any) -> Any:
        if sample.id.endswith("3"):
            raise OSError(f"rank {os.environ['RANK']} has no shard today")
        return encode(self, sample, *args)

    ChatEncoder.encode = fail
    read(config, folder, parallel, peers)


def _die_while_reading(config: LoaderConfig, folder: str, parallel: ParallelConfig) -> None:
    peers, encode = _peers(parallel), ChatEncoder.encode

    def die(self: ChatEncoder, sample: Any, *args: Any) -> Any:
        if sample.id.endswith("3"):
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(self, sample, *args)

    ChatEncoder.encode = die
    read(config, folder, parallel, peers)
