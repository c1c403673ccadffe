"""The table of parameters is what Megatron itself writes into checkpoints, and how it cuts live parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.ranks.launcher import rank_environment
from megatron_omr.config import ParallelConfig
from megatron_omr.convert.mapping import build_rules
from megatron_omr.convert.rule import Rule
from megatron_omr.convert.tables.language import EMBEDDING, OUTPUT_LAYER
from megatron_omr.model_config import ModelConfig
from tests.helpers.ranks import run_ranks

LAYOUTS = (
    ParallelConfig(),
    ParallelConfig(tp=2),
    ParallelConfig(pp=2),
    ParallelConfig(pp=2, layers=(3, 1)),
    ParallelConfig(pp=2, vp=2),
)


@pytest.mark.heavy
def test_table_is_megatrons_own(tiny_hf: Path, tiny_tied_hf: Path, tiny_qwen3: Path) -> None:
    """Keys, shapes and offsets in a checkpoint; names and cut dimensions of live parameters."""
    folders = [str(tiny_hf), str(tiny_tied_hf)]
    # the first chunk of Qwen3-VL has two layers at least
    cases = [(parallel, folder) for parallel in LAYOUTS for folder in folders]
    cases += [(parallel, str(tiny_qwen3)) for parallel in LAYOUTS if parallel.vp == 1]
    ranks = run_ranks(_describe_all, 2, cases)
    for i, (parallel, folder) in enumerate(cases):
        rules = build_rules(ModelConfig.from_hf(folder))
        written = {shard for rank in ranks for shard in rank[i]["shards"]}
        assert written == {
            (rule.key, rule.global_shape, *rule.place(part))
            for rule in rules
            for parts in rule.cut(parallel.tp)
            for part in parts
        }, (parallel, folder)
        live = {name: found for rank in ranks for name, found in rank[i]["live"].items()}
        table = {rule.megatron: _describe_live(rule, parallel.tp) for rule in rules}
        if OUTPUT_LAYER not in table and parallel.pp > 1:
            table[OUTPUT_LAYER] = table[EMBEDDING]  # the last stage's copy
        assert live == table, (parallel, folder)


def _describe_live(rule: Rule, tp: int) -> tuple[int | None, tuple[int, ...]]:
    return rule.dim, tuple(n // tp if dim == rule.dim else n for dim, n in enumerate(rule.shape))


def _describe_all(cases: list[tuple[ParallelConfig, str]]) -> list[dict[str, Any]]:
    from megatron_omr.model.build import build_model
    from megatron_omr.parallel import initialize, shutdown

    rank, world_size, init_method = rank_environment()
    found = []
    for number, (parallel, folder) in enumerate(cases):
        ranks = initialize(
            parallel, rank=rank, world_size=world_size, init_method=f"{init_method}{number}", seed=0
        )
        model = ModelConfig.from_hf(folder)
        found.append(_describe(build_model(model, parallel, ranks, precision="fp32")))
        shutdown()
    return found


def _describe(chunks: list[Any]) -> dict[str, Any]:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    from megatron_omr.convert.parameters import collect_parameters, partition_dim

    shards = set()
    for chunk in chunks:
        for value in chunk.sharded_state_dict().values():
            parts = value.build() if isinstance(value, ShardedTensorFactory) else [value]
            for part in parts if isinstance(parts, list) else parts.values():
                if isinstance(part, ShardedTensor):  # extra states of layers are none
                    sizes = (*[1] * part.prepend_axis_num, *part.local_shape)
                    shards.add((part.key, part.global_shape, part.global_offset, sizes))
    live = {name: (partition_dim(p), tuple(p.shape)) for name, p in collect_parameters(chunks).items()}
    return {"shards": shards, "live": live}
