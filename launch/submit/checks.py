"""Checks that need no GPU and no job: layout and memory of a recipe, its inputs, the code, and Slurm's opinion."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from data_pipeline.curate.config import SHARDS, CurateConfig
from launch.plan_command import build_layout, build_rl_task, build_sft_task
from launch.recipes.clusters import RECIPE_SITES
from launch.submit.code import Code
from launch.submit.config import ClusterFile
from launch.submit.login import Login
from launch.submit.size import Size
from megatron_omr.config import ComputeConfig, ParallelConfig, SFTConfig
from megatron_omr.convert_folders.config import ToHfConfig, ToMegatronConfig
from megatron_omr.model_config import ModelConfig
from megatron_omr.plan.config import AssumeConfig, ClusterConfig
from megatron_omr.plan.engines import find_engine_problem, plan_engine
from megatron_omr.plan.gpus import GPUS
from megatron_omr.plan.search import count_replicas, plan_layout
from megatron_omr.plan.task import Layout, Task
from rl.config import EvalConfig, RLConfig
from rl.evaluation.config import BenchmarksConfig
from rl.rewards.config import is_own


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of what was checked."""

    name: str
    state: Literal["ok", "wrong", "unknown"]
    text: str

    def line(self) -> str:
        return f"{ {'ok': 'ok', 'wrong': '!!', 'unknown': '??'}[self.state] }  {self.name:<8}  {self.text}"


def check_all(
    config: object, recipe: str, *, cluster: ClusterFile, size: Size, login: Login, code: Code, base: str
) -> list[Check]:
    """Returns what was checked, in the order of the screen; relative paths start from `base`."""
    here = _from(config, base) if not cluster.ssh.host else config
    return [
        *check_layout(here, recipe, cluster, size),
        *check_inputs(config, login, base),
        *check_rewards(config, login, base, code),
        check_code(config, code, base),
    ]


def _from(config: object, base: str) -> object:
    """Returns a config whose model is found from any folder."""
    if isinstance(config, SFTConfig | RLConfig):
        return replace(config, model=os.path.join(base, config.model))
    return config


def check_layout(config: object, recipe: str, cluster: ClusterFile, size: Size) -> Iterator[Check]:
    """Checks that the model can be laid out as wished, and fits the memory of the cluster's GPUs by `omr plan`."""
    if not isinstance(config, SFTConfig | RLConfig):
        return
    shape = RECIPE_SITES[recipe].shape if recipe in RECIPE_SITES else ""
    assume, layout = AssumeConfig(), build_layout(config)
    if not shape and not Path(config.model).exists():
        yield Check(
            name="layout", state="unknown", text=f"model={config.model} is not here: its shape decides"
        )
        return
    try:
        if isinstance(config, SFTConfig):
            task, ranks = build_sft_task(config, assume, shape=shape), config.processes
        else:
            task, ranks = build_rl_task(config, assume, shape=shape), config.trainers
            check_served(task.model, config.model, config.engine.tp)
        dp = count_replicas(task, layout, ranks)
    except ValueError as mistake:
        yield Check(name="layout", state="wrong", text=str(mistake))
        return
    described = f"{layout.describe()}, {dp} replica{'s' * (dp > 1)} on {ranks} ranks"
    yield Check(name="layout", state="ok", text=described)
    yield check_memory(task, layout, ranks, cluster, size)


def check_memory(task: Task, layout: Layout, ranks: int, cluster: ClusterFile, size: Size) -> Check:
    """Checks that trainer and engines fit the memory of the cluster's GPUs, by `omr plan`."""
    if not cluster.gpu:
        return Check(
            name="memory", state="unknown", text='the cluster file names no GPU, such as gpu = "h100"'
        )
    site = ClusterConfig(gpu=cluster.gpu, nodes=size.nodes, gpus_per_node=max(1, size.gpus_per_node))
    try:
        plan = plan_layout(task, layout, ranks=ranks, cluster=site, assume=AssumeConfig())
        problem = plan.problem
        if task.engine and not problem:
            engine = plan_engine(task.engine, GPUS[cluster.gpu], AssumeConfig())
            problem = find_engine_problem(task.engine, engine)
    except ValueError as mistake:  # no FP8 on this GPU
        return Check(name="memory", state="wrong", text=str(mistake))
    if problem:
        return Check(name="memory", state="wrong", text=f"{problem}; `omr plan` lists layouts that fit")
    return Check(name="memory", state="ok", text=f"{plan.peak_gib:.0f} GiB of a {cluster.gpu} planned")


def check_ranks_layout(
    model: str, parallel: ParallelConfig, compute: ComputeConfig = ComputeConfig()
) -> None:
    """Checks the layout, and that its layers can be computed as wished, before any rank starts; raises ValueError."""
    shape = ModelConfig.from_hf(model)
    parallel.check_model(shape)
    compute.check_model(shape, parallel)


def check_served(shape: ModelConfig, model: str, tp: int) -> None:
    """Raises ValueError for a model that vLLM cannot cut into `tp` parts, or computes otherwise than transformers.

    Its tables for M-RoPE are four times as long as the original context, and make YaRN's frequencies from that length.
    """
    vision = shape.vision
    widths = {
        "num_attention_heads": shape.num_heads,
        "intermediate_size": shape.intermediate_size,
        "vision_config.num_heads": vision.num_heads,
        "vision_config.intermediate_size": vision.intermediate_size,
    }
    for name, width in widths.items():
        if width % tp:
            allowed = [t for t in (1, 2, 4, 8, 16) if all(w % t == 0 for w in widths.values())]
            raise ValueError(
                f"engine.tp={tp} must divide {name}={width}; this model allows tp = {', '.join(map(str, allowed))}"
            )
    if shape.rope.yarn is not None:
        raise ValueError(
            f"{model}/config.json: rope_type='yarn' works in SFT and conversion, but vLLM computes other frequencies; "
            "use rope_type='default' for RL and evaluation"
        )


def check_inputs(config: object, login: Login, base: str) -> Iterator[Check]:
    """Checks that the folders which a command reads are there."""
    for field, place in list_inputs(config):
        if "://" in place:
            yield Check(name="input", state="unknown", text=f"{field}={place} is an address: not looked at")
            continue
        path = place if place.startswith("/") else f"{base}/{place.removeprefix('./')}"
        if login.exists(path):
            yield Check(name="input", state="ok", text=f"{field}={place}")
        else:
            where = f" on {login.ssh.host}" if login.ssh.host else ""
            yield Check(name="input", state="wrong", text=f"{field}={place} is not there{where}: no {path}")


def list_inputs(config: object) -> list[tuple[str, str]]:
    """Returns the inputs of a command, by the names of their options."""
    if isinstance(config, SFTConfig):
        named = [("loader.shards", config.loader.shards), ("validation.shards", config.validation.shards)]
        return [(field, place) for field, place in [("model", config.model), *named] if place]
    if isinstance(config, RLConfig | EvalConfig):
        named = [("model", config.model), ("shards", config.shards)]
        if isinstance(config, RLConfig):
            named += [("held_out.shards", config.held_out.shards)]
            named += [(f"held_out.benchmarks {name}", place) for name, place in config.held_out.benchmarks]
        return [(field, place) for field, place in named if place]
    if isinstance(config, BenchmarksConfig):
        return [("model", config.model), *([("path", config.path)] if config.path else [])]
    if isinstance(config, ToHfConfig | ToMegatronConfig):
        return [("source", config.source)]
    if isinstance(config, CurateConfig):
        named = [(f"sources.{i}.rows.path", source) for i, source in enumerate(config.sources)]
        return [
            (field, source.rows.path)
            for field, source in named
            if source.corpus == SHARDS or source.rows.path.startswith(("./", "/"))
        ]
    return []


def check_rewards(config: object, login: Login, base: str, code: Code) -> Iterator[Check]:
    """Checks that a user's own reward functions work, and that the job will find their files."""
    own = config.reward.weights if isinstance(config, RLConfig | EvalConfig | BenchmarksConfig) else ()
    for name in (name for name, _ in own if is_own(name)):
        file = name.rpartition(":")[0]
        if not login.exists(file if file.startswith("/") else f"{base}/{file}") and not code.holds(file):
            where = f"{login.ssh.host}:{base}" if login.ssh.host else base
            text = (
                f"{file} will not be found: put it into {where}, or into {code.root} without git ignoring it"
            )
            yield Check(name="reward", state="wrong", text=text)
            continue
        from rl.rewards.own import find_file, load_own  # with numpy, which the command line does not need

        try:
            load_own(name)
        except ValueError as mistake:
            yield Check(name="reward", state="wrong", text=str(mistake))
        else:
            yield Check(name="reward", state="ok", text=f"{name}, of {find_file(name)}")


def check_code(config: object, code: Code, base: str) -> Check:
    """Says which code will run; Ray puts the current folder first for its workers."""
    if not code.revision:
        return Check(name="code", state="unknown", text=code.describe())
    shadow = (
        isinstance(config, RLConfig | EvalConfig | BenchmarksConfig)
        and Path(base, "launch", "cli.py").is_file()
    )
    note = f"; Ray's workers take that of {base}, a checkout too: leave it as it is until the job runs"
    return Check(name="code", state="unknown" if shadow else "ok", text=code.describe() + note * shadow)


def check_with_slurm(login: Login, script: str) -> Check:
    """Asks Slurm whether it would take a script: partition, account, limits, sizes; nothing is submitted."""
    try:
        done = login.run("sbatch", "--test-only", stdin=script)
    except OSError as failure:
        return Check(name="slurm", state="unknown", text=f"not asked: {failure}")
    said = " ".join(done.stderr.split()).removeprefix("sbatch: ")
    return Check(name="slurm", state="wrong" if done.returncode else "ok", text=said)
