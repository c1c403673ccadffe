"""The whole RL loop with real Ray, vLLM and Megatron workers: it trains, resumes, and replaces dead engines."""

from __future__ import annotations

import json
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.failures import RankError
from data_pipeline.served.config import JudgeConfig
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from megatron_omr.train.metrics import read_json_lines
from megatron_omr.train.stop import RESUMABLE
from rl.algorithms.config import AlgorithmConfig, KLConfig, SolutionConfig
from rl.config import RLConfig, RolloutConfig
from tests.helpers.adding_teacher import AddingTeacher
from tests.helpers.bad_samples import bad_questions
from tests.helpers.processes import find_processes, wait_for_process, wait_until
from tests.helpers.rl_rows import SAME, responses, rows

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]  # against hangs; a test takes 2 minutes


def test_weights_train_and_engines_follow(finished: Path, rl_config: RLConfig) -> None:
    seen = rows(finished)
    assert [row["step"] for row in seen] == [0, 1, 2, 3]
    assert [row["policy_version"] for row in seen] == [0, 1, 2, 3]
    # in float32 the mean was 2e-7 and the largest 2e-6; other weights or a wrong prompt give 0.1 and more
    assert all(row["mismatch_mean"] < 1e-5 and row["mismatch_max"] < 1e-4 for row in seen)
    assert all(0 <= row["reward_accuracy"] <= 1 and row["grad_norm"] > 0 for row in seen)
    assert all(row["mismatch"] < 1e-5 for row in seen), "of responses that share a prompt"
    for row in rows(finished, "rollouts"):
        for scored in row["responses"]:
            shorter = 1 - scored["response_len"] / rl_config.sampling.max_tokens
            own = pytest.approx(scored["accuracy"] * shorter)
            assert scored["parts"] == {**{n: scored[n] for n in ("accuracy", "format")}, "shortness": own}
            assert scored["reward"] == pytest.approx(0.9 * scored["accuracy"] + 0.1 * scored["format"])
    assert all(0 <= row["reward_shortness"] <= row["reward_accuracy"] for row in seen)
    assert len(list((finished / "rewards").glob("shortness-*.py"))) == 1
    before = Path(rl_config.model, "model.safetensors").read_bytes()
    assert (finished / "hf" / "model.safetensors").read_bytes() != before
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    assert {row["step"] for row in rows(finished, "rollouts")} == {0, 1, 2, 3}


def test_steps_are_filled_with_groups_that_differ_in_accuracy(finished: Path) -> None:
    """A policy that guesses a digit is right once in ten: a third of the groups has a signal."""
    seen = rows(finished)
    assert all(row["groups_kept"] == 3 for row in seen) and any(row["sampling_tries"] > 1 for row in seen)
    assert any(row["groups_carried"] for row in seen[:2]), "for the test of what a resumed run does with them"
    # of groups that were carried over, the old logprobs are those of older weights
    stale = [False, *(row["groups_carried"] > 0 for row in seen[:-1])]
    assert [row["policy_kl"] != 0 for row in seen] == stale
    assert all(row["clip_fraction"] == 0 for row, is_stale in zip(seen, stale, strict=True) if not is_stale)


def test_held_out_accuracy_is_measured_with_the_weights_of_its_step(finished: Path) -> None:
    measured = [row for row in rows(finished) if "held_out_accuracy" in row]
    assert [(row["step"], row["held_out_version"]) for row in measured] == [(0, 0), (2, 2), (3, 4)]
    assert all(row["held_out_low"] <= row["held_out_accuracy"] <= row["held_out_high"] for row in measured)
    assert all(0 < row["held_out_accuracy"] < 1 and row["held_out_len"] > 5 for row in measured)


def kill_engine_when_generating(run: Path, after_rows: int) -> None:
    """Kills the engine's process when it begins to generate for step `after_rows`."""
    wait_until(lambda: len(rows(run)) >= after_rows)
    for engine in wait_for_process("ray::EngineServer"):
        engine.kill()


def stop_all(run: Path, others: set[psutil.Process]) -> None:
    """Sends SIGUSR1 to this process and all that the run started, as a batch scheduler does, after the first step."""
    wait_until(lambda: (run / "metrics.jsonl").exists() and rows(run))
    for process in [*(set(psutil.Process().children(recursive=True)) - others), psutil.Process()]:
        process.send_signal(signal.SIGUSR1)


def test_stop_resume_and_a_killed_engine_change_nothing(
    finished: Path, sampling_config: RLConfig, tmp_path: Path
) -> None:
    """Stopped ahead of a time limit, and an engine killed while it generates: the same responses and gradients.

    The second part has trainer and engine take turns on the same devices.
    """
    from rl.loop import run_rl

    run, others = tmp_path / "disturbed", set(psutil.Process().children(recursive=True))
    threading.Thread(target=stop_all, args=(run, others), daemon=True).start()
    with pytest.raises(SystemExit, match=str(RESUMABLE)):
        run_rl(replace(sampling_config, run=str(run)))
    steps = len(rows(run))
    assert steps in (1, 2) and list((run / "checkpoints").iterdir()) == [
        run / "checkpoints" / f"step-{steps:08d}"
    ]
    killer = threading.Thread(target=kill_engine_when_generating, args=(run, 3), daemon=True)
    killer.start()
    run_rl(replace(sampling_config, run=str(run), rollout=RolloutConfig(placement="colocated")))
    killer.join(timeout=5)
    seen, wanted = rows(run), rows(finished)
    assert seen[-1]["engine_restarts"] == 1
    assert [[row[k] for k in SAME] for row in seen] == [[row[k] for k in SAME] for row in wanted]
    same = ("groups_carried", "sampling_tries", "held_out_accuracy", "held_out_low", "held_out_version")
    assert [[row.get(k) for k in same] for row in seen] == [[row.get(k) for k in same] for row in wanted]
    for row, undisturbed in zip(seen, wanted, strict=True):
        if "grad_norm" in undisturbed:
            assert row["grad_norm"] == pytest.approx(undisturbed["grad_norm"], rel=1e-4)
    weights = [load_file(folder / "hf" / "model.safetensors") for folder in (run, finished)]
    for name in weights[0].keys() | weights[1].keys():
        # equal on one machine; the bound is a hundredth of what one step of lr 1e-4 moves a weight
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=0, atol=1e-6, msg=name)
    assert responses(run) == responses(finished)


def test_killed_trainer_ends_the_run_with_its_name(rl_config: RLConfig, tmp_path: Path) -> None:
    """After a checkpoint, whose writer must not hold the sockets that tell the others.

    Its groups were generated one step ahead: they are of the weights before, and engines go on while a trainer dies.
    """
    from rl.loop import run_rl

    run, token = tmp_path / "run", AlgorithmConfig(drop_equal_groups=False, correction="token")
    killed_at: list[float] = []

    def kill() -> None:
        wait_until(lambda: (run / "checkpoints" / "step-00000002").exists())
        victim, *_ = wait_for_process("ray::TrainerProcess")
        victim.kill()
        killed_at.append(time.monotonic())

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(RankError, match=r"trainer rank \d .*SIGKILL"):
        run_rl(
            replace(
                rl_config,
                run=str(run),
                steps=1000,
                rollout=RolloutConfig(mode="one_step_off"),
                algorithm=token,
            )
        )
    assert time.monotonic() - killed_at[0] < 60  # seen: 6 s; before, the others waited for ever
    first, *later = rows(run)
    assert first["mismatch_mean"] < 1e-5 and (first["staleness_max"], first["stale_tokens"]) == (0, 0)
    assert later and all((row["staleness_mean"], row["stale_tokens"]) == (1, 1) for row in later)
    assert all(0.5 < row["correction_ratio_p50"] < 2 and row["seconds_wait"] >= 0 for row in later)
    assert not find_processes("ray::TrainerProcess") and not find_processes("ray::Engine")


def test_grpo_with_several_minibatches(rl_config: RLConfig, tmp_path: Path) -> None:
    """GRPO with off-policy mini-batches needs no other change; weights come by broadcasts here, after each step.

    Each group has its solution, and a penalty for leaving the first weights.
    """
    from rl.loop import run_rl

    algorithm = AlgorithmConfig(
        name="grpo",
        clip_low=1e-4,
        clip_high=1e-4,
        num_minibatches=2,
        kl=KLConfig(coefficient=0.01),
        solution=SolutionConfig(enabled=True),
    )
    engine = replace(rl_config.engine, weight_transfer="collective")
    run_rl(
        replace(
            rl_config, run=str(tmp_path), steps=2, prompts_per_step=24, algorithm=algorithm, engine=engine
        )
    )
    row, after = rows(tmp_path)
    assert after["mismatch_mean"] < 1e-5  # between engine and trainer, with the weights of the first step
    assert row["grad_norm"] > 0
    assert row["clip_fraction"] > 0  # the second step's ratios have left the tiny interval
    assert row["mismatch"] < 1e-5
    # a policy that guesses is nearly always wrong: its groups learn the solution
    assert row["solutions_used"] == row["groups_kept"] > 12 and row["solutions_missing"] == 0
    assert 0.5 < row["solution_reward"] <= 0.9 and row["solution_advantage"] > 0.5
    assert after["reference_kl"] > row["reference_kl"] > 0
    assert row["sequence_ratio_min"] <= row["sequence_ratio_p50"] <= row["sequence_ratio_max"]


def test_run_without_signal_checkpoints_resumes_and_says_why(
    rl_config: RLConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Prompts that are too hard, for a judge, too: no optimizer step before the checkpoints."""
    from rl.loop import run_rl

    samples = digit_samples("train", 12, seed=4, cell=28, kinds=("largest",), num_digits=(2, 2))
    write_shards([replace(sample, answer="-1") for sample in samples], tmp_path / "hard")
    with AddingTeacher() as judge:
        judge.respond = lambda number, total: "Analysis: x\nJudgment: Different"
        for steps in (1, 2):
            asked = replace(rl_config.reward, use_judge=True, judge=JudgeConfig(base_url=judge.url))
            hard = replace(
                rl_config, shards=str(tmp_path / "hard"), steps=steps, prompts_per_step=2, trainers=1
            )
            run_rl(replace(hard, run=str(tmp_path), reward=asked))
    assert [row["groups_kept"] for row in rows(tmp_path)] == [0, 0]
    assert len(judge.questions) == len(set(judge.questions)) == len(rows(tmp_path, "judge")) > 0
    assert sum(row["judge_asked"] for row in rows(tmp_path)) == len(judge.questions)
    assert all(row["judge_failures"] == row["judge_right"] == 0 for row in rows(tmp_path))
    said = [message for message in caplog.messages if "nothing was learned" in message]
    assert [message.partition(":")[0] for message in said] == ["step 1", "step 2"]
    assert all("2 prompts had equal accuracy (0 all right, 2 all wrong)" in message for message in said)
    weights, base = (load_file(f / "model.safetensors") for f in (tmp_path / "hf", Path(rl_config.model)))
    assert all(torch.equal(weights[name], base[name]) for name in base)


def test_asynchronous_run_uses_every_prompt_as_often_and_skips_bad_ones_also_after_a_stop(
    rl_config: RLConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Six steps of three prompts ask the six good ones three times; the bad ones, each for another cause, are named.

    Engines get weights under half-done responses, and agree with the trainer on the tokens of its weights.
    """
    from rl.loop import run_rl

    good = list(digit_samples("train", 6, seed=4, cell=28, kinds=("largest",), num_digits=(2, 2)))
    bad = bad_questions(good[0])
    write_shards([*(sample for sample, _ in bad.values()), *good], tmp_path / "shards")
    run, others = tmp_path / "run", set(psutil.Process().children(recursive=True))
    rl_config = replace(
        rl_config, run=str(run), shards=str(tmp_path / "shards"), prompts_per_step=3, trainers=1
    )
    algorithm = AlgorithmConfig(drop_equal_groups=False, correction="sequence")
    rl_config = replace(rl_config, steps=6, algorithm=algorithm, rollout=RolloutConfig(mode="async"))
    threading.Thread(target=stop_all, args=(run, others), daemon=True).start()
    with pytest.raises(SystemExit, match=str(RESUMABLE)):
        run_rl(rl_config)
    stopped_after = len(rows(run))
    run_rl(rl_config)
    seen, trained = rows(run), [[group["id"] for group in row["groups"]] for row in rows(run, "trained")]
    assert stopped_after < len(seen) == 6
    epochs = [sorted(trained[step] + trained[step + 1]) for step in (0, 2, 4)]
    assert epochs == [sorted(sample.id for sample in good)] * 3
    assert all(row.get("mismatch_mean", 0) < 1e-5 and row.get("mismatch_max", 0) < 1e-4 for row in seen)
    assert "mismatch_mean" in seen[0] and any(row["grad_norm"] > 0 for row in seen)
    assert all(0 <= row["staleness_max"] <= 1 for row in seen) and seen[0]["staleness_max"] == 0
    for row in seen:
        reasons = [row[name] for name in row if name.startswith("skipped_prompts_")]
        assert row["skipped_prompts"] == sum(reasons)
    named = {name for name, (_, words) in bad.items() if f"skipped prompt bad/{name}: {words}" in caplog.text}
    assert named == bad.keys()


def test_disagreement_stops_before_anything_is_trained(rl_config: RLConfig, tmp_path: Path) -> None:
    from ray.exceptions import RayError

    from rl.loop import run_rl

    with pytest.raises(RuntimeError, match="engine and trainer disagree.*Nothing was trained") as stopped:
        run_rl(replace(rl_config, run=str(tmp_path), max_mismatch=1e-12))
    assert not isinstance(stopped.value, RayError)
    assert not (tmp_path / "checkpoints").exists() and rows(tmp_path) == []
    assert str(stopped.value).endswith("the same weights are sent again: inputs or numerics do")
    folder = tmp_path / "mismatch" / "step-00000000"
    samples = read_json_lines(folder / "samples.jsonl")
    assert [sample["largest"] for sample in samples] == sorted((s["largest"] for s in samples), reverse=True)
    assert all("".join(s["tokens"]) and len(s["engine_logprobs"]) == len(s["token_ids"]) for s in samples)
    tensors = json.loads((folder / "tensors.json").read_text())
    assert all(e["changed"] == {} and e["unchanged"] > 50 for e in tensors["engines"].values())
