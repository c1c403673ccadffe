"""The held-out loss is transformers' on the same samples, in every layout, and measuring it changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from data_pipeline.encode.config import ImageConfig
from data_pipeline.loader.config import LoaderConfig
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from megatron_omr.config import ParallelConfig, SFTConfig, ValidationConfig
from tests.helpers.ranks import init_ranks, run_ranks
from tests.helpers.trainers import OPTIM

pytestmark = pytest.mark.heavy

NUM_SAMPLES, BATCH = 13, 5  # the last part has three samples, two ranks have an odd number of packs
LAYOUTS = {
    "dp2": ParallelConfig(),
    "tp2 sp": ParallelConfig(tp=2, sp=True),
    "pp2": ParallelConfig(pp=2),
    "pp2 vp2": ParallelConfig(pp=2, vp=2, layers=(1,) * 4),
    "cp2": ParallelConfig(cp=2),
}


class Measured(NamedTuple):
    values: dict[str, float]
    is_last_stage: bool
    num_packs: tuple[int, ...]  # of each part
    is_unchanged: bool  # weights, gradients and generators


@pytest.fixture(scope="module")
def config(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> SFTConfig:
    shards = tmp_path_factory.mktemp("validation") / "held_out"
    samples = digit_samples("validation", NUM_SAMPLES, seed=3, cell=28)
    write_shards(samples, shards, ShardConfig(samples_per_shard=4))
    return SFTConfig(
        run="",
        model=str(tiny_hf),
        precision="fp32",
        loader=LoaderConfig(shards="not read", global_batch_size=BATCH, pack_length=600),
        image=ImageConfig(min_pixels=784),
        validation=ValidationConfig(shards=str(shards)),
    )


def test_loss_is_transformers_in_every_layout_and_measuring_changes_nothing(config: SFTConfig) -> None:
    wanted = oracle_loss(config)
    for name, ranks in zip(LAYOUTS, zip(*run_ranks(_measure, 2, config), strict=True), strict=True):
        last = [rank for rank in ranks if rank.is_last_stage]
        assert all(rank.is_unchanged for rank in ranks), name
        assert {rank.values["validation_samples"] for rank in ranks} == {NUM_SAMPLES}
        assert all(rank.values["validation_step"] == 100 for rank in ranks)
        assert all(rank.values["validation_loss"] == pytest.approx(wanted, rel=1e-5) for rank in last), name
        if name == "dp2":
            first, second = (rank.num_packs for rank in ranks)
            assert first != second and {1, 3} <= {*first, *second}
        if name == "pp2 vp2":  # has to be filled with blanks
            assert any(number % 2 for number in ranks[0].num_packs)


def oracle_loss(config: SFTConfig) -> float:
    """Returns transformers' loss of all learned tokens of the samples, computed one by one."""
    from data_pipeline.encode.chat import ChatEncoder
    from data_pipeline.shards.format import read_sample
    from data_pipeline.shards.index import ShardIndex
    from megatron_omr.oracle import Oracle

    encoder = ChatEncoder.from_hf(config.model, config.image)
    index = ShardIndex.load(config.validation.shards)
    oracle = Oracle(config.model)
    oracle.run([[encoder.encode(read_sample(index.folder, index[i]), "all") for i in range(NUM_SAMPLES)]])
    return oracle.loss


def _measure(config: SFTConfig) -> list[Measured]:
    return [
        _measure_in(replace(config, parallel=layout), f" {number}")
        for number, layout in enumerate(LAYOUTS.values())
    ]


def _measure_in(config: SFTConfig, world: str) -> Measured:
    import torch

    from megatron_omr.parallel import shutdown
    from megatron_omr.train.trainer import build_trainer
    from megatron_omr.validation.held_out import Validation

    ranks = init_ranks(config.parallel, world=world)
    trainer = build_trainer(config.model, config.parallel, ranks, OPTIM, precision="fp32", steps=8)
    state = [p for chunk in trainer.chunks for p in chunk.parameters()]
    state += [buffer.grad_data for chunk in trainer.chunks for buffer in chunk.buffers]
    for tensor in state[-1:]:
        tensor.fill_(0.5)  # gradients that are there are not added to
    before = [tensor.detach().clone() for tensor in [*state, torch.get_rng_state()]]
    parts: list[int] = []

    class Heart:
        def enter(self, phase: str, *, is_limited: bool) -> None:
            assert is_limited and phase == f"validation after 100 steps, part {len(parts)}"
            parts.append(0)

    validation = Validation(config, trainer, Heart())  # pyright: ignore[reportArgumentType]
    read = validation._loader.read_once
    counted: list[int] = []

    def count(limit: int):
        for batches in read(limit):
            counted.append(len(batches))
            yield batches

    validation._loader.read_once = count
    assert not validation.measure(99)
    values = validation.measure(100)
    after = [*state, torch.get_rng_state()]
    same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    shutdown()
    return Measured(values, ranks.is_last_stage, tuple(counted), same)
