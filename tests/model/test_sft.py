"""SFT runs: other layouts continue them, divergence stops them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.encode.config import ImageConfig
from data_pipeline.failures import RankError
from data_pipeline.loader.config import LoaderConfig
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import Message
from megatron_omr.config import (
    CheckpointConfig,
    LogConfig,
    OptimConfig,
    ParallelConfig,
    SFTConfig,
    ValidationConfig,
)
from tests.helpers.bad_samples import thin_image, with_question
from tests.helpers.ranks import run_ranks
from tests.helpers.sft_runs import read_metrics, sft_rank

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def config(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> SFTConfig:
    shards = tmp_path_factory.mktemp("shards") / "train"
    write_shards(digit_samples("train", 40, seed=3, cell=28), shards, ShardConfig(samples_per_shard=16))
    return SFTConfig(
        run="",
        model=str(tiny_hf),
        steps=8,
        precision="fp32",
        loader=LoaderConfig(shards=str(shards), global_batch_size=6, pack_length=1024),
        image=ImageConfig(min_pixels=784),
        optim=OptimConfig(lr=1e-3, warmup_steps=2),
        checkpoint=CheckpointConfig(every=2, keep=2),
        log=LogConfig(tensorboard=False),
    )


@pytest.fixture(scope="module")
def finished(config: SFTConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not interrupted."""
    run = tmp_path_factory.mktemp("sft") / "uninterrupted"
    run_ranks(sft_rank, 2, replace(config, run=str(run)))
    return run


def test_run_learns_and_writes_checkpoints_config_and_hf_folder(finished: Path, config: SFTConfig) -> None:
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    rows = read_metrics(finished)
    assert [row["step"] for row in rows] == list(range(8))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.2
    assert rows[0]["checkpoint_pause"] == 0 and any(row["checkpoint_pause"] > 0 for row in rows)
    assert rows[0]["lr"] == 0 and rows[2]["lr"] == pytest.approx(1e-3)
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["step-00000006", "step-00000008"]
    assert json.loads((finished / "config.json").read_text())["optim"]["lr"] == config.optim.lr
    AutoTokenizer.from_pretrained(finished / "hf")
    Qwen2_5_VLForConditionalGeneration.from_pretrained(finished / "hf")


def test_another_layout_continues_from_the_checkpoint(
    finished: Path, config: SFTConfig, tmp_path: Path
) -> None:
    """Written by two data-parallel ranks, continued by tensor and by pipeline parallelism.

    The weights that the run began with are not read again: they are gone.
    """
    expected = read_metrics(finished)[6:]
    bare = tmp_path / "bare"
    shutil.copytree(config.model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    for name, parallel in (("tp", ParallelConfig(tp=2)), ("pp", ParallelConfig(pp=2, vp=2, layers=(1,) * 4))):
        run = tmp_path / name
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / "step-00000006").symlink_to(finished / "checkpoints" / "step-00000006")
        run_ranks(sft_rank, 2, replace(config, run=str(run), model=str(bare), parallel=parallel))
        seen = read_metrics(run)
        assert [row["step"] for row in seen] == [6, 7]
        for row, wanted in zip(seen, expected, strict=True):
            # layouts sum in another order; 1e-7 and 5e-7 were seen
            assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
            assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4)


def test_validation_changes_no_bit_of_a_run_and_goes_on_when_it_resumes(
    finished: Path, config: SFTConfig, tmp_path: Path
) -> None:
    """Measured before the first step, every three steps and at the end; the resumed run measures as the whole one."""
    shards = tmp_path / "held_out"
    write_shards(digit_samples("validation", 7, seed=5, cell=28), shards, ShardConfig(samples_per_shard=4))
    validated = replace(config, validation=ValidationConfig(shards=str(shards), every=3))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_ranks(sft_rank, 2, replace(validated, run=str(whole)))
    (resumed / "checkpoints").mkdir(parents=True)
    (resumed / "checkpoints" / "step-00000006").symlink_to(whole / "checkpoints" / "step-00000006")
    run_ranks(sft_rank, 2, replace(validated, run=str(resumed)))
    weights = "hf/model.safetensors"
    assert (
        (whole / weights).read_bytes()
        == (resumed / weights).read_bytes()
        == (finished / weights).read_bytes()
    )
    rows, plain, after = read_metrics(whole), read_metrics(finished), read_metrics(resumed)
    assert [(row["loss"], row["grad_norm"]) for row in rows] == [(r["loss"], r["grad_norm"]) for r in plain]
    measured = [(row["step"], row.get("validation_step"), row.get("validation_loss")) for row in rows]
    assert [(step, of) for step, of, _ in measured if of is not None] == [(0, 0), (3, 3), (6, 6), (7, 8)]
    losses = [loss for _, _, loss in measured if loss is not None]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.2
    assert [(row["validation_step"], row["validation_loss"]) for row in after] == [
        (of, loss) for _, of, loss in measured[6:]
    ]
    assert {row["validation_samples"] for row in after} == {7}


def test_incomplete_checkpoint_is_an_error(config: SFTConfig, tmp_path: Path) -> None:
    torn = tmp_path / "checkpoints" / "step-00000002"
    torn.mkdir(parents=True)
    with pytest.raises(RankError, match="step-00000002 has no state.json .*: not a complete checkpoint"):
        run_ranks(sft_rank, 1, replace(config, run=str(tmp_path)))


def test_damaged_newest_checkpoint_is_passed_over(finished: Path, config: SFTConfig, tmp_path: Path) -> None:
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "step-00000008" / "__0_0.distcp").write_bytes(b"")
    run_ranks(sft_rank, 2, replace(config, run=str(tmp_path)))
    assert [row["step"] for row in read_metrics(tmp_path)] == [6, 7]
    weights = "hf/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (finished / weights).read_bytes()


def test_resuming_with_other_data_is_an_error(finished: Path, config: SFTConfig, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    write_shards(digit_samples("train", 20, seed=4, cell=28), other)
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step-00000006").symlink_to(finished / "checkpoints" / "step-00000006")
    loader = replace(config.loader, shards=str(other))
    with pytest.raises(RankError, match="resume with the same shards and seed"):
        run_ranks(sft_rank, 2, replace(config, run=str(run), loader=loader))


def test_divergence_stops_and_names_the_samples(config: SFTConfig, tmp_path: Path) -> None:
    """A learning rate of 1e30 overflows the weights: from the next step on, gradients are NaN."""
    optim = OptimConfig(lr=1e30, warmup_steps=1, schedule="constant", max_bad_steps=2, clip_grad=0)
    with pytest.raises(RankError, match=r"3 steps in a row .*max_bad_steps=2.*digits/train/3/0000"):
        run_ranks(sft_rank, 2, replace(config, run=str(tmp_path), optim=optim))
    rows = read_metrics(tmp_path)
    assert [row["bad_steps"] for row in rows] == [0, 0, 1, 2]


def test_skipped_samples_are_counted_and_a_run_that_learns_nothing_stops(
    config: SFTConfig, tmp_path: Path
) -> None:
    """Counts are of all ranks. A step may be empty, a whole run may not; then there is no hf folder."""
    good = list(digit_samples("train", 7, seed=3, cell=28))
    blank = Message(role="assistant", content=" ")
    bad = {
        "text": replace(good[0], id="blank", messages=(*good[0].messages[:-1], blank)),
        "image": replace(good[0], id="thin", images=(thin_image(),)),
        "too_long": with_question(replace(good[0], id="long", images=()), "9 " * 1_024),
        "text again": replace(
            good[0], id="alone", images=(), messages=(Message(role="assistant", content="7"),)
        ),
        "surrogate": with_question(replace(good[0], id="half", images=()), "\ud800"),
    }
    write_shards([*bad.values(), *good], tmp_path / "shards")
    few = replace(config, loader=replace(config.loader, shards=str(tmp_path / "shards")), steps=2)
    run_ranks(sft_rank, 2, replace(few, run=str(tmp_path / "run")))
    row = read_metrics(tmp_path / "run")[-1]
    counts = {"": 5, "_image": 1, "_text": 3, "_too_long": 1}
    assert {name: row[name] for name in row if "skipped" in name} == {
        f"skipped_samples{reason}": count for reason, count in counts.items()
    }
    short = replace(few, run=str(tmp_path / "short"), loader=replace(few.loader, pack_length=64))
    with pytest.raises(
        RankError, match=r"(?s)nothing was learned in 2 steps.*too_long.*loader.pack_length=64"
    ):
        run_ranks(sft_rank, 2, short)
    assert not (tmp_path / "short" / "hf").exists() and not (tmp_path / "short" / "checkpoints").exists()
