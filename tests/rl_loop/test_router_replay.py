"""A run of RL that replays the engine's experts, and one whose model has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.verify.config import CheckerConfig
from megatron_omr.config import CheckpointConfig
from rl.algorithms.config import AlgorithmConfig
from rl.config import EngineConfig, RLConfig, SamplingConfig
from rl.rewards.config import RewardConfig
from rl.routing.record import add_routing
from tests.helpers.groups import make_rollout
from tests.helpers.rl_rows import rows
from tests.helpers.rl_training import rl_config

REWARD = '''
def parity(given):
    """Responses of random weights are hardly ever right, but half of them have an odd number of letters."""
    return float(len(given.response) % 2)
'''


@pytest.mark.parametrize("recorded", [None, np.zeros((6, 4, 2), np.uint8)], ids=["none", "too few"])
def test_tokens_without_a_record_stop_the_run(recorded: np.ndarray | None) -> None:
    """vLLM may return none: the trainer would route by itself, and nothing would say so."""
    whole = np.zeros((7, 4, 2), np.uint8)
    (kept,) = add_routing([make_rollout(3)], [whole], prompt_tokens=5)
    assert kept.routed_experts is whole
    with pytest.raises(RuntimeError, match=r"experts of [06] tokens, wanted 7"):
        add_routing([make_rollout(3)], [recorded], prompt_tokens=5)


def test_model_without_experts_is_refused(tiny_hf: Path, tmp_path: Path) -> None:
    from rl.loop import run_rl

    config = replace(
        rl_config(tiny_hf, tmp_path, trainers=1), algorithm=AlgorithmConfig(router_replay="replay")
    )
    with pytest.raises(ValueError, match="router_replay=replay is for models with experts, and .* has none"):
        run_rl(config)


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_replays_experts_with_shared_prompts(tiny_moe_hf: Path, tmp_path: Path) -> None:
    """In float32 the trainer would choose the same: a record of other tokens would be far from it."""
    from rl.loop import run_rl

    (tmp_path / "reward.py").write_text(REWARD)
    write_shards(digit_samples("train", 6, seed=5, cell=28), tmp_path / "shards")
    config: RLConfig = replace(
        rl_config(tiny_moe_hf, tmp_path, trainers=1),
        steps=2,
        prompts_per_step=4,
        share_prompts=True,
        engine=EngineConfig(precision="fp32", max_model_len=512, max_num_seqs=16, cpu_kv_cache_gib=0.25),
        sampling=SamplingConfig(n=4, max_tokens=16),
        reward=RewardConfig(
            weights=((f"{tmp_path}/reward.py:parity", 1.0),),
            correct_by="parity",
            checker=CheckerConfig(workers=1),
        ),
        algorithm=AlgorithmConfig(router_replay="replay", drop_equal_groups=False),
        checkpoint=CheckpointConfig(every=2),
    )
    run_rl(config)
    found = rows(Path(config.run))
    assert len(found) == 2
    for row in found:
        assert row["routing_difference"] < 5e-3 and row["mismatch_mean"] < 1e-5 and row["mismatch"] < 1e-5
        assert row["grad_norm"] > 0
