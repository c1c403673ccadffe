"""`omr parity`: our model against transformers', or the trainer against a vLLM engine."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from launch.arguments import FLAT
from launch.ranks.launcher import count_ranks, launched_by_cluster, rank_environment, run_local
from launch.submit.checks import check_ranks_layout, check_served
from megatron_omr.config import ParityConfig
from megatron_omr.model_config import ModelConfig
from rl.parity.config import EngineParityConfig

if TYPE_CHECKING:
    from rl.parity.ask import Asked


def parity(
    config: Annotated[ParityConfig, FLAT],
    *,
    engine: bool = False,
    vllm: EngineParityConfig,
) -> None:
    """Compare our model with transformers': omr parity HF_DIR. Exits with 1 above the thresholds.

    With --engine: the trainer's logprobs with those of a vLLM engine, on responses that it samples. HF_DIR may be a
    run's folder with an hf/ in it.

    Args:
        engine: Compare with a vLLM engine; the options of --vllm say how, max_logit_diff and max_grad_norm_diff are not
            used.
        vllm: What is compared with --engine.

    Examples:
      omr parity runs/demo/model
      omr parity runs/demo/model --parallel.tp 2 --parallel.sp --json
      omr parity runs/demo/rl --engine --vllm.shards runs/demo/shards/test
      omr parity models/Qwen2.5-VL-7B-Instruct --engine --compute.fp32_head --vllm.engine.fp32_head
    """
    config = replace(config, model=_find_hf(config.model))
    processes = config.processes or config.parallel.model_parallel_size
    check_ranks_layout(config.model, config.parallel)
    config.parallel.dp(count_ranks(processes))
    if not engine:
        run_local(_parity, processes, config)
        return
    if launched_by_cluster():
        raise ValueError("omr parity --engine starts its own processes; start it without torchrun or srun")
    model = ModelConfig.from_hf(config.model)
    check_served(model, config.model, vllm.engine.tp)
    length = min(vllm.engine.max_model_len, model.max_position_embeddings)  # vLLM refuses more
    vllm = replace(vllm, engine=replace(vllm.engine, max_model_len=length))
    from rl.parity.ask import ask

    with TemporaryDirectory() as folder:
        asked = ask(vllm.build_run(config), vllm, folder)
        run_local(_engine_parity, processes, asked, vllm, config.json)


def _find_hf(folder: str) -> str:
    """Returns the hf/ in the folder of a run; any other folder as it is."""
    path = Path(folder)
    return str(path / "hf") if (path / "hf" / "config.json").is_file() else folder


def _engine_parity(asked: Asked, settings: EngineParityConfig, json: bool) -> None:
    from rl.parity.compare import compare

    rank, world_size, init_method = rank_environment()
    if not compare(asked, settings, json=json, rank=rank, world_size=world_size, init_method=init_method):
        sys.exit(1)


def _parity(config: ParityConfig) -> None:
    from megatron_omr.parity import run_parity

    rank, world_size, init_method = rank_environment()
    if not run_parity(config, rank=rank, world_size=world_size, init_method=init_method):
        sys.exit(1)
