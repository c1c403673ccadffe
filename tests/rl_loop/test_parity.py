"""`omr parity --engine`: a vLLM engine against the trainer on the same folder, and what is said of differences."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.types import SampleRef
from megatron_omr.config import ComputeConfig, ParityConfig
from rl.config import EngineConfig
from rl.mismatch.measure import Compared
from rl.parity.compare import build_report, format_report
from rl.parity.config import EngineParityConfig
from rl.types import TrainRollout


def respond(name: str, *engine: float) -> TrainRollout:
    return TrainRollout(
        ref=SampleRef(shard="a.tar", offset=0, size=1, id=name),
        token_ids=np.arange(60, 60 + len(engine), dtype=np.int32),
        logprobs=np.array(engine, np.float32),
        versions=((0, len(engine)),),
        advantage=0.0,
    )


def compare(rollout: TrainRollout, *trainer: float) -> Compared:
    own = np.array(trainer, np.float32)
    return Compared(rollout=rollout, trainer_logprobs=own, is_fresh=np.ones(len(own), bool))


@pytest.mark.parametrize(("limit", "passed"), [(0.3, True), (0.2, False)])
def test_report_names_the_worst_token_and_judges_the_mean(tiny_hf: Path, limit: float, passed: bool) -> None:
    settings = EngineParityConfig(max_mismatch=limit)
    run = settings.build_run(ParityConfig(model=str(tiny_hf)))
    compared = [
        compare(respond("first", -1.0, -2.0), -1.0, -2.25),
        compare(respond("second", -1.0, -2.0), -1.0, -1.25),
    ]
    report = build_report(run, settings, compared)
    assert (report.worst_sample, report.worst_position) == ("second", 1)
    assert (report.worst_engine, report.worst_trainer) == (-2.0, -1.25)
    assert report.mismatch["mismatch_mean"] == pytest.approx(0.25)
    assert report.passed == passed
    text = format_report(report, run, settings)
    assert "2 responses to 2 prompts, 4 tokens" in text
    assert text.endswith("within the limit" if passed else "ABOVE the limit")
    broken = build_report(run, settings, [*compared, compare(respond("third", -1.0), float("nan"))])
    assert broken.worst_sample == "third" and not broken.passed


def test_head_in_float32_is_of_models_in_bf16() -> None:
    with pytest.raises(ValueError, match="engine.fp32_head=True changes nothing with engine.precision=fp32"):
        replace(EngineConfig(precision="fp32"), fp32_head=True)


@pytest.mark.parametrize("compute", [ComputeConfig(fp32_head=True), ComputeConfig()])
def test_head_in_float32_on_one_side_alone_is_refused(compute: ComputeConfig) -> None:
    parity = ParityConfig(model="", compute=compute)
    same, other = (
        EngineParityConfig(engine=EngineConfig(max_model_len=4_096, fp32_head=head))
        for head in (compute.fp32_head, not compute.fp32_head)
    )
    same.build_run(parity)
    with pytest.raises(ValueError, match="on one side alone, trainer and engine differ more"):
        other.build_run(parity)


@pytest.mark.heavy
@pytest.mark.parametrize("base", ["tiny_hf", "tiny_qwen3"])
def test_command_compares_a_folder_with_an_engine(base: str, request: pytest.FixtureRequest) -> None:
    words = [
        "parity",
        str(request.getfixturevalue(base)),
        "--engine",
        "--json",
        "--vllm.precision",
        "fp32",
        "--vllm.prompts",
        "4",
    ]
    engine = {"precision": "fp32", "max_num_seqs": 8, "cpu_kv_cache_gib": 0.25}
    options = [word for name, value in engine.items() for word in (f"--vllm.engine.{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", *words, *options, "--vllm.max_mismatch", "1e-4"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"] and (report["prompts"], report["responses"]) == (4, 8)
    # float32 gives 1e-6, other weights or images 0.1 and more
    assert 0 < report["mismatch"]["mismatch_mean"] <= report["mismatch"]["mismatch_max"] < 1e-4
