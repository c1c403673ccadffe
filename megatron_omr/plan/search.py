"""Plans a layout, and looks for the fastest layouts that fit a cluster. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from megatron_omr.config import ParallelConfig, resolve_backend
from megatron_omr.plan.config import AssumeConfig, ClusterConfig
from megatron_omr.plan.duration import StepTime, plan_time
from megatron_omr.plan.gpus import GIB, GPUS, check_fp8
from megatron_omr.plan.memory import MemoryParts, find_problem, plan_memory
from megatron_omr.plan.task import Layout, Task, count_micro_batches

_DEGREES = (1, 2, 4, 8, 16)
_CHUNKS = (1, 2, 4)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one layout takes."""

    layout: Layout
    dp: int
    micro_batches: int  # of a data-parallel rank in an optimizer step
    memory: tuple[MemoryParts, ...]  # by pipeline stage
    time: StepTime
    problem: str  # why it does not fit; empty where it does

    @property
    def peak_gib(self) -> float:
        return max(parts.total for parts in self.memory) / GIB


def plan_layout(
    task: Task, layout: Layout, *, ranks: int, cluster: ClusterConfig, assume: AssumeConfig
) -> Plan:
    """Returns the plan of a layout on `ranks` GPUs that train.

    Raises:
        ValueError: training would refuse the layout, see count_replicas; the GPU lacks an FP8 recipe.
    """
    check_fp8(layout.compute.fp8, cluster.gpu)
    dp = count_replicas(task, layout, ranks)
    # memory and time are those of the layers that training will have
    backend = _name_backend(task, layout)
    chosen = replace(layout, compute=replace(layout.compute, backend=backend))
    memory = plan_memory(task, chosen, dp=dp, assume=assume)
    return Plan(
        layout=layout,
        dp=dp,
        micro_batches=count_micro_batches(task, layout.parallel, dp),
        memory=tuple(memory),
        time=plan_time(task, layout, dp=dp, cluster=cluster, assume=assume),
        problem=find_problem(memory, GPUS[cluster.gpu]),
    )


def count_replicas(task: Task, layout: Layout, ranks: int) -> int:
    """Returns the data-parallel ranks of `ranks` GPUs.

    Raises:
        ValueError: the layout cannot hold the model, does not divide the ranks, asks for layers that do not go
            together, or has more replicas than a step of SFT has samples.
    """
    layout.parallel.check_model(task.model)
    layout.compute.check_model(task.model, layout.parallel)
    _name_backend(task, layout)
    dp = layout.parallel.dp(ranks)
    if task.engine is None and dp > task.work.samples:
        raise ValueError(
            f"{ranks} GPUs make {dp} replicas of {layout.describe()}, and loader.global_batch_size="
            f"{task.work.samples:,.0f} holds no sample for some of them; raise it, or use fewer GPUs"
        )
    return dp


def _name_backend(task: Task, layout: Layout) -> Literal["local", "te"]:
    return resolve_backend(
        layout.compute, device="cuda", te_problem="", precision=task.precision, cp=layout.parallel.cp
    )


def search(
    task: Task, start: Layout, *, ranks: int, cluster: ClusterConfig, assume: AssumeConfig
) -> list[Plan]:
    """Returns the plans of all legal layouts of `ranks` GPUs, the fastest first.

    Of each layout only the least recomputation that fits is kept, or all of it where nothing fits. Tensor parallelism
    stays in a machine, and comes with sequence parallelism. Fields that are not searched are those of `start`.
    """
    found: list[Plan] = []
    for parallel in _legal_layouts(task, start, ranks, cluster):
        plans = [
            plan_layout(
                task,
                Layout(
                    parallel=parallel,
                    compute=replace(start.compute, recompute=language, recompute_vision=vision),
                ),
                ranks=ranks,
                cluster=cluster,
                assume=assume,
            )
            for language in ("none", "mlp", "full")
            for vision in ("none", "full")
        ]
        fitting = [plan for plan in plans if not plan.problem]
        found.append(min(fitting, key=lambda plan: plan.time.total) if fitting else plans[-1])
    return sorted(found, key=lambda plan: plan.time.total)


def _legal_layouts(task: Task, start: Layout, ranks: int, cluster: ClusterConfig) -> Iterator[ParallelConfig]:
    for tp, pp, cp, vp in product(_DEGREES, _DEGREES, _DEGREES, _CHUNKS):
        if tp > cluster.gpus_per_node or (vp > 1 and pp == 1):
            continue
        parallel = replace(start.parallel, tp=tp, pp=pp, cp=cp, vp=vp, sp=tp > 1, layers=())
        if _is_legal(task, replace(start, parallel=parallel), ranks):
            yield parallel


def _is_legal(task: Task, layout: Layout, ranks: int) -> bool:
    try:
        count_replicas(task, layout, ranks)
    except ValueError:
        return False
    return True
