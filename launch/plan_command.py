"""`omr plan`: memory and time of a recipe before it runs, and the fastest layouts that fit. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Annotated

from data_pipeline.files import to_json
from launch.arguments import FLAT, Command, CommandGroup
from launch.recipes.clusters import RECIPE_SITES
from launch.recipes.rl import RL_RECIPES
from launch.recipes.sft import SFT_RECIPES
from megatron_omr.config import SFTConfig
from megatron_omr.plan.config import AssumeConfig, ClusterConfig, GenerationConfig
from megatron_omr.plan.engines import EngineTask, find_engine_problem, plan_engine, time_generation
from megatron_omr.plan.gpus import GPUS
from megatron_omr.plan.report import (
    build_values,
    describe_assumptions,
    describe_engine,
    describe_run,
    write_report,
)
from megatron_omr.plan.search import plan_layout, search
from megatron_omr.plan.shapes import find_shape, published_shape
from megatron_omr.plan.task import Layout, Task, count_work
from rl.config import RLConfig


def plan_sft(
    config: Annotated[SFTConfig, FLAT],
    cluster: ClusterConfig,
    assume: AssumeConfig,
    *,
    shape: str = "",
    top: int = 8,
    json: bool = False,
) -> None:
    """Plan an SFT recipe; all its fields can be changed.

    Args:
        shape: Published shape of the model, where its folder is not there.
        top: Layouts to list.
        json: Print values instead of tables.
    """
    task, layout = build_sft_task(config, assume, shape=shape), build_layout(config)
    _check_room(config.processes, f"processes={config.processes}", cluster)
    _print(task, layout, config.processes, cluster, assume, top=top, json=json)


def plan_rl(
    config: Annotated[RLConfig, FLAT],
    cluster: ClusterConfig,
    assume: AssumeConfig,
    *,
    shape: str = "",
    top: int = 8,
    json: bool = False,
) -> None:
    """Plan an RL recipe: its trainers and its engines; all its fields can be changed.

    Args:
        shape: Published shape of the model, where its folder is not there.
        top: Layouts to list.
        json: Print values instead of tables.
    """
    task, layout = build_rl_task(config, assume, shape=shape), build_layout(config)
    engine = config.engine
    wanted = f"trainers={config.trainers} and engine.num_engines={engine.num_engines} x engine.tp={engine.tp}"
    own = task.engine_gpus
    _check_room(config.trainers + own, wanted if own else f"trainers={config.trainers}", cluster)
    _print(task, layout, config.trainers, cluster, assume, top=top, json=json)


def plan_generation(
    config: Annotated[GenerationConfig, FLAT], cluster: ClusterConfig, assume: AssumeConfig
) -> None:
    """Plan the engines of an evaluation or of teachers: n responses to each question, nothing trained.

    Examples:
      omr plan generate --questions 24842 --num_engines 8
      omr plan generate --shape Qwen3-VL-235B-A22B-Instruct --tp 8 --num_engines 1 --questions 1000 --n 8
    """
    engine = build_engine_task(config, assume)
    _check_room(engine.num_gpus, f"num_engines={config.num_engines} x tp={config.tp}", cluster)
    memory = plan_engine(engine, GPUS[cluster.gpu], assume)
    print(
        f"{config.shape} on {cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu}; predicted, not measured"
    )
    print(describe_engine(engine, memory))
    if not find_engine_problem(engine, memory):
        seconds = time_generation(engine, GPUS[cluster.gpu], assume)
        print(describe_run(seconds, engine.num_gpus, f"{engine.rollouts:,.0f} responses"))
    print()
    print(describe_assumptions(assume))


def build_engine_task(config: GenerationConfig, assume: AssumeConfig) -> EngineTask:
    """Returns the planner's view of engines that only generate."""
    model = published_shape(config.shape)
    response = min(assume.rollout_tokens, config.max_tokens)
    side = model.family.patches.token_side
    return EngineTask(
        model=model,
        precision="bf16",
        num_engines=config.num_engines,
        tp=config.tp,
        utilization=config.gpu_memory_utilization,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        rollouts=config.questions * config.n,
        prompt_tokens=assume.question_tokens + assume.pictures * assume.image_pixels / side**2,
        response_tokens=response,
        longest=config.max_tokens,
    )


def _check_room(wanted: int, fields: str, cluster: ClusterConfig) -> None:
    """Raises ValueError where `wanted` GPUs, of these fields, are more than the machines have."""
    if wanted > cluster.num_gpus:
        raise ValueError(
            f"{fields} need {wanted} GPUs, and cluster.nodes={cluster.nodes} x cluster.gpus_per_node="
            f"{cluster.gpus_per_node} are {cluster.num_gpus}; lower the former or raise the latter"
        )


def build_layout(config: SFTConfig | RLConfig) -> Layout:
    """Returns how a recipe lays out its model."""
    return Layout(parallel=config.parallel, compute=config.compute)


def build_sft_task(config: SFTConfig, assume: AssumeConfig, *, shape: str = "", name: str = "") -> Task:
    """Returns the planner's view of an SFT recipe."""
    model = find_shape(config.model, shape)
    work = count_work(
        samples=config.loader.global_batch_size,
        response=(assume.response_tokens, assume.response_std),
        question=assume.question_tokens,
        image_pixels=assume.image_pixels,
        images=assume.pictures,
        token_side=model.family.patches.token_side,
    )
    return Task(
        name=name or _name(config.run),
        model=model,
        precision=config.precision,
        freeze=config.optim.freeze,
        pack_tokens=config.loader.pack_length,
        max_pixels=config.image.max_pixels,
        work=work,
        steps=config.steps,
        with_entropy=False,
    )


def build_rl_task(config: RLConfig, assume: AssumeConfig, *, shape: str = "", name: str = "") -> Task:
    """Returns the planner's view of an RL recipe."""
    model = find_shape(config.model, shape)
    token_side = model.family.patches.token_side
    rollouts = config.prompts_per_step * config.sampling.n
    response = min(assume.rollout_tokens, config.sampling.max_tokens)
    shared = config.sampling.n if config.share_prompts else 1
    work = count_work(
        samples=rollouts,
        response=(response, assume.rollout_std),
        question=assume.question_tokens / shared,
        image_pixels=assume.image_pixels,
        images=assume.pictures / shared,
        token_side=token_side,
    )
    engine = EngineTask(
        model=model,
        precision=config.engine.precision,
        num_engines=config.engine.num_engines,
        tp=config.engine.tp,
        utilization=config.engine.gpu_memory_utilization,
        max_model_len=config.engine.max_model_len,
        max_num_seqs=config.engine.max_num_seqs,
        rollouts=rollouts,
        prompt_tokens=assume.question_tokens + assume.pictures * assume.image_pixels / token_side**2,
        response_tokens=response,
        longest=min(config.sampling.max_tokens, response + 4 * assume.rollout_std),
        takes_turns=config.rollout.placement == "colocated",
    )
    return Task(
        name=name or _name(config.run),
        model=model,
        precision=config.precision,
        freeze=config.optim.freeze,
        pack_tokens=config.pack_length,
        max_pixels=config.image.max_pixels,
        work=work,
        steps=config.steps,
        with_entropy=True,
        num_updates=config.algorithm.num_minibatches,
        engine=engine,
        reference=config.algorithm.kl.reference if config.algorithm.kl.coefficient else "none",
    )


def _name(run: str) -> str:
    return run.rstrip("/").rpartition("/")[2]


def _print(
    task: Task,
    layout: Layout,
    ranks: int,
    cluster: ClusterConfig,
    assume: AssumeConfig,
    *,
    top: int,
    json: bool,
) -> None:
    plan = plan_layout(task, layout, ranks=ranks, cluster=cluster, assume=assume)
    found = search(task, layout, ranks=ranks, cluster=cluster, assume=assume)
    engine = plan_engine(task.engine, GPUS[cluster.gpu], assume) if task.engine else None
    if json:
        print(to_json(build_values(task, plan, found, engine, cluster=cluster, assume=assume, top=top)))
    else:
        print(write_report(task, plan, found, engine, cluster=cluster, assume=assume, top=top))


def _plan_demo() -> None:
    """The demo runs on a CPU, in a few GB of memory: there is nothing to plan."""
    print(
        "the demo runs on two CPU cores, and plans are for GPUs: nothing to plan; "
        "`omr plan qwen2_5_vl_7b_sft` shows one",
        file=sys.stderr,
    )


def _commands() -> dict[str, Command]:
    engines = partial(
        plan_generation, config=GenerationConfig(), cluster=ClusterConfig(), assume=AssumeConfig()
    )
    engines.__doc__ = plan_generation.__doc__
    commands: dict[str, Command] = {"demo": _plan_demo, "generate": engines}
    recipes: list[tuple[Callable[..., None], dict]] = [(plan_sft, SFT_RECIPES), (plan_rl, RL_RECIPES)]
    for command, configs in recipes:
        for name, config in configs.items():
            if name not in RECIPE_SITES:
                continue
            site = RECIPE_SITES[name]
            bound = partial(
                command, config=config(), cluster=site.cluster, assume=AssumeConfig(), shape=site.shape
            )
            bound.__doc__ = config.__doc__
            commands[name] = bound
    return commands


PLAN = CommandGroup(
    doc="""Memory and time of a recipe before it runs, and the fastest layouts that fit: omr plan RECIPE.

    Touches no GPU and no weights. Memory formulas are checked against the real model; efficiencies are assumed.

    Examples:
      omr plan qwen2_5_vl_7b_sft
      omr plan qwen2_5_vl_7b_sft --processes 64 --cluster.nodes 8 --cluster.gpu h200
      omr plan openmmreasoner_gspo --assume.rollout_tokens 6000 --json
      omr plan generate --questions 24842 --num_engines 8
    """,
    commands=_commands(),
    kind="recipe",
)
