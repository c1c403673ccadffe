"""Writes a plan and the layouts that were found as text for the console and docs, or as values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from data_pipeline.tables import text_table
from megatron_omr.plan.config import AssumeConfig, ClusterConfig
from megatron_omr.plan.duration import StepTime
from megatron_omr.plan.engines import EngineMemory, EngineTask, find_engine_problem
from megatron_omr.plan.gpus import GIB, GPUS
from megatron_omr.plan.memory import MemoryParts
from megatron_omr.plan.search import Plan
from megatron_omr.plan.task import Task

_RATIOS = ("mfu", "bubble")


def write_report(
    task: Task,
    plan: Plan,
    found: Sequence[Plan],
    engine: EngineMemory | None,
    *,
    cluster: ClusterConfig,
    assume: AssumeConfig,
    top: int,
) -> str:
    """Returns the plan of the recipe's layout, the fastest that fit, and faster ones that do not, with the reason."""
    gpu = GPUS[cluster.gpu]
    fits = (
        f"does not fit: {plan.problem}"
        if plan.problem
        else f"fits: {plan.peak_gib:.1f} of {gpu.memory_gib} GiB"
    )
    lines = [
        f"{task.name} on {cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu}; predicted, not measured",
        f"layout: {_layout(plan)}",
        f"step: {task.work.samples:,.0f} samples of {task.work.tokens / task.work.samples:,.0f} tokens, "
        f"{plan.micro_batches} packs of at most {task.pack_tokens:,} tokens a data-parallel rank",
        fits,
        "",
        text_table(*_memory_table(plan.memory)),
    ]
    if engine is not None and task.engine is not None:
        described = describe_engine(task.engine, engine) + _describe_sent(task.engine, engine, cluster)
        lines += ["", described, *_describe_turns(task, plan)]
    lines += ["", text_table(*_time_table(plan.time)), "", _describe_speed(task, plan, cluster)]
    lines += [describe_run(task.steps * plan.time.total, _count_gpus(task, plan), f"{task.steps:,} steps")]
    fitting = [p for p in found if not p.problem]
    lines += [
        "",
        f"fastest layouts that fit, of {len(found)} legal ones",
        _search_table(fitting[:top], problems=False),
    ]
    slowest_shown = fitting[min(top, len(fitting)) - 1].time.total if fitting else float("inf")
    near = sorted((p for p in found if p.problem and p.time.total <= slowest_shown), key=lambda p: p.peak_gib)
    if near:
        lines += [
            "",
            "as fast, but too large; the nearest",
            _search_table(near[: max(1, top // 2)], problems=True),
        ]
    return "\n".join([*lines, "", describe_assumptions(assume)])


def _layout(plan: Plan) -> str:
    compute = plan.layout.compute
    again = f"recompute {compute.recompute}, recompute_vision {compute.recompute_vision}"
    fp8 = "" if compute.fp8 == "off" else f", fp8 {compute.fp8}"
    return f"{plan.layout.describe()} dp{plan.dp}, {again}{fp8}"


def _memory_table(stages: Sequence[MemoryParts]) -> tuple[list[str], list[list[str]]]:
    """Returns head and rows in GiB; equal stages share a row."""
    names = [field.name for field in fields(MemoryParts)]
    rows: dict[tuple[str, ...], list[int]] = {}
    for stage, parts in enumerate(stages):
        values = tuple(f"{getattr(parts, name) / GIB:.1f}" for name in names)
        rows.setdefault((*values, f"{parts.total / GIB:.1f}"), []).append(stage)
    body = [[_stages(where, len(stages)), *values] for values, where in rows.items()]
    return ["GiB a rank", *names, "total"], body


def _stages(where: Sequence[int], count: int) -> str:
    if count == 1:
        return "each"
    ends = str(where[0]) if len(where) == 1 else f"{where[0]} to {where[-1]}"
    return f"stage {ends}"


def _time_table(time: StepTime) -> tuple[list[str], list[list[str]]]:
    names = [f.name for f in fields(time) if f.name not in _RATIOS and getattr(time, f.name)]
    rows = [[name, f"{getattr(time, name):.2f}", f"{getattr(time, name) / time.total:.1%}"] for name in names]
    return ["seconds a step", "", "share"], [*rows, ["total", f"{time.total:.2f}", ""]]


def _describe_speed(task: Task, plan: Plan, cluster: ClusterConfig) -> str:
    gpus = _count_gpus(task, plan)
    idle = cluster.num_gpus - gpus
    text = (
        f"{task.work.tokens / plan.time.total / gpus:,.0f} tokens/s a GPU, MFU {plan.time.mfu:.1%}, "
        f"bubble {plan.time.bubble:.1%} of the training"
    )
    return text + (f"; {idle} of {cluster.num_gpus} GPUs are idle" if idle else "")


def _count_gpus(task: Task, plan: Plan) -> int:
    return plan.dp * plan.layout.parallel.model_parallel_size + task.engine_gpus


def describe_run(seconds: float, gpus: int, what: str) -> str:
    """Returns how long all of it takes, and on how many GPUs."""
    hours, total = (
        f"{value:,.{1 if value < 10 else 0}f}" for value in (seconds / 3600, seconds * gpus / 3600)
    )
    return f"{what}: {hours} hours on {gpus} GPU{'s' * (gpus > 1)}, {total} GPU hours"


def describe_engine(engine: EngineTask, memory: EngineMemory) -> str:
    """Returns how an engine divides its GPU, or why it does not start."""
    if problem := find_engine_problem(engine, memory):
        return f"engine: does not fit: {problem}; see engine.gpu_memory_utilization"
    return (
        f"engine: {memory.weights / GIB:.1f} GiB of weights{' a GPU' * (engine.tp > 1)}, "
        f"{memory.working / GIB:.1f} working, {memory.cache / GIB:.1f} of keys and values = "
        f"{memory.tokens:,.0f} tokens, {memory.tokens / engine.max_model_len:,.0f} responses of full length "
        "at once"
    )


def _describe_sent(engine: EngineTask, memory: EngineMemory, cluster: ClusterConfig) -> str:
    if cluster.nodes > 1 or find_engine_problem(engine, memory):  # over a network a few buckets at a time
        return ""
    return f"; weights in shared memory take {memory.sent / GIB:.1f} GiB of the host's"


def _describe_turns(task: Task, plan: Plan) -> list[str]:
    if task.engine is None or not task.engine.takes_turns:
        return []
    held = max(parts.weights + parts.optimizer for parts in plan.memory)
    return [
        f"colocated: engines take the trainer's GPUs in turn; meanwhile the host holds {held / GIB:.1f} GiB of each "
        "rank of the trainer. The time of the moves is not in the plan"
    ]


def _search_table(plans: Sequence[Plan], *, problems: bool) -> str:
    if not plans:
        return "none"
    head = [
        "layout",
        "dp",
        "recompute",
        "tower",
        "packs",
        "GiB",
        "s/step",
        "MFU",
        *(["why not"] if problems else []),
    ]
    rows = [
        [
            plan.layout.describe(),
            plan.dp,
            plan.layout.compute.recompute,
            plan.layout.compute.recompute_vision,
            plan.micro_batches,
            f"{plan.peak_gib:.1f}",
            f"{plan.time.total:.1f}",
            f"{plan.time.mfu:.1%}",
            *([plan.problem] if problems else []),
        ]
        for plan in plans
    ]
    return text_table(head, rows)


def describe_assumptions(assume: AssumeConfig) -> str:
    """Returns the assumptions in one sentence, by the names of their options."""
    values = ", ".join(f"{name} {value:,}" for name, value in asdict(assume).items())
    return f"assumed (--assume.NAME): {values}"


def build_values(
    task: Task,
    plan: Plan,
    found: Sequence[Plan],
    engine: EngineMemory | None,
    *,
    cluster: ClusterConfig,
    assume: AssumeConfig,
    top: int,
) -> dict[str, Any]:
    """Returns the same as write_report() as values; memory in bytes, times in seconds."""
    return {
        "recipe": task.name,
        "measured": False,
        "cluster": asdict(cluster),
        "gpu_bytes": GPUS[cluster.gpu].memory_gib * GIB,
        "work": asdict(task.work),
        "steps": task.steps,
        "gpu_hours": task.steps * plan.time.total * _count_gpus(task, plan) / 3600,
        "plan": _plan_values(plan),
        "engine": None if engine is None else _engine_values(task, engine),
        "layouts": [_plan_values(p) for p in found[:top]],
        "assume": asdict(assume),
    }


def _engine_values(task: Task, engine: EngineMemory) -> dict[str, Any]:
    assert task.engine is not None
    problem = find_engine_problem(task.engine, engine)
    return asdict(engine) | {"fits": not problem, "problem": problem}


def _plan_values(plan: Plan) -> dict[str, Any]:
    return {
        "layout": asdict(plan.layout),
        "dp": plan.dp,
        "micro_batches": plan.micro_batches,
        "fits": not plan.problem,
        "problem": plan.problem,
        "memory": [asdict(parts) | {"total": parts.total} for parts in plan.memory],
        "seconds": asdict(plan.time) | {"train": plan.time.train, "total": plan.time.total},
    }
