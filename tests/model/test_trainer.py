"""build_trainer: what its parts are, that building is repeatable, and clear errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_omr.config import ParallelConfig
from megatron_omr.dtypes import Precision
from tests.helpers.ranks import init_ranks, run_ranks
from tests.helpers.trainers import OPTIM, exported, random_micro_batches, tiny_trainer

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_chunk_is_wrapped_and_gradients_are_fp32(tiny_hf: Path, precision: Precision) -> None:
    seen = run_ranks(_parts, 1, str(tiny_hf), ParallelConfig(), precision)[0]
    assert seen == {
        "chunks": ["DistributedDataParallel"],
        "bare": ["VisionLanguageModel"],
        "parameters": {"fp32": ["torch.float32"], "bf16": ["torch.bfloat16"]}[precision],
        "gradients": ["torch.float32"],
        "has_vision": [True],
        "lr": 1e-3,
    }


def test_only_the_first_chunk_of_the_first_stage_has_the_vision_tower(tiny_hf: Path) -> None:
    for vp in (1, 2):
        stages = run_ranks(_parts, 2, str(tiny_hf), ParallelConfig(pp=2, vp=vp), "fp32")
        nothing = [False] * vp
        assert [stage["has_vision"] for stage in stages] == [[True, *nothing[1:]], nothing]
        assert [stage["bare"] for stage in stages] == [["VisionLanguageModel"] * vp] * 2


def _parts(folder: str, parallel: ParallelConfig, precision: Precision) -> dict[str, Any]:
    from megatron_omr.train.trainer import unwrap_chunks

    trainer = tiny_trainer(folder, parallel, precision=precision)
    bare = unwrap_chunks(trainer)
    return {
        "chunks": [type(chunk).__name__ for chunk in trainer.chunks],
        "bare": [type(chunk).__name__ for chunk in bare],
        "parameters": sorted({str(p.dtype) for chunk in bare for p in chunk.parameters()}),
        "gradients": sorted({str(p.main_grad.dtype) for chunk in bare for p in chunk.parameters()}),
        "has_vision": [chunk.vision_model is not None for chunk in bare],
        "lr": trainer.optimizer.param_groups[0]["lr"],
    }


@pytest.mark.parametrize("parallel", [ParallelConfig(), ParallelConfig(tp=2)], ids=["dp2", "tp2"])
def test_second_trainer_repeats_the_first_bit_for_bit(tiny_hf: Path, parallel: ParallelConfig) -> None:
    """Both start from the folder's weights with an empty optimizer, whatever the first one did meanwhile."""
    assert all(run_ranks(_two_trainers, 2, str(tiny_hf), parallel))


def _two_trainers(folder: str, parallel: ParallelConfig) -> bool:
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer

    def steps(trainer) -> list[float]:
        results = [train_step(trainer, random_micro_batches(trainer, parallel, seed=s)) for s in (1, 2)]
        return [value for r in results for value in (r.loss, r.grad_norm, r.lr)]

    first = tiny_trainer(folder, parallel)
    second = build_trainer(folder, parallel, first.ranks, OPTIM, precision="fp32", steps=8)
    before = exported(second)
    seen = steps(first)
    untouched = all(tensor.equal(before[name]) for name, tensor in exported(second).items())
    assert steps(second) == seen
    after = exported(first)
    return untouched and all(tensor.equal(after[name]) for name, tensor in exported(second).items())


def test_layout_that_cannot_hold_the_model_is_an_error(tiny_hf: Path) -> None:
    message = run_ranks(_build_error, 1, str(tiny_hf), ParallelConfig(tp=4))[0]
    assert "parallel.tp=4 must divide num_key_value_heads=2" in message and "tp = 1, 2" in message


def test_weights_of_another_model_are_an_error(tiny_hf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deeper"
    shutil.copytree(tiny_hf, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    message = run_ranks(_build_error, 1, str(folder), ParallelConfig())[0]
    assert f"{folder} does not hold the model of its config.json: it lacks: model.layers.4." in message


def test_folder_without_a_config_is_an_error(tmp_path: Path) -> None:
    message = run_ranks(_build_error, 1, str(tmp_path), ParallelConfig())[0]
    assert f"{tmp_path}/config.json does not exist" in message


def _build_error(folder: str, parallel: ParallelConfig) -> str:
    from megatron_omr.train.trainer import build_trainer

    with pytest.raises(ValueError) as error:
        build_trainer(folder, parallel, init_ranks(ParallelConfig()), OPTIM, precision="fp32", steps=8)
    return str(error.value)
