"""`omr`: one thin command per stage. Its options are the fields of the stage's config, explained there.

Heavy packages are imported inside the command that needs them, so help and mistakes answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CalledProcessError
from typing import TypeVar

from data_pipeline.verify.config import VerifyConfig
from launch.arguments import Command, leading_word, overview, parse, pick
from launch.config import DemoConfig
from launch.data_commands import data
from launch.launcher import RankError, launched_by_cluster, rank_environment, run_local
from launch.recipes.eval import EVAL_RECIPES
from launch.recipes.rl import RL_RECIPES
from launch.recipes.sft import SFT_RECIPES
from megatron_omr.config import ConvertConfig, ModelConfig, ParallelConfig, ParityConfig, SFTConfig
from rl.config import EvalConfig, RLConfig

T = TypeVar("T")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code (2 for a mistake in the command line or a config)."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        print(overview(COMMANDS))
        return 0 if args else 2
    try:
        pick("command", COMMANDS, args[0])(args[1:])
    except ValueError as mistake:
        print(f"omr: error: {mistake}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who read our output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, RankError, CalledProcessError) as failure:
        print(f"omr: error: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("omr: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


# ---- the commands: each docstring is the command's help, its first line stands in `omr --help` ----


def doctor(args: list[str]) -> None:
    """Say what this machine can do, and how to get what is missing.

    Examples:
      omr doctor
      omr doctor --json
    """
    from launch.doctor import run_doctor

    def options(*, json: bool = False) -> bool:
        return json

    sys.exit(run_doctor(as_json=parse(doctor, "doctor", options, args)))


def demo(args: list[str]) -> None:
    """The whole recipe on this machine in minutes: data, SFT, GSPO, evaluation, report.

    Examples:
      omr demo
      omr demo --seed 7 --out runs/demo7
    """
    config = parse(demo, "demo", DemoConfig, args)
    from launch.demo import run_demo

    run_demo(config)


def sft(args: list[str]) -> None:
    """Fine-tune on shards with Megatron-Core: omr sft RECIPE. The same command resumes a run.

    Examples:
      omr sft demo
      omr sft demo --optim.lr 5e-4 --run runs/slower
      omr sft qwen2_5_vl_7b_sft --parallel.tp 4 --parallel.cp 2 --log.wandb my-project
    """
    config = _recipe(sft, "sft", SFTConfig, SFT_RECIPES, args)
    _check_layout(config.model, config.parallel, config.processes)
    run_local(_sft, config.processes, config)


def rl(args: list[str]) -> None:
    """Reinforcement learning with Ray, vLLM and Megatron-Core: omr rl RECIPE. The same command resumes a run.

    Examples:
      omr rl demo
      omr rl demo --algorithm.name grpo --run runs/grpo
      omr rl qwen2_5_vl_7b_gspo --trainers 4 --engine.num_engines 4
    """
    config = _recipe(rl, "rl", RLConfig, RL_RECIPES, args)
    _check_layout(config.model, config.parallel, config.trainers)
    from rl.loop import run_rl

    run_rl(config)


def evaluate(args: list[str]) -> None:
    """Score a Hugging Face folder on held-out questions through vLLM: omr eval RECIPE.

    Examples:
      omr eval demo
      omr eval demo --model runs/demo/sft/hf --out runs/demo/eval/sft
      omr eval qwen2_5_vl_7b_greedy --limit 500
    """
    config = _recipe(evaluate, "eval", EvalConfig, EVAL_RECIPES, args)
    ModelConfig.from_hf(config.model)
    from rl.evaluate import evaluate as score

    score(config)


def verify(args: list[str]) -> None:
    """Score a file of answers against their references: omr verify IN.jsonl OUT.jsonl.

    Examples:
      omr verify answers.jsonl scored.jsonl
      omr verify --mode released answers.jsonl scored.jsonl
      omr verify answers.jsonl scored.jsonl --workers 8 --deadline 2
      omr verify answers.jsonl scored.jsonl --judge http://127.0.0.1:8001/v1
    """
    config = parse(verify, "verify", VerifyConfig, args)
    from data_pipeline.verify.score_file import verify_file

    summary = verify_file(config)
    print(
        f"{summary.right} of {summary.answers} right, format {summary.format:.3f}, bad lines {summary.bad_lines}"
    )
    if config.judge:
        print(f"the judge gave no clear word on {summary.not_judged}, which count as wrong")
    print("decided by " + ", ".join(f"{rule} {count}" for rule, count in summary.decided_by.items()))


def convert(args: list[str]) -> None:
    """Hugging Face folder to a checkpoint in any layout, and back: omr convert DIRECTION FROM OUT.

    Examples:
      omr convert to-megatron models/Qwen2.5-VL-3B-Instruct checkpoints/3b --parallel.tp 2
      omr convert to-hf checkpoints/3b models/mine
    """
    directions = {"to-megatron": _to_megatron, "to-hf": _to_hf}
    name, rest = leading_word(convert, "direction", directions, args)
    config = parse(convert, f"convert {name}", ConvertConfig, rest)
    if Path(config.out).exists():
        raise ValueError(f"out={config.out} already exists; choose another folder, or delete it first")
    processes = config.parallel.model_parallel_size
    if name == "to-megatron":
        _check_layout(config.source, config.parallel, processes)
    run_local(directions[name], processes, config)


def parity(args: list[str]) -> None:
    """Compare our model with transformers': omr parity HF_DIR. Exits with 1 above the thresholds.

    Examples:
      omr parity runs/demo/model
      omr parity runs/demo/model --parallel.tp 2 --parallel.sp --json
    """
    config = parse(parity, "parity", ParityConfig, args)
    processes = config.processes or config.parallel.model_parallel_size
    _check_layout(config.model, config.parallel, processes)
    run_local(_parity, processes, config)


def report(args: list[str]) -> None:
    """Write a run's report, one self-contained HTML page: omr report RUN.

    Examples:
      omr report runs/demo
    """

    def options(run: Path) -> Path:
        """Write a report.

        Args:
            run: Folder of a run.
        """
        return run

    run = parse(report, "report", options, args)
    if not run.is_dir():
        raise ValueError(f"{run} is not a folder; give the folder of a run, such as runs/demo")
    from launch.report.run_page import write_report

    print(write_report(run))


COMMANDS: dict[str, Command] = {
    "doctor": doctor,
    "demo": demo,
    "data": data,
    "sft": sft,
    "rl": rl,
    "eval": evaluate,
    "verify": verify,
    "convert": convert,
    "parity": parity,
    "report": report,
}


def _recipe(
    command: Command, name: str, config: type[T], recipes: dict[str, Callable[..., T]], args: list[str]
) -> T:
    """The recipe's config, with the command line's overrides."""
    recipe, rest = leading_word(command, "recipe", recipes, args)
    return parse(command, f"{name} {recipe}", config, rest, default=recipes[recipe]())


def _check_layout(model: str, parallel: ParallelConfig, processes: int) -> None:
    """Find a layout that cannot work now, and not in every rank a minute later."""
    parallel.check_model(ModelConfig.from_hf(model))
    parallel.dp(rank_environment()[1] if launched_by_cluster() else processes)


# ---- what runs in each rank ----


def _sft(config: SFTConfig) -> None:
    from megatron_omr.sft import run_sft

    rank, world_size, init_method = rank_environment()
    run_sft(config, rank=rank, world_size=world_size, init_method=init_method)


def _to_megatron(config: ConvertConfig) -> None:
    """Cut a Hugging Face folder into a distributed checkpoint."""
    from megatron_omr.convert_folders import to_megatron

    rank, world_size, init_method = rank_environment()
    to_megatron(config, rank=rank, world_size=world_size, init_method=init_method)


def _to_hf(config: ConvertConfig) -> None:
    """Gather a distributed checkpoint into a Hugging Face folder that transformers and vLLM load."""
    from megatron_omr.convert_folders import to_hf

    rank, world_size, init_method = rank_environment()
    to_hf(config, rank=rank, world_size=world_size, init_method=init_method)


def _parity(config: ParityConfig) -> None:
    from megatron_omr.parity import run_parity

    rank, world_size, init_method = rank_environment()
    if not run_parity(config, rank=rank, world_size=world_size, init_method=init_method):
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
