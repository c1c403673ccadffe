"""A vision tower whose MLP does not divide by tp: padded with zeros that change nothing, in no layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from megatron_omr.config import ParallelConfig, ParityConfig
from tests.conftest import make_tiny
from tests.helpers.ranks import init_ranks, run_ranks
from tests.helpers.trainers import OPTIM, exported, random_micro_batches

pytestmark = pytest.mark.heavy

WIDTH = 93  # of the tower's MLP, 128 with padding


@pytest.fixture(scope="module")
def odd_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("odd"), tied=False, vision_intermediate_size=WIDTH)


def test_padding_changes_nothing_in_training_export_and_checkpoints(odd_hf: Path, tmp_path: Path) -> None:
    one, two = ParallelConfig(), ParallelConfig(tp=2, sp=True)
    (first,) = run_ranks(_train, 1, str(odd_hf), one, str(tmp_path / "tp1"), "")
    halves = run_ranks(_train, 2, str(odd_hf), two, str(tmp_path / "tp2"), first["checkpoint"])
    (back,) = run_ranks(_train, 1, str(odd_hf), one, str(tmp_path / "back"), halves[0]["checkpoint"])
    for seen in (first, *halves, back):
        assert seen["parity"] < 1e-4
        assert seen["export_is_exact"]
        for name in ("before", "after", "resumed"):
            assert seen[name] == pytest.approx(first[name], rel=1e-5)
    padding = 4 * (128 - WIDTH)  # of 4 layers, after weights have moved
    assert first["zeros"] == [sum(zeros) for zeros in zip(*(half["zeros"] for half in halves), strict=True)]
    assert first["zeros"] == [2 * padding, 2 * padding, padding]


def _train(folder: str, parallel: ParallelConfig, out: str, start: str) -> dict[str, Any]:
    """Compares with transformers; makes two steps, saves, a third; and again the third, after the checkpoint `start`.

    "zeros": rows of fc1's weights, elements of its biases, columns of fc2's weights that are 0.
    """
    from megatron_omr.checkpoint.load import load_checkpoint
    from megatron_omr.checkpoint.save import save_checkpoint
    from megatron_omr.convert.names import modern_name
    from megatron_omr.parity import measure
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer, unwrap_chunks

    ranks, optim = init_ranks(parallel), replace(OPTIM, weight_decay=0.1)
    report = measure(ParityConfig(model=folder, parallel=parallel), ranks)
    trainer = build_trainer(folder, parallel, ranks, optim, precision="fp32", steps=8)
    source = {modern_name(name): t for name, t in load_file(f"{folder}/model.safetensors").items()}
    theirs = exported(trainer)

    def step(seed: int) -> list[float]:
        result = train_step(trainer, random_micro_batches(trainer, parallel, seed=seed))
        return [result.loss, result.grad_norm]

    before = step(1) + step(2)
    checkpoint = save_checkpoint(trainer, Path(out), step=2, state={}, template=folder, keep=1)
    after = step(3)
    if start:
        load_checkpoint(trainer, Path(start))
    mlps = [layer.mlp for layer in unwrap_chunks(trainer)[0].vision_model.decoder.layers]
    zeros = [(m.linear_fc1.weight == 0).all(1).sum() for m in mlps]
    zeros += [(m.linear_fc1.bias == 0).sum() for m in mlps] + [
        (m.linear_fc2.weight == 0).all(0).sum() for m in mlps
    ]
    return {
        "parity": max(report.tower_max, report.merger_max, report.logits_max, report.logprob_max),
        "export_is_exact": theirs.keys() == source.keys() and all(theirs[n].equal(source[n]) for n in source),
        "before": before,
        "after": after,
        "resumed": step(3) if start else after,
        "checkpoint": str(checkpoint),
        "zeros": [int(sum(zeros[i : i + 4])) for i in (0, 4, 8)],
    }
