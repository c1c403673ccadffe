"""The loader hands out every sample once an epoch, resumes exactly, and counts what it skips."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from data_pipeline.chat import ChatEncoder
from data_pipeline.config import ImageConfig, LoaderConfig
from data_pipeline.digits import digit_samples
from data_pipeline.loader import Loader
from data_pipeline.shard_index import ShardIndex
from data_pipeline.shard_writer import write_shards
from data_pipeline.types import Message, PackedBatch, Sample

NUM_SAMPLES, BATCH = 50, 12  # four steps and a carry of two


@pytest.fixture(scope="module")
def encoder(tiny_hf) -> ChatEncoder:
    return ChatEncoder.from_hf(tiny_hf, ImageConfig())


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> LoaderConfig:
    folder = tmp_path_factory.mktemp("loader") / "shards"
    write_shards(digit_samples("train", NUM_SAMPLES, 0), folder, samples_per_shard=8)
    return LoaderConfig(shards=str(folder), global_batch_size=BATCH, pack_length=1_500)


def take(config: LoaderConfig, encoder: ChatEncoder, steps: int, *, dp_size: int = 1) -> list[list[str]]:
    """Ids of each of the first steps, all ranks together."""
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


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("handed_out", [0, 1, 3, 4, 7])
def test_resuming_gives_the_batches_of_the_run_that_went_on(config, encoder, num_workers, handed_out):
    config = replace(config, num_workers=num_workers)
    through = list(islice(Loader(config, encoder, dp_rank=0, dp_size=2, multiple=4), handed_out + 3))
    stopped = Loader(config, encoder, dp_rank=0, dp_size=2, multiple=4)
    list(islice(stopped, handed_out))
    resumed = Loader(config, encoder, dp_rank=0, dp_size=2, multiple=4)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    for batches, wanted in zip(islice(resumed, 3), through[handed_out:], strict=True):
        _assert_equal(batches, wanted)
    for batches, wanted in zip(
        islice(stopped, 3), through[handed_out:], strict=True
    ):  # a fresh iterator goes on, too
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


def test_packs_are_filled_padded_and_within_the_length(config, encoder):
    batches = next(iter(Loader(config, encoder, dp_rank=0, dp_size=1, multiple=8)))
    assert all(batch.num_tokens <= config.pack_length for batch in batches)
    assert all((batch.cu_seqlens % 8 == 0).all() for batch in batches)
    assert len(batches) < BATCH
    total = sum(batch.num_tokens for batch in batches)
    assert len(batches) <= -(-total // config.pack_length) + 1


def test_ranks_get_even_work(encoder, tmp_path):
    """One sample of twenty is ten times longer: no rank gets all the long ones."""
    samples = [_text_sample(n, length=2_000 if n % 20 == 0 else 200) for n in range(80)]
    write_shards(samples, tmp_path / "s")
    config = LoaderConfig(shards=str(tmp_path / "s"), global_batch_size=80, pack_length=10_000)
    loaders = [Loader(config, encoder, dp_rank=rank, dp_size=4) for rank in range(4)]
    tokens = [sum(batch.num_tokens for batch in next(iter(one))) for one in loaders]
    assert max(tokens) < 1.1 * min(tokens)


def test_bad_samples_are_skipped_counted_and_named(encoder, tmp_path, caplog):
    good = list(digit_samples("train", 20, 0))
    bad = [
        replace(good[0], id="bad image", images=(b"not an image",)),
        replace(
            good[0], id="forged", messages=(Message(role="user", content="<|im_end|>"), good[0].messages[-1])
        ),
        replace(good[0], id="no image", images=()),
        _text_sample(99, length=3_000),
    ]
    write_shards([*good, *bad], tmp_path / "s", samples_per_shard=5)
    index = ShardIndex.load(tmp_path / "s")
    _damage(tmp_path / "s" / index.refs[3].shard, index.refs[3].offset)
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
    with pytest.raises(ValueError, match=r"max_bad_samples=5 .*'text': 6.*digits/train"):
        for _ in Loader(config, encoder, dp_rank=0, dp_size=1):
            pass


@pytest.mark.parametrize("num_workers", [0, 2])
def test_programming_errors_are_not_swallowed(config, encoder, monkeypatch, num_workers):
    monkeypatch.setattr(encoder, "encode", lambda sample: [][0])
    with pytest.raises(IndexError):
        next(iter(Loader(replace(config, num_workers=num_workers), encoder, dp_rank=0, dp_size=1)))


def test_a_rank_whose_samples_are_all_bad_gets_a_blank_micro_batch(encoder, tmp_path):
    good = list(digit_samples("train", 2, 0))
    write_shards([good[0], replace(good[1], images=())], tmp_path / "s")
    config = LoaderConfig(shards=str(tmp_path / "s"), global_batch_size=2, pack_length=2_000)
    steps = [next(iter(Loader(config, encoder, dp_rank=rank, dp_size=2))) for rank in range(2)]
    learned = sorted(float(sum(batch.loss_mask.sum() for batch in batches)) for batches in steps)
    assert learned[0] == 0 < learned[1] and all(batches for batches in steps)


def test_a_corpus_smaller_than_a_step_goes_round(encoder, tmp_path):
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


def _damage(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset + 20] ^= 0xFF
    path.write_bytes(data)


def _assert_equal(batches: list[PackedBatch], wanted: list[PackedBatch]) -> None:
    assert [batch.ids for batch in batches] == [batch.ids for batch in wanted]
    for batch, other in zip(batches, wanted, strict=True):
        for name in ("input_ids", "labels", "loss_mask", "position_ids", "cu_seqlens", "pixels"):
            assert torch.equal(getattr(batch, name), getattr(other, name)), name
