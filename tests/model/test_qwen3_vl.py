"""Qwen3-VL in every layout against transformers: images, text alone, several depths and places of deepstack."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from megatron_omr.config import ComputeConfig, ParallelConfig, ParityConfig
from tests.conftest import make_tiny
from tests.helpers.ranks import rank_environment, run_ranks

pytestmark = pytest.mark.heavy

MODELS: dict[str, dict[str, Any]] = {
    "tied": dict(tied=True, head_dim=48),
    "untied": dict(tied=False, head_dim=32, vision_depth=3, deepstack_visual_indexes=(1,), num_layers=2),
    # a square of positions smaller than the images, and a level for each language layer but one
    "three levels": dict(
        tied=True, head_dim=16, vision_depth=5, deepstack_visual_indexes=(0, 1, 4), num_position_embeddings=9
    ),
    "no levels": dict(tied=False, head_dim=40, vision_depth=2, deepstack_visual_indexes=()),
}


class Case(NamedTuple):
    model: str
    parallel: ParallelConfig = ParallelConfig()
    compute: ComputeConfig = ComputeConfig(backend="local")


AGAIN = ComputeConfig(backend="local", recompute="full", recompute_vision="full")
ONE = [*map(Case, MODELS), Case("three levels", compute=AGAIN)]
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
