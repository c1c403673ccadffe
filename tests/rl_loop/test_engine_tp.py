"""A tensor-parallel engine against transformers: vLLM's spawned processes load our plugin and receive the weights."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from threading import Thread

import pytest

from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from rl.rollout.engine import Engine
from tests.helpers.weights import LocalTrainers
from tests.rl_loop.test_engine import SAME, Oracle, engine_config, greedy, questions

pytestmark = [pytest.mark.heavy, pytest.mark.slow]
PLUGIN = "omr = rl.weight_sync.receiver:register"


def test_every_process_of_a_tensor_parallel_engine_gets_the_weights(
    tiny_hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plugin(tmp_path / "installed")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    write_shards(digit_samples("test", 4, 0), tmp_path / "shards")
    config = engine_config(tiny_hf, tmp_path / "shards", temperature=1.0)
    settings = replace(config.engine, tp=2, weight_transfer="collective", transfer_timeout=30)
    oracle, prompts = Oracle(tiny_hf, tmp_path / "shards"), questions(tiny_hf, tmp_path / "shards")
    engine = Engine(replace(config, engine=settings))
    with closing(engine):
        assert oracle.gap(prompts, greedy(engine, prompts)) < SAME
        trainers = LocalTrainers(oracle.change(1), settings)
        sending = Thread(target=lambda: (trainers.join_engines(1, 3), trainers.send_weights(1)))
        sending.start()
        engine.join_transfer(trainers.open_sender() | {"generation": 1, "num_ranks": 3, "first_rank": 1})
        engine.update_weights(1)
        sending.join()
        assert oracle.gap(prompts, greedy(engine, prompts)) < SAME


def install_plugin(folder: Path) -> None:
    """Declares the entry point as setup.py does: an environment set up before that lacks it."""
    from rl.weight_sync import receiver  # imports vLLM, which no other test needs while tests are collected

    assert f'"vllm.general_plugins": ["{PLUGIN}"]' in Path("setup.py").read_text()
    name, value = PLUGIN.split(" = ")
    assert EntryPoint(name, value, "vllm.general_plugins").load() is receiver.register
    info = folder / "omr_plugin-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: omr-plugin\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{PLUGIN}\n")
