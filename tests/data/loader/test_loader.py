"""The loader yields every sample once an epoch, resumes exactly, and counts the samples it skips."""

from __future__ import annotations

import io
import json
import logging
import os
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline import storage
from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.config import ImageConfig
from data_pipeline.loader import loader as loader_module
from data_pipeline.loader.config import LoaderConfig, MixConfig
from data_pipeline.loader.cost import CostModel
from data_pipeline.loader.loader import Loader
from data_pipeline.loader.mixture import mix
from data_pipeline.loader.order import iterate_draws
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.index import ShardIndex, rows_path
from data_pipeline.shards.writer import finish_shards, write_part, write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import Message, PackedBatch, Sample, SampleRef
from tests.helpers.http_shards import serve
from tests.helpers.videos import ask_about, draw_png, make_video

NUM_SAMPLES, BATCH = 50, 12  # four steps and a carry of two


@pytest.fixture(scope="module")
def encoder(tiny_hf) -> ChatEncoder:
    return ChatEncoder.from_hf(tiny_hf, ImageConfig())


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> LoaderConfig:
    folder = tmp_path_factory.mktemp("loader") / "shards"
    write_shards(digit_samples("train", NUM_SAMPLES, 0), folder, ShardConfig(samples_per_shard=8))
    return LoaderConfig(shards=str(folder), global_batch_size=BATCH, pack_length=1_500)


def take(config: LoaderConfig, encoder: ChatEncoder, steps: int, *, dp_size: int = 1) -> list[list[str]]:
    """Returns the ids of each of the first steps, of all ranks."""
    loaders = [Loader(config, encoder, dp_rank=rank, dp_size=dp_size) for rank in range(dp_size)]
    return [_ids(batches) for batches in islice(zip(*loaders, strict=True), steps)]


def _ids(ranks: tuple[list[PackedBatch], ...]) -> list[str]:
    return sorted(i for batches in ranks for batch in batches for i in batch.ids)


@pytest.mark.parametrize("dp_size", [1, 2, 3])
def test_every_sample_once_an_epoch(config, encoder, dp_size):
    """25 steps of 12 are exactly 6 epochs of 50, with steps that span two epochs."""
    steps = take(config, encoder, 25, dp_size=dp_size)
    assert all(len(ids) == BATCH for ids in steps)
    counts = Counter(i for ids in steps for i in ids)
    assert len(counts) == NUM_SAMPLES and set(counts.values()) == {6}
    assert len({i for ids in steps[:4] for i in ids}) == 4 * BATCH
    assert steps[:4] != steps[4:8]


def test_steps_do_not_depend_on_the_number_of_ranks(config, encoder):
    assert (
        take(config, encoder, 6) == take(config, encoder, 6, dp_size=2) == take(config, encoder, 6, dp_size=4)
    )


@pytest.mark.parametrize(("limit", "steps"), [(0, 5), (26, 3), (999, 5)])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_samples_are_read_once_and_the_state_stays(config, encoder, num_workers, limit, steps) -> None:
    """In the middle of a run, by one rank and by five, of which the last step has a sample for two."""
    threaded = replace(config, num_workers=num_workers)
    draws = islice(iterate_draws(ShardIndex.load(config.shards), config.seed), NUM_SAMPLES)
    order = [draw.ref.id for draw in draws]
    for dp_size in (1, 5):
        loaders = [Loader(threaded, encoder, dp_rank=rank, dp_size=dp_size) for rank in range(dp_size)]
        runs = [iter(loader) for loader in loaders]
        first = _ids(tuple(map(next, runs)))
        for _ in range(2):
            parts = list(zip(*(loader.read_once(limit) for loader in loaders), strict=True))
            found = [name for part in parts for name in _ids(part) if name]  # without blanks
            assert len(parts) == steps and sorted(found) == sorted(order[: limit or NUM_SAMPLES])
        assert loaders[0].state_dict()["position"] == BATCH
        assert sorted(first + _ids(tuple(map(next, runs)))) == sorted(order[: 2 * BATCH])


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("handed_out", [0, 1, 3, 4, 7])
def test_resuming_gives_the_batches_of_an_uninterrupted_run(config, encoder, num_workers, handed_out):
    config = replace(config, num_workers=num_workers)
    through = list(islice(Loader(config, encoder, dp_rank=0, dp_size=2, multiple=4), handed_out + 3))
    stopped = Loader(config, encoder, dp_rank=0, dp_size=2, multiple=4)
    list(islice(stopped, handed_out))
    resumed = Loader(config, encoder, dp_rank=0, dp_size=2, multiple=4)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    for batches, wanted in zip(islice(resumed, 3), through[handed_out:], strict=True):
        _assert_equal(batches, wanted)
    # a fresh iterator of the stopped loader continues, too
    for batches, wanted in zip(islice(stopped, 3), through[handed_out:], strict=True):
        _assert_equal(batches, wanted)


def test_resuming_on_another_number_of_ranks_loses_and_repeats_nothing(config, encoder):
    whole = take(config, encoder, 8)
    loaders = [Loader(config, encoder, dp_rank=rank, dp_size=2) for rank in range(2)]
    before = [_ids(batches) for batches in islice(zip(*loaders, strict=True), 3)]
    assert loaders[0].state_dict() == loaders[1].state_dict()
    resumed = [Loader(config, encoder, dp_rank=rank, dp_size=3) for rank in range(3)]
    for one in resumed:
        one.load_state_dict(loaders[0].state_dict())
    after = [_ids(batches) for batches in islice(zip(*resumed, strict=True), 5)]
    assert before + after == whole


def test_state_of_other_data_or_another_seed_is_refused(config, encoder, tmp_path):
    state = Loader(config, encoder, dp_rank=0, dp_size=1).state_dict()
    with pytest.raises(ValueError, match="seed=42.*resume with the same"):
        Loader(replace(config, seed=7), encoder, dp_rank=0, dp_size=1).load_state_dict(state)
    write_shards(digit_samples("train", NUM_SAMPLES, 1), tmp_path / "other")
    other = replace(config, shards=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="data=.*resume with the same"):
        Loader(other, encoder, dp_rank=0, dp_size=1).load_state_dict(state)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """Three folders, of which the middle one has bad samples, and a mixture: 37 samples an epoch, of 30 + 9 + 20."""
    root = tmp_path_factory.mktemp("sources")
    for number, size in enumerate((30, 9, 20)):
        samples = list(digit_samples("train", size, number, cell=28))
        if number == 1:
            samples[2] = replace(samples[2], images=(b"no image",))
        write_shards(samples, root / f"s{number}", ShardConfig(samples_per_shard=7))
    index = ShardIndex.load(root / "s1")
    _damage(root / "s1" / index[8].shard, index[8].offset)
    places = tuple(str(root / f"s{number}") for number in range(3))
    mix(MixConfig(shards=places, out=str(root / "mix"), counts="s0=14,s1=9,s2=14", seed=3))
    return root


@pytest.mark.parametrize("over_http", [False, True])
def test_a_mixture_resumes_exactly_on_other_ranks_and_skips_bad_samples(encoder, sources, over_http):
    """Every id is counted: 111 draws are three epochs of 37; s1 gives all 9 each time, of which 2 are bad."""
    with serve(sources, fail_every=20) if over_http else nullcontext((str(sources), None)) as (place, _):
        config = LoaderConfig(shards=f"{place}/mix", global_batch_size=3, pack_length=2_000, num_workers=3)
        drawn, skipped, state = Counter[str](), Counter[str](), None
        for dp_size, steps in ((1, 5), (3, 11), (2, 21)):
            loaders = [Loader(config, encoder, dp_rank=rank, dp_size=dp_size) for rank in range(dp_size)]
            for one in loaders:
                one.load_state_dict(state or one.state_dict())
            for batches in islice(zip(*loaders, strict=True), steps):
                drawn.update(i for i in _ids(batches) if i)
            state = json.loads(json.dumps(loaders[0].state_dict()))
            skipped += sum((one.skipped for one in loaders), Counter())
    assert state == {"epoch": 2, "position": 37, "seed": 42, "data": ShardIndex.load(sources / "mix").digest}
    assert skipped == {"image": 3, "checksum": 3} and drawn.total() == 3 * 37 - 6
    sizes = {
        number: [n for i, n in drawn.items() if i.startswith(f"digits/train/{number}/")]
        for number in range(3)
    }
    assert [len(times) for times in sizes.values()] == [30, 7, 20]
    assert set(sizes[0]) == {1, 2} and set(sizes[1]) == {3} and set(sizes[2]) == {2, 3}


def test_state_of_another_mixture_of_the_same_sources_is_refused(encoder, sources):
    config = LoaderConfig(shards=str(sources / "mix"), global_batch_size=2)
    state = Loader(config, encoder, dp_rank=0, dp_size=1).state_dict()
    mix(MixConfig(shards=(str(sources / "s0"),), out=str(sources / "other")))
    other = Loader(replace(config, shards=str(sources / "other")), encoder, dp_rank=0, dp_size=1)
    with pytest.raises(ValueError, match="data=.*resume with the same"):
        other.load_state_dict(state)


def test_threads_work_prefetch_steps_ahead_and_no_further(config, encoder, monkeypatch):
    started: list[str] = []

    class Pool(ThreadPoolExecutor):
        def submit(self, fn, *args):
            started.append(fn.__name__)
            return super().submit(fn, *args)

    monkeypatch.setattr(loader_module, "ThreadPoolExecutor", Pool)
    stream = iter(Loader(replace(config, num_workers=2, prefetch=3), encoder, dp_rank=0, dp_size=1))
    for steps in (4, 5):  # the step that was yielded, and three more
        next(stream)
        assert Counter(started) == {"_encode": steps * BATCH, "_pack": steps}
    stream.close()


def test_an_outage_stops_the_loader_and_skips_nothing(encoder, sources, monkeypatch):
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.001)
    with serve(sources) as (address, server):
        config = LoaderConfig(shards=f"{address}/s0", global_batch_size=3, pack_length=2_000)
        loader = Loader(config, encoder, dp_rank=0, dp_size=1)
        stream = iter(loader)
        next(stream)
        server.fail_every = 1
        with pytest.raises(ConnectionError, match="run the same command again"):
            list(stream)
    assert not loader.skipped and int(loader.state_dict()["position"]) < 30


def test_batches_are_pinned_only_on_request(config, encoder, monkeypatch):
    pinned: list[tuple[int, ...]] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.shape) or tensor)
    next(iter(Loader(replace(config, num_workers=0), encoder, dp_rank=0, dp_size=1)))
    assert not pinned
    (batch, *_) = next(iter(Loader(replace(config, num_workers=0), encoder, dp_rank=0, dp_size=1, pin=True)))
    assert {batch.pixels.shape, batch.input_ids.shape, batch.position_ids.shape} <= set(pinned)


def test_packs_are_full_padded_and_within_the_length(config, encoder):
    batches = next(iter(Loader(config, encoder, dp_rank=0, dp_size=1, multiple=8)))
    assert all(batch.num_tokens <= config.pack_length for batch in batches)
    assert all((batch.cu_seqlens % 8 == 0).all() for batch in batches)
    assert len(batches) < BATCH
    total = sum(batch.num_tokens for batch in batches)
    assert len(batches) <= -(-total // config.pack_length) + 1


def test_ranks_get_even_work(encoder, tmp_path):
    """One sample of twenty is ten times longer; longest-first balancing bounds the largest rank."""
    samples = [_text_sample(n, length=2_000 if n % 20 == 0 else 200) for n in range(80)]
    write_shards(samples, tmp_path / "s")
    config = LoaderConfig(shards=str(tmp_path / "s"), global_batch_size=80, pack_length=10_000)
    loaders = [Loader(config, encoder, dp_rank=rank, dp_size=4) for rank in range(4)]
    tokens = [sum(batch.num_tokens for batch in next(iter(one))) for one in loaders]
    longest = 2_000 + 200  # of a sample with its template
    assert sum(tokens) / 4 <= max(tokens) <= 4 / 3 * max(sum(tokens) / 4, longest)
    assert min(tokens) > 0.9 * max(tokens), "by number of samples a rank would get several long ones"


@pytest.mark.parametrize("listed", [True, False], ids=["sizes listed", "older shards"])
def test_ranks_get_even_work_where_images_cost_more_than_their_tokens(
    encoder, tmp_path, caplog, listed: bool
) -> None:
    """Four of twelve samples are images that cost as much as five texts, though they have as many tokens as one."""
    image = io.BytesIO()
    Image.new("RGB", (28 * 16, 28 * 16)).save(image, "PNG")
    texts = [_text_sample(n, length=1_024) for n in range(12)]
    turns = (Message(role="user", content="<image>"), texts[0].messages[-1])
    shown = [
        replace(sample, id=f"image {n}", images=(image.getvalue(),), messages=turns)
        for n, sample in enumerate(texts[:4])
    ]
    index = write_shards([*texts[4:], *shown], tmp_path / "s")
    if not listed:
        path = rows_path(Path(index.folder) / index.shards[0].file)
        rows = json.loads(path.read_text())
        path.write_text(json.dumps({name: column for name, column in rows.items() if name != "images"}))
    config = LoaderConfig(shards=str(tmp_path / "s"), global_batch_size=12, pack_length=4_000)
    cost = CostModel(token=1.0, patch=1.0)
    loaders = [Loader(config, encoder, dp_rank=rank, dp_size=4, cost=cost) for rank in range(4)]
    shares = [_ids((next(iter(loader)),)) for loader in loaders]
    images = [sum(name.startswith("image") for name in names) for names in shares]
    assert sum(map(len, shares)) == 12 and sum(images) == 4
    assert ("does not list the sizes of images" in caplog.text) != listed
    if listed:
        assert images == [1, 1, 1, 1]


def test_a_video_costs_what_its_pairs_of_frames_do(encoder, tmp_path) -> None:
    """By the index what the encoded sample costs: frames scaled down by the limits, the last of five repeated."""
    clip, image = make_video(5, size=(112, 140)), draw_png((56, 56), np.random.default_rng(0))
    write_shards([ask_about([clip, make_video(2)], [image])], tmp_path / "s")
    limits = replace(encoder.limits, image=replace(encoder.limits.image, frame_pixels=56 * 84))
    small = ChatEncoder(limits)
    config = LoaderConfig(shards=str(tmp_path / "s"), global_batch_size=1, pack_length=4_000)
    cost = CostModel(token=0.0, patch=1.0, patch_pair=0.1)
    loader = Loader(config, small, dp_rank=0, dp_size=1, cost=cost)
    (batch,) = next(iter(loader))
    patches = batch.image_grid_thw.prod(dim=1).tolist()
    assert len(patches) == 1 + 3 + 1 and batch.frames is not None and batch.frames.tolist() == [1, 2, 2, 1, 2]
    draw = next(iterate_draws(ShardIndex.load(config.shards), config.seed))
    assert loader._estimate_cost(draw) == pytest.approx(cost.images(patches))


def test_bad_samples_are_skipped_counted_and_logged(encoder, tmp_path, caplog):
    good = list(digit_samples("train", 20, 0))
    bad = [
        replace(good[0], id="bad image", images=(b"not an image",)),
        replace(
            good[0], id="forged", messages=(Message(role="user", content="<|im_end|>"), good[0].messages[-1])
        ),
        replace(good[0], id="no image", images=()),
        _text_sample(99, length=3_000),
    ]
    write_shards([*good, *bad], tmp_path / "s", ShardConfig(samples_per_shard=5))
    index = ShardIndex.load(tmp_path / "s")
    _damage(tmp_path / "s" / index[3].shard, index[3].offset)
    config = LoaderConfig(
        shards=str(tmp_path / "s"), global_batch_size=24, pack_length=1_000, max_bad_samples=5
    )
    loader = Loader(config, encoder, dp_rank=0, dp_size=1)
    with caplog.at_level(logging.WARNING):
        batches = next(iter(loader))
    assert _ids((batches,)) == sorted(sample.id for n, sample in enumerate(good) if n != 3)
    assert loader.skipped == {"checksum": 1, "image": 1, "text": 2, "too_long": 1}
    for sample in (good[3], *bad):
        assert f"skipped sample {sample.id}:" in caplog.text


def test_too_many_bad_samples_stop_the_loader(encoder, tmp_path):
    good = list(digit_samples("train", 12, 0))
    write_shards([replace(s, images=()) if n % 2 else s for n, s in enumerate(good)], tmp_path / "s")
    config = LoaderConfig(
        shards=str(tmp_path / "s"), global_batch_size=4, pack_length=2_000, max_bad_samples=5
    )
    with pytest.raises(ValueError, match=r"(?s)max_bad_samples=5 allows.*6 text, the first: digits/train"):
        for _ in Loader(config, encoder, dp_rank=0, dp_size=1):
            pass


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "place",
    ["encode.limits.ModelLimits.tokenize", "shards.format._read_members", "encode.images.cut_patches"],
)
def test_programming_errors_are_not_swallowed(config, encoder, monkeypatch, num_workers, place):
    def broken(*args):
        raise TypeError("a bug")

    monkeypatch.setattr(f"data_pipeline.{place}", broken)
    with pytest.raises(TypeError, match="a bug"):
        next(iter(Loader(replace(config, num_workers=num_workers), encoder, dp_rank=0, dp_size=1)))


BREAKS: dict[str, tuple[str, Callable[[Path, SampleRef], None]]] = {
    "wrong byte in an image": ("checksum", lambda path, ref: _damage(path, ref.offset + ref.size - 700)),
    "wrong byte in a header": ("checksum", lambda path, ref: _damage(path, ref.offset)),
    "truncated tar": ("unreadable", lambda path, ref: os.truncate(path, ref.offset + 800)),
    "empty tar": ("unreadable", lambda path, ref: os.truncate(path, 0)),
    "no tar": ("unreadable", lambda path, ref: path.unlink()),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_shards_lose_only_their_broken_samples(encoder, tmp_path, caplog, name):
    """The last sample of the second shard is lost, or all of that shard where the whole file is missing."""
    good = list(digit_samples("train", 12, 0))
    index = write_shards(good, tmp_path / "s", ShardConfig(samples_per_shard=4))
    reason, damage = BREAKS[name]
    damage(tmp_path / "s" / index[7].shard, index[7])
    lost = range(4, 8) if name in ("empty tar", "no tar") else [7]
    config = LoaderConfig(shards=str(tmp_path / "s"), global_batch_size=12, pack_length=4_000)
    loader = Loader(config, encoder, dp_rank=0, dp_size=1)
    assert _ids((next(iter(loader)),)) == sorted(s.id for n, s in enumerate(good) if n not in lost)
    assert loader.skipped == {reason: len(lost)}
    assert all(f"skipped sample {good[n].id}: {reason}" in caplog.text for n in lost)
    with pytest.raises(ValueError, match="max_bad_samples=0"):
        next(iter(Loader(replace(config, max_bad_samples=0), encoder, dp_rank=0, dp_size=1)))


def test_an_empty_shard_among_others_is_skipped(encoder, tmp_path):
    good = list(digit_samples("train", 6, 0))
    parts = [good[:3], [], good[3:]]
    for number, part in enumerate(parts):
        write_part(part, tmp_path / "s", number)
    finish_shards(tmp_path / "s", len(parts))
    index_json = json.loads((tmp_path / "s" / "index.json").read_text())
    index_json["shards"].insert(1, {**index_json["shards"][0], "file": "none.tar", "count": 0})
    (tmp_path / "s" / "index.json").write_text(json.dumps(index_json))
    rows = {"ids": [], "offsets": [], "sizes": [], "crc32": [], "tokens": []}
    (tmp_path / "s" / "none.index.json").write_text(json.dumps(rows))
    config = LoaderConfig(shards=str(tmp_path / "s"), global_batch_size=6, pack_length=4_000)
    for ids in take(config, encoder, 3):
        assert ids == sorted(sample.id for sample in good)


@pytest.mark.parametrize("name", ["../../evil.json", "/etc/evil.json", "a/000000000.json"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE])
def test_members_with_path_tricks_are_skipped(encoder, tmp_path, name, kind):
    """Paths out of the folder, and links, in shards whose index has their right checksums."""
    good = list(digit_samples("train", 2, 0))
    index = write_shards(good, tmp_path / "s")
    path = tmp_path / "s" / index.shards[0].file
    data, member = (
        bytearray(path.read_bytes()),
        tarfile.TarInfo(name if kind == tarfile.REGTYPE else "0.json"),
    )
    member.type, member.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else ""
    member.size = tarfile.TarInfo.frombuf(bytes(data[:512]), "utf-8", "strict").size
    data[:512] = member.tobuf(tarfile.USTAR_FORMAT)
    _rewrite(path, data, index[0])
    loader = Loader(_whole(tmp_path / "s"), encoder, dp_rank=0, dp_size=1)
    assert _ids((next(iter(loader)),)) == [good[1].id] and loader.skipped == {"unreadable": 1}


@pytest.mark.parametrize(
    "was,now,reason",
    [
        (b'"images":["0.png"]', b'"images":["9.png"]', "unreadable"),  # a member that is not there
        (b'"images":["0.png"]', b'"images":"10.png" ', "schema"),
        (b'"answer":"', b'"answEr":"', "schema"),
        (b'{"answer"', b'["answer"', "unreadable"),
        (b'"role":"user"', b'"rolE":"user"', "schema"),
    ],
)
def test_samples_with_wrong_members_are_skipped(encoder, tmp_path, was, now, reason):
    good = list(digit_samples("train", 2, 0))
    index = write_shards(good, tmp_path / "s")
    path, ref = tmp_path / "s" / index.shards[0].file, index[0]
    data = path.read_bytes()
    assert was in data[: ref.size] and len(was) == len(now)
    _rewrite(path, bytearray(data.replace(was, now, 1)), ref)
    loader = Loader(_whole(tmp_path / "s"), encoder, dp_rank=0, dp_size=1)
    assert _ids((next(iter(loader)),)) == [good[1].id] and loader.skipped == {reason: 1}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_gigantic_image_is_skipped_by_its_header(encoder, tmp_path):
    good = list(digit_samples("train", 2, 0))
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    write_shards([good[0], replace(good[1], images=(b"\x89PNG\r\n\x1a\n" + chunk,))], tmp_path / "s")
    loader = Loader(_whole(tmp_path / "s"), encoder, dp_rank=0, dp_size=1)
    assert _ids((next(iter(loader)),)) == [good[0].id] and loader.skipped == {"image": 1}


def test_a_rank_whose_samples_are_all_bad_gets_a_blank_micro_batch(encoder, tmp_path):
    good = list(digit_samples("train", 2, 0))
    write_shards([good[0], replace(good[1], images=())], tmp_path / "s")
    config = LoaderConfig(shards=str(tmp_path / "s"), global_batch_size=2, pack_length=2_000)
    steps = [next(iter(Loader(config, encoder, dp_rank=rank, dp_size=2))) for rank in range(2)]
    learned = sorted(float(sum(batch.loss_mask.sum() for batch in batches)) for batches in steps)
    assert learned[0] == 0 < learned[1] and all(batches for batches in steps)


def test_a_corpus_smaller_than_a_step_repeats(encoder, tmp_path):
    write_shards(digit_samples("train", 3, 0), tmp_path / "s")
    config = LoaderConfig(shards=str(tmp_path / "s"), global_batch_size=7, pack_length=4_000)
    counts = Counter(i for ids in take(config, encoder, 3) for i in ids)
    assert list(counts.values()) == [7, 7, 7]


@pytest.mark.parametrize("ranks", [dict(dp_rank=2, dp_size=2), dict(dp_rank=0, dp_size=13)])
def test_impossible_ranks_are_refused(config, encoder, ranks):
    with pytest.raises(ValueError, match="dp_size=.*global_batch_size=12"):
        Loader(config, encoder, **ranks)


def test_an_empty_folder_of_shards_is_refused(encoder, tmp_path):
    write_shards([], tmp_path / "s")
    with pytest.raises(ValueError, match="no samples"):
        Loader(LoaderConfig(shards=str(tmp_path / "s")), encoder, dp_rank=0, dp_size=1)


def _text_sample(number: int, *, length: int) -> Sample:
    turns = (
        Message(role="user", content="x1" * (length // 2)),
        Message(role="assistant", content="<answer>7</answer>"),
    )
    return Sample(id=f"text/{number}", source="text", messages=turns, answer="7")


def _whole(folder: Path) -> LoaderConfig:
    return LoaderConfig(shards=str(folder), global_batch_size=2, pack_length=4_000)


def _rewrite(path: Path, data: bytearray, ref: SampleRef) -> None:
    """Replaces the bytes of the shard's first sample, and their checksum in the index."""
    path.write_bytes(data)
    rows = json.loads(path.with_suffix(".index.json").read_text())
    rows["crc32"][0] = zlib.crc32(bytes(data[: ref.size]))
    path.with_suffix(".index.json").write_text(json.dumps(rows))


def _damage(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset + 20] ^= 0xFF
    path.write_bytes(data)


def _assert_equal(batches: list[PackedBatch], wanted: list[PackedBatch]) -> None:
    assert [batch.ids for batch in batches] == [batch.ids for batch in wanted]
    for batch, other in zip(batches, wanted, strict=True):
        for name in ("input_ids", "labels", "loss_mask", "position_ids", "cu_seqlens", "pixels"):
            assert torch.equal(getattr(batch, name), getattr(other, name)), name
