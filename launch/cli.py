"""`omr`: one thin command per stage. Its options are the fields of the stage's config, which documents them.

Heavy packages are imported inside the command that needs them, so that help and error messages come at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from subprocess import CalledProcessError
from typing import Annotated

from data_pipeline.failures import RankError
from data_pipeline.imports import collection_paused
from data_pipeline.scratch import scratch_folder
from data_pipeline.verify.config import VerifyConfig
from launch.arguments import FLAT, Command, CommandGroup, recipes, run
from launch.config import DemoConfig
from launch.data_commands import DATA
from launch.evaluation.command import EVAL
from launch.launch_command import build_launch
from launch.parity.command import parity
from launch.plan_command import PLAN
from launch.ranks.identity import Step, find_step
from launch.ranks.launcher import count_ranks, rank_environment, run_local, sigterm_exits
from launch.recipes.rl import RL_RECIPES
from launch.recipes.sft import SFT_RECIPES
from launch.studies.command import STUDY
from launch.submit.checks import check_ranks_layout, check_served
from launch.submit.size import Stage
from launch.watch.commands import compare, report, watch
from megatron_omr.config import SFTConfig
from megatron_omr.convert_folders.config import ToHfConfig, ToMegatronConfig
from megatron_omr.model_config import ModelConfig
from megatron_omr.tiny import TinyRunConfig
from megatron_omr.train.stop import RESUMABLE, STOP_SIGNAL, hold_stop, stop_exits
from rl.config import RLConfig


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code (2 for a mistake in the command line or a config)."""
    try:
        with sigterm_exits(), stop_exits(), scratch_folder():
            run(OMR, sys.argv[1:] if argv is None else argv)
    except BrokenPipeError as error:  # the reader of our output, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_code(error)
    except (ValueError, OSError, RankError, CalledProcessError) as error:
        if exit_code(error) != RESUMABLE:  # else the command that this one started has said why
            print(f"omr: error: {error}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt as error:
        print(
            "omr: interrupted; the same command continues from the last checkpoint, if there is one",
            file=sys.stderr,
        )
        return exit_code(error)
    return 0


def exit_code(error: BaseException | None) -> int:
    """Returns the exit code of a command that raised `error`."""
    match error:
        case None:
            return 0
        case SystemExit():
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        case ValueError():
            return 2
        case BrokenPipeError():
            return 141
        case KeyboardInterrupt():
            return 130
        case CalledProcessError(returncode=code) if code == RESUMABLE:
            return RESUMABLE
    return 1


# ---- the commands: each docstring is the command's help, its first line stands in `omr --help` ----


def doctor(*, json: bool = False) -> None:
    """Show what this machine can do, and how to get what is missing.

    Args:
        json: Print the findings as JSON.

    Examples:
      omr doctor
      omr doctor --json
    """
    from launch.doctor import run_doctor

    sys.exit(run_doctor(as_json=json))


def demo(config: Annotated[DemoConfig, FLAT]) -> None:
    """The whole recipe on this machine in minutes: data, SFT, RL, evaluation, report.

    Examples:
      omr demo
      omr demo --algorithm dapo
      omr demo --base tiny_qwen3_vl --out runs/demo_qwen3
      omr demo --video --out runs/demo_clips
      omr demo --seed 7 --out runs/demo7
    """
    from launch.demo import run_demo

    run_demo(config)


def tiny(config: Annotated[TinyRunConfig, FLAT]) -> None:
    """Make an untrained small model for shards, with a tokenizer of their texts: omr tiny SHARDS OUT.

    OUT is a complete Hugging Face folder in fp32, small enough to learn on a laptop. Every size can
    be set; a wider vision tower sees more detail and costs more time.

    Examples:
      omr tiny shards/mine models/mine
      omr tiny shards/mine models/qwen3 --family qwen3_vl
      omr tiny shards/mine models/wider --vision_hidden_size 128 --vision_intermediate_size 256
      omr sft demo --model models/mine --loader.shards shards/mine --run runs/mine
    """
    from megatron_omr.tiny import create_tiny_model_for

    parameters, tokens = create_tiny_model_for(config)
    print(f"{parameters:,} parameters, a vocabulary of {tokens:,} tokens, in {config.out}")
    print(f"train it: omr sft demo --model {config.out} --loader.shards {config.shards} --run runs/mine")


def sft(config: Annotated[SFTConfig, FLAT]) -> None:
    """Fine-tune on shards with Megatron-Core: omr sft RECIPE. The same command resumes a run.

    Examples:
      omr sft demo
      omr sft demo --optim.lr 5e-4 --run runs/slower
      omr sft qwen2_5_vl_7b_sft --parallel.tp 4 --parallel.cp 2 --log.wandb my-project
    """
    check_ranks_layout(config.model, config.parallel, config.compute)
    config.check_processes(count_ranks(config.processes))
    with hold_stop():
        run_local(_sft, config.processes, config, forward=[STOP_SIGNAL])


def rl(config: Annotated[RLConfig, FLAT]) -> None:
    """Reinforcement learning with Ray, vLLM and Megatron-Core: omr rl RECIPE. The same command resumes a run.

    Examples:
      omr rl demo
      omr rl demo --algorithm.name grpo --run runs/grpo
      omr rl openmmreasoner_gspo --trainers 4 --engine.num_engines 4
    """
    step = find_step("omr rl RECIPE")
    check_ranks_layout(config.model, config.parallel, config.compute)
    config.parallel.dp(config.trainers, name="trainers")
    check_served(ModelConfig.from_hf(config.model), config.model, config.engine.tp)
    if step is None:
        with collection_paused():
            from rl.loop import run_rl

        run_rl(config)
        return
    with hold_stop():  # also Ray's processes inherit that the signal is blocked
        _rl_on_nodes(config, step)


def _rl_on_nodes(config: RLConfig, step: Step) -> None:
    """Runs the loop on the first node of a Slurm step, for which the others run Ray."""
    from launch.ranks.ray_nodes import lead_nodes, serve_nodes

    run = Path(config.run).absolute()
    if step.node > 0:
        sys.exit(serve_nodes(step, run))
    with lead_nodes(step, run, exit_code):
        from rl.loop import run_rl

        run_rl(config, nodes=len(step.hosts))


def verify(config: Annotated[VerifyConfig, FLAT]) -> None:
    """Score a file of responses against their reference answers: omr verify IN.jsonl OUT.jsonl.

    Examples:
      omr verify responses.jsonl scored.jsonl
      omr verify responses.jsonl scored.jsonl --checker.mode released
      omr verify responses.jsonl scored.jsonl --checker.workers 8 --checker.deadline 2
      omr verify responses.jsonl scored.jsonl --judge.base_url http://127.0.0.1:8001/v1
    """
    from data_pipeline.verify.score_file import score_file

    summary = score_file(config)
    print(
        f"{summary.right} of {summary.responses} right, format {summary.format:.3f}, bad lines {summary.bad_lines}"
    )
    if config.judge.base_url:
        print(f"the judge gave no clear verdict on {summary.not_judged}, which count as wrong")
    print("decided by " + ", ".join(f"{rule} {count}" for rule, count in summary.decided_by.most_common()))


def to_megatron(config: Annotated[ToMegatronConfig, FLAT]) -> None:
    """Write a Hugging Face folder as a distributed checkpoint, cut for a layout; any other loads it, too.

    One process without ranks; it holds a few blocks of weights in memory, whatever the model's size.

    Examples:
      omr convert to-megatron models/Qwen2.5-VL-3B-Instruct checkpoints/3b
      omr convert to-megatron models/Qwen2.5-VL-7B-Instruct checkpoints/7b --parallel.tp 4 --parallel.pp 2
    """
    _check_free(config.out)
    config.parallel.check_model(ModelConfig.from_hf(config.source))
    from megatron_omr.convert_folders.to_megatron import to_megatron as convert

    print(convert(config))


def to_hf(config: Annotated[ToHfConfig, FLAT]) -> None:
    """Write the weights of a distributed checkpoint, of any layout, as a folder that transformers and vLLM load.

    One process without ranks; it holds a few blocks of weights in memory, whatever the model's size. Sums are verified.

    Examples:
      omr convert to-hf runs/demo/sft/checkpoints/step-00000100 models/mine
      omr convert to-hf checkpoints/from-megatron models/mine --template models/Qwen2.5-VL-7B-Instruct
    """
    _check_free(config.out)
    from megatron_omr.convert_folders.to_hf import to_hf as convert

    print(convert(config))


CONVERT = CommandGroup(
    doc="""Hugging Face folder to a checkpoint in any layout, and back: omr convert DIRECTION FROM OUT.

    Examples:
      omr convert to-megatron models/Qwen2.5-VL-3B-Instruct checkpoints/3b --parallel.tp 2
      omr convert to-hf checkpoints/3b models/mine
    """,
    commands={"to-megatron": to_megatron, "to-hf": to_hf},
    kind="direction",
)
SUBMITTED: dict[Stage, Command] = {
    "sft": recipes(sft, SFT_RECIPES),
    "rl": recipes(rl, RL_RECIPES),
    "data": DATA,
    "eval": EVAL,
    "convert": CONVERT,
}
OMR = CommandGroup(
    doc="""Post-training of multimodal reasoners: SFT and RL of Qwen2.5-VL on Megatron-Core, Ray and vLLM.

    `omr COMMAND --help` explains a command, `omr sft RECIPE --help` every field of a recipe.

    Examples:
      omr doctor
      omr demo
      omr sft demo --optim.lr 5e-4
    """,
    commands={
        "doctor": doctor,
        "demo": demo,
        "study": STUDY,
        "tiny": tiny,
        "plan": PLAN,
        **SUBMITTED,
        "launch": build_launch(SUBMITTED),
        "verify": verify,
        "parity": parity,
        "report": report,
        "compare": compare,
        "watch": watch,
    },
)


def _check_free(out: str) -> None:
    if os.path.lexists(out):  # a link to nothing, too
        raise ValueError(f"out={out} already exists; choose another folder, or delete it first")


# ---- the functions that run in each rank ----


def _sft(config: SFTConfig) -> None:
    from megatron_omr.sft import run_sft

    rank, world_size, init_method = rank_environment()
    run_sft(config, rank=rank, world_size=world_size, init_method=init_method)


if __name__ == "__main__":
    sys.exit(main())
