"""Qwen3-VL in every layout against transformers: images, text alone, several depths and places of deepstack."""

from __future__ import annotations

import gc
import weakref
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from megatron_omr.config import ComputeConfig, ParallelConfig, ParityConfig
from tests.conftest import make_tiny
from tests.helpers.ranks import init_ranks, rank_environment, run_ranks
from tests.helpers.trainers import OPTIM, random_micro_batches

pytestmark = pytest.mark.heavy

MODELS: dict[str, dict[str, Any]] = {
    "tied": dict(tied=True, head_dim=48),
    "untied": dict(tied=False, head_dim=32, vision_depth=3, deepstack_visual_indexes=(1,), num_layers=2),
    # a square of positions smaller than the images, and a level for each language layer but one
    "three levels": dict(
        tied=True, head_dim=16, vision_depth=5, deepstack_visual_indexes=(0, 1, 4), num_position_embeddings=9
    ),
    "five layers": dict(tied=True, head_dim=32, num_layers=5),  # for four chunks, two levels on the first
    "no levels": dict(tied=False, head_dim=40, vision_depth=2, deepstack_visual_indexes=()),
}


class Case(NamedTuple):
    model: str
    parallel: ParallelConfig = ParallelConfig()
    compute: ComputeConfig = ComputeConfig(backend="local")


AGAIN = ComputeConfig(backend="local", recompute="full", recompute_vision="full")
ONE = [*(Case(name) for name in MODELS if name != "five layers"), Case("three levels", compute=AGAIN)]
TWO = [
    Case("tied", ParallelConfig(tp=2)),
    Case("tied", ParallelConfig(tp=2, sp=True)),
    Case("three levels", ParallelConfig(tp=2, sp=True), AGAIN),
    Case("tied", ParallelConfig(pp=2)),
    Case("untied", ParallelConfig(pp=2), AGAIN),
    Case("three levels", ParallelConfig(pp=2)),  # which alone splits the layers 3, 1
    Case("tied", ParallelConfig(cp=2)),
    Case("three levels", ParallelConfig(cp=2), AGAIN),
    Case("tied", ParallelConfig(pp=2, vp=1, layers=(3, 1))),
    Case("five layers", ParallelConfig(pp=2, vp=2)),
    Case("five layers", ParallelConfig(pp=2, vp=2), AGAIN),
    Case("untied", ParallelConfig()),  # dp2
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("qwen3")
    return {
        name: str(make_tiny(root / name.replace(" ", "_"), family="qwen3_vl", **sizes))
        for name, sizes in MODELS.items()
    }


@pytest.mark.parametrize(("cases", "processes"), [(ONE, 1), (TWO, 2)], ids=["one", "two"])
def test_all_layouts_equal_transformers(
    folders: dict[str, str], tmp_path: Path, cases: list[Case], processes: int
) -> None:
    reports = run_ranks(_measure, processes, folders, cases, str(tmp_path), timeout=600)[0]
    off = []
    for case, report in zip(cases, reports, strict=True):
        limits = dict.fromkeys(("tower_max", "merger_max", "logits_max", "logprob_max"), 1e-4)
        limits |= {"loss_relative": 1e-5, "grad_norm_relative": 1e-5, "weights_max": 0.0}
        off += [
            f"{case}: {name} {report[name]}" for name, limit in limits.items() if not report[name] <= limit
        ]
    assert not off, "\n".join(off)


def _measure(folders: dict[str, str], cases: list[Case], store: str) -> list[dict[str, Any]]:
    from megatron_omr import parallel
    from megatron_omr.parity import measure

    rank, world_size, _ = rank_environment()
    found = []
    for number, case in enumerate(cases):
        ranks = parallel.initialize(
            case.parallel, rank=rank, world_size=world_size, init_method=f"file://{store}/{number}", seed=0
        )
        config = ParityConfig(model=folders[case.model], parallel=case.parallel, compute=case.compute)
        found.append(asdict(measure(config, ranks)))
        parallel.shutdown()
    return found


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (
            ParallelConfig(pp=2, layers=(2, 2)),
            r"layers=\(2, 2\): .* the first 3 layers take; give it 3 at least",
        ),
        (ParallelConfig(pp=3), r"pp=3 x vp=1 = 3 chunks: the first needs the 3 layers .* at most 2 chunks"),
        (ParallelConfig(pp=2, vp=2), r"pp=2 x vp=2 = 4 chunks: .* at most 2 chunks"),
    ],
)
def test_stage_that_lacks_layers_for_the_features_is_refused(
    folders: dict[str, str], layout: ParallelConfig, message: str
) -> None:
    from megatron_omr.model_config import ModelConfig

    with pytest.raises(ValueError, match=message):
        layout.check_model(ModelConfig.from_hf(folders["three levels"]))


def test_nothing_of_a_micro_batch_is_kept_behind_its_backward_pass(folders: dict[str, str]) -> None:
    """Outputs of layers that recomputation's nodes could hold, in cycles that no collector sees."""
    assert run_ranks(_count_kept, 1, folders["three levels"]) == [[0, 0, 0]]


def _count_kept(folder: str) -> list[int]:
    """Returns how many of the sequences of earlier passes of a tower that recomputes are alive after each pass."""
    from megatron_omr.model.vision.qwen3_vl import TappedSequences
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer

    one = ParallelConfig()
    trainer = build_trainer(folder, one, init_ranks(one), OPTIM, precision="fp32", steps=9, compute=AGAIN)
    seen: list[weakref.ref[TappedSequences]] = []
    create = TappedSequences.create

    def remember(*args: Any) -> TappedSequences:
        sequences = create(*args)
        seen.append(weakref.ref(sequences))
        return sequences

    TappedSequences.create = remember
    kept = []
    for seed in (1, 2, 3):
        train_step(trainer, random_micro_batches(trainer, one, compute=AGAIN, seed=seed))
        gc.collect()
        kept.append(sum(reference() is not None for reference in seen))
    assert len(seen) >= 3
    return kept
