"""`omr launch`: submits a command of `omr` to a cluster, and looks after its job."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from data_pipeline.files import to_json
from launch.arguments import FLAT, Command, CommandGroup, WordsCommand, run
from launch.submission import Request, dry_run, prepare, run_checks, start
from launch.submit.checks import Check
from launch.submit.follow import find_exit_code, follow, print_log, read_last_lines
from launch.submit.jobs import JobState, cancel_job, find_state
from launch.submit.lookup import find_cluster
from launch.submit.records import JobRecord, find_folder, read_record
from launch.submit.size import Stage
from megatron_omr.config import SFTConfig
from rl.evaluation.config import BenchmarksConfig


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """The options that `omr launch` adds to those of a command."""

    on: str = ""
    """Cluster: the name of a file in ./clusters, ~/.config/megatron-omr or the package, or a path to one."""
    nodes: int = 0
    """Nodes; 0 leaves them to the recipe. With SFT they set `processes`: a rank for each GPU."""
    dry_run: bool = False
    """Print what would be submitted, and check it; nothing is submitted."""
    detach: bool = False
    """End once the job is submitted, instead of showing its log until it ends."""


def build_launch(commands: Mapping[Stage, Command]) -> CommandGroup:
    """Returns `omr launch`, which submits these commands of `omr`."""
    submitting: dict[str, Command] = {
        stage: WordsCommand(
            doc=f"Submit `omr {stage}`: the same words and options, and --on CLUSTER.",
            call=partial(_launch, stage, command),
        )
        for stage, command in commands.items()
    }
    return CommandGroup(
        doc="""Run a command on a cluster: omr launch sft|rl|data|eval|convert ... --on CLUSTER.

    The words and options are those of the command itself; --on names a cluster file, --dry-run shows and checks what
    would be submitted, --nodes asks for more of them, --detach does not wait. See docs/launch.md.

    Examples:
      omr launch sft qwen2_5_vl_7b_sft --on mine --nodes 4 --dry-run
      omr launch rl openmmreasoner_gspo --on mine
      omr launch data curate openmmreasoner_rl --on mine --detach
      omr launch eval openmmreasoner --model runs/openmmreasoner_gspo/hf --on mine
      omr launch logs runs/qwen2_5_vl_7b_sft --follow
    """,
        commands={**submitting, "status": status, "logs": logs, "cancel": cancel},
    )


def status(run: Positional[Path], *, json: bool = False) -> None:
    """Say what became of the job of a run: omr launch status RUN. Exits with 1 if it failed, with its last lines.

    Args:
        run: Folder of the run, or the output of a command.
        json: Print values.

    Examples:
      omr launch status runs/qwen2_5_vl_7b_sft
    """
    record, state = _look(run)
    code = find_exit_code(state, record) if state.ended else 0
    if json:
        values = {"job": record.job, "state": state.name, "ended": state.ended, "exit_code": code}
        print(to_json(values | {"detail": state.detail, "record": asdict(record)}, indent=2))
    else:
        print(
            f"job {record.job}: {_describe(state, code)}\nomr {' '.join(record.command)}\nlog: {record.log}"
        )
        if code:
            print(read_last_lines(record))
    sys.exit(1 if code else 0)


def logs(run: Positional[Path], *, lines: int = 0, follow: bool = False) -> None:
    """Print the log of the job of a run: omr launch logs RUN.

    Args:
        run: Folder of the run, or the output of a command.
        lines: Last lines only; 0 prints all.
        follow: Go on until the job ends, and exit with its code.

    Examples:
      omr launch logs runs/qwen2_5_vl_7b_sft --lines 50
      omr launch logs runs/qwen2_5_vl_7b_sft --follow
    """
    if follow:
        folder = find_folder(str(run))
        _watch(folder, read_record(folder), str(run))
    print_log(read_record(find_folder(str(run))), lines=lines)


def cancel(run: Positional[Path]) -> None:
    """End the job of a run: omr launch cancel RUN. Its checkpoints stay, and the same command continues it.

    Args:
        run: Folder of the run, or the output of a command.

    Examples:
      omr launch cancel runs/qwen2_5_vl_7b_sft
    """
    record, state = _look(run)
    if state.ended:
        print(f"job {record.job} has ended already: {state.describe()}")
        return
    cancel_job(record)
    print(f"job {record.job} is cancelled")


def _look(run: Path) -> tuple[JobRecord, JobState]:
    folder = find_folder(str(run))
    record = read_record(folder)
    return record, find_state(folder, record)


# ---- submitting: the command's own tree, whose functions submit instead ----


def _launch(stage: Stage, command: Command, words: Sequence[str], prog: str) -> None:
    """Parses the words of a command with LaunchOptions beside its own, and submits it."""

    def submit(given: dict[str, Any], options: LaunchOptions) -> None:
        _, own = tyro.cli(LaunchOptions, args=words, return_unknown_args=True, use_underscores=True)
        _submit(stage, tuple(own), given, options)

    run(replace_functions(command, submit), words, prog=prog)


def replace_functions(command: Command, submit: Callable[[dict[str, Any], LaunchOptions], None]) -> Command:
    """Returns the command with functions that hand their parameters, and LaunchOptions, to `submit`."""
    if isinstance(command, CommandGroup):
        commands = command.commands() if callable(command.commands) else command.commands
        replaced = {name: replace_functions(each, submit) for name, each in commands.items()}
        return replace(command, commands=replaced)
    if isinstance(command, partial):
        bound = partial(_replace_function(command.func, submit), *command.args, **command.keywords)
        bound.__doc__ = command.__doc__
        return bound
    assert not isinstance(command, WordsCommand)
    return _replace_function(command, submit)


def _replace_function(
    function: Callable[..., None], submit: Callable[[dict[str, Any], LaunchOptions], None]
) -> Callable[..., None]:
    """Returns a function with the parameters of another and LaunchOptions, which submits instead of running it."""

    @functools.wraps(function)
    def submitting(*, launch: LaunchOptions, **given: Any) -> None:
        submit(given, launch)

    known = inspect.signature(function, eval_str=True)
    options = inspect.Parameter(
        "launch", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[LaunchOptions, FLAT]
    )
    parameters = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*known.parameters.values(), options)
    ]
    submitting.__signature__ = known.replace(parameters=parameters)  # pyright: ignore
    del submitting.__wrapped__  # tyro would take the types of that function's parameters
    submitting.__annotations__ = {each.name: each.annotation for each in parameters}
    return submitting


def _submit(stage: Stage, words: tuple[str, ...], given: dict[str, Any], options: LaunchOptions) -> None:
    config = given.get("config")
    if isinstance(config, BenchmarksConfig):
        _check_benchmarks(given["first"], *given["others"])
    folder = _find_output(config, given)
    if not folder:
        raise ValueError(f"`omr {stage} {words[0]}` writes no folder that a job could have; run it here")
    if isinstance(config, SFTConfig) and options.nodes:
        config, words = _spread(config, words, options)
    request = Request(
        stage=stage,
        recipe=words[1] if words[0] == "curate" else words[0],
        words=(stage, *words),
        config=config,
        run=folder,
        on=options.on,
        nodes=options.nodes,
        dry_run=options.dry_run,
    )
    job = prepare(request)
    checks = run_checks(job)
    if options.dry_run:
        shown, asked = dry_run(job)
        print(shown)
        _report([*checks, *asked])
        return
    _report(checks)
    record = start(job)
    print(f"job {record.job}: omr launch status|logs|cancel {job.run}", file=sys.stderr, flush=True)
    if not options.detach:
        _watch(job.records, record, job.run)


def _check_benchmarks(*names: str) -> None:
    """Raises ValueError for a name that is none; imports what help does not need."""
    from data_pipeline.benchmarks.registry import list_benchmarks

    list_benchmarks(names)


def _find_output(config: object, given: Mapping[str, Any]) -> str:
    """Returns the folder that a command writes, which its config or a parameter names; "" if there is none."""
    values = asdict(config) if config is not None else given  # pyright: ignore[reportArgumentType]
    return str(values.get("run") or values.get("out") or given.get("out") or "")


def _spread(
    config: SFTConfig, words: tuple[str, ...], options: LaunchOptions
) -> tuple[SFTConfig, tuple[str, ...]]:
    """Returns SFT with a rank for each place of the nodes that were asked for."""
    slurm = find_cluster(options.on)[1].slurm
    ranks = options.nodes * (slurm.gpus_per_node or slurm.tasks_per_node)
    if not ranks or ranks == config.processes or any(word.startswith("--processes") for word in words):
        return config, words
    return replace(config, processes=ranks), (*words, "--processes", str(ranks))


def _report(checks: Sequence[Check]) -> None:
    """Prints the checks; raises ValueError if one found a fault."""
    for check in checks:
        print(check.line(), file=sys.stderr)
    if wrong := [check.name for check in checks if check.state == "wrong"]:
        raise ValueError(f"nothing was submitted, for what is marked !! above: {', '.join(wrong)}")


def _watch(folder: Path, record: JobRecord, run: str) -> None:
    """Shows the log of a job until it ends; exits with its code if it failed."""
    try:
        state = follow(folder, record)
    except KeyboardInterrupt:
        print(
            f"\nomr launch: job {record.job} goes on; see `omr launch logs {run} --follow`", file=sys.stderr
        )
        sys.exit(130)
    code = find_exit_code(state, record)
    print(f"omr launch: job {record.job}: {_describe(state, code)}; log: {record.log}", file=sys.stderr)
    sys.exit(code)


def _describe(state: JobState, code: int) -> str:
    return state.describe() + (f", exit code {code}" if code else "")
