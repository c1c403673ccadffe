"""Shards at http servers and in an object store read like the folder; temporary faults are retried."""

from __future__ import annotations

import socket
from pathlib import Path

import fsspec
import pytest

from data_pipeline import storage
from data_pipeline.config import check_address
from data_pipeline.errors import BadSample
from data_pipeline.loader.config import MixConfig
from data_pipeline.loader.mixture import mix
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import read_sample, read_shard, read_shards
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.storage import join, read_bytes, read_range
from data_pipeline.types import Sample
from tests.helpers.http_shards import serve

SAMPLES = list(digit_samples("train", 21, 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("served")
    write_shards(SAMPLES, root / "a", ShardConfig(samples_per_shard=8))
    write_shards(digit_samples("train", 5, 1), root / "b")
    mix(MixConfig(shards=(str(root / "a"), str(root / "b")), out=str(root / "mix")))
    return root


@pytest.fixture(autouse=True)
def short_waits(monkeypatch) -> None:
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.01)


def read_both_ways(place: str) -> tuple[list[Sample], list[Sample]]:
    index = ShardIndex.load(place)
    return [read_sample(index.folder, ref) for ref in index], list(read_shards(place))


@pytest.mark.parametrize(
    "place,name,joined",
    [
        ("x/mix", "../a/s.tar", "x/mix/../a/s.tar"),
        ("x", "/y/s.tar", "/y/s.tar"),
        ("https://h/x/mix", "../a/s.tar", "https://h/x/a/s.tar"),
        ("s3://bucket/mix/", "s.tar", "s3://bucket/mix/s.tar"),
        ("x", "gs://b/s.tar", "gs://b/s.tar"),
        ("simplecache::https://h/x", "s.tar", "simplecache::https://h/x/s.tar"),
    ],
)
def test_names_join_places(place, name, joined):
    assert join(place, name) == joined


@pytest.mark.parametrize(
    "place",
    [
        "https://host/shards?sig=secret",
        "s3://id:secret@bucket/shards",
        "simplecache::https://secret@host/x.tar",
    ],
)
def test_address_with_a_key_is_refused_without_repeating_it(place):
    with pytest.raises(ValueError, match="keys belong into environment variables") as refused:
        read_bytes(place)
    assert "secret" not in str(refused.value)
    for harmless in (
        "hf://datasets/owner/name@main/train",
        "What is 3 @ 4? See http://host",
        "read http://host?page=1 first",
    ):
        check_address(harmless)


def test_http_reads_like_the_folder_with_one_request_per_sample(folder):
    with serve(folder) as (address, server):
        index = ShardIndex.load(f"{address}/a")
        before = len(server.requests)
        assert [read_sample(index.folder, ref) for ref in index] == SAMPLES
        rows = [request for request in server.requests[before:] if request.endswith(".index.json")]
        assert len(rows) == 3 and len(server.requests) - before == len(SAMPLES) + 3
        assert list(read_shards(f"{address}/a")) == SAMPLES
        assert index.digest == ShardIndex.load(folder / "a").digest


def test_an_object_store_reads_like_the_folder(folder):
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/bucket", recursive=True)
    try:
        assert read_both_ways("memory://bucket/a") == (SAMPLES, SAMPLES)
        assert [s.id for s in read_shards("memory://bucket/mix")] == [
            s.id for s in read_shards(folder / "mix")
        ]
    finally:
        store.rm("/bucket", recursive=True)


def test_a_mixture_at_an_address_finds_its_sources_there(folder):
    with serve(folder) as (address, _):
        index = ShardIndex.load(f"{address}/mix/mixture.json")
        assert index.digest == ShardIndex.load(folder / "mix").digest
        assert read_sample(index.folder, index[22]) == read_sample(
            folder / "b", ShardIndex.load(folder / "b")[1]
        )


def test_temporary_faults_are_retried(folder):
    """Every third request fails: 503, a closed connection, or half of the body."""
    with serve(folder, fail_every=3) as (address, server):
        assert read_both_ways(f"{address}/a") == (SAMPLES, SAMPLES)
        assert len(server.requests) > 30


def test_an_outage_is_a_connection_error_and_no_bad_sample(folder):
    with serve(folder) as (address, server):
        index = ShardIndex.load(f"{address}/a")
        ref = index[0]
        server.fail_every = 1
        with pytest.raises(ConnectionError, match="run the same command again"):
            read_sample(index.folder, ref)
        assert server.requests[-storage.ATTEMPTS :] == [server.requests[-1]] * storage.ATTEMPTS
    with pytest.raises(ConnectionError, match=r"cannot be read"):
        read_sample(index.folder, ref)  # the server is gone


def test_permanent_refusals_are_not_retried(folder):
    with serve(folder, status=403, fail_every=1) as (address, server):
        server.requests += ["", ""]  # so that the next fails with the status
        with pytest.raises(ConnectionError, match="403"):
            read_bytes(f"{address}/a/index.json")
        assert len(server.requests) == 3


def test_missing_files_are_reported(folder):
    with serve(folder) as (address, _):
        with pytest.raises(ValueError, match=r"nothing/index\.json does not exist"):
            ShardIndex.load(f"{address}/nothing")
        with pytest.raises(FileNotFoundError):
            read_bytes(f"{address}/a/none")
        assert read_range(f"{address}/a/index.json", 1 << 30, 5) == b""


def test_a_server_without_ranges_is_an_error_with_the_fix(folder, tmp_path):
    with serve(folder, ranges=False) as (address, server):
        index = ShardIndex.load(f"{address}/a")
        with pytest.raises(ValueError, match=rf"ignores Range requests.*simplecache::{address}/a/,"):
            read_sample(index.folder, index[3])
        assert read_both_ways(f"simplecache::{address}/a") == (SAMPLES, SAMPLES)
        tars = [request for request in server.requests if request.endswith(".tar")]
        assert len(set(tars)) == 3 and len(tars) <= 6, "each shard is requested once and copied once"


def test_a_truncated_shard_at_an_address_loses_only_its_torn_samples(folder, tmp_path):
    write_shards(SAMPLES[:6], tmp_path / "a")
    index = ShardIndex.load(tmp_path / "a")
    shard = tmp_path / "a" / index.shards[0].file
    shard.write_bytes(shard.read_bytes()[: index[4].offset + 700])
    with serve(tmp_path) as (address, _):
        bad: list[str] = []
        index = ShardIndex.load(f"{address}/a")
        got = list(read_shard(index, 0, lambda name, error: bad.append(f"{name} {error.reason}")))
        assert got == SAMPLES[:4] and bad == [f"{s.id} unreadable" for s in SAMPLES[4:6]]
        with pytest.raises(BadSample, match="torn"):
            read_sample(index.folder, index[4])


def test_a_remote_mixture_may_not_name_local_folders(folder, tmp_path):
    text = (folder / "mix" / "mixture.json").read_text().replace("../a", str(folder / "a"))
    (tmp_path / "mixture.json").write_text(text)
    with serve(tmp_path) as (address, _), pytest.raises(ValueError, match="names the local folder"):
        ShardIndex.load(address)


def test_a_hanging_server_times_out(folder, monkeypatch):
    monkeypatch.setattr(storage, "READ_SECONDS", 0.2)
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(ConnectionError, match="cannot be read"),
    ):
        read_bytes(f"http://127.0.0.1:{silent.getsockname()[1]}/index.json")
