"""Estimates the time of a step by phase, from FLOPs, bytes that are sent, and stated efficiencies. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_omr.flops import (
    attention_flops,
    language_layers_flops,
    language_mlp_flops,
    train_step_flops,
    vision_forward_flops,
    vision_layers_flops,
)
from megatron_omr.plan.config import AssumeConfig, ClusterConfig
from megatron_omr.plan.engines import plan_engine, time_generation
from megatron_omr.plan.gpus import GPUS, Gpu
from megatron_omr.plan.task import Layout, Task, count_micro_batches, list_chunks, padded_tokens
from megatron_omr.plan.weights import Chunk, list_own


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of an optimizer step, by phase; 0 where there is none."""

    generate: float
    score: float  # logprobs before the first of several updates, and those of a reference
    compute: float  # forward and backward of the slowest stage
    recompute: float
    tensor_parallel: float
    context_parallel: float
    expert_parallel: float  # tokens to their experts and back
    pipeline: float  # the bubble, and what stages send each other
    data_parallel: float  # gradients and weights
    optimizer: float
    sync: float  # weights to the engines
    mfu: float  # FLOPs of the model over what all GPUs could do in the step
    bubble: float  # share of the training time

    @property
    def train(self) -> float:
        parts = (self.score, self.compute, self.recompute, self.tensor_parallel, self.context_parallel)
        return sum(parts) + self.expert_parallel + self.pipeline + self.data_parallel + self.optimizer

    @property
    def total(self) -> float:
        return self.generate + self.train + self.sync


@dataclass(frozen=True, kw_only=True)
class _Site:
    """Where a task runs: layout, machines, assumptions, and the share of a step's work in one micro-batch."""

    task: Task
    layout: Layout
    cluster: ClusterConfig
    assume: AssumeConfig
    share: float

    @property
    def tokens(self) -> float:
        """Tokens of a micro-batch, padding of its sequences included."""
        return padded_tokens(self.task, self.layout.parallel) * self.share

    @property
    def gpu(self) -> Gpu:
        return GPUS[self.cluster.gpu]

    def bandwidth(self, ranks: int) -> float:
        """Returns the bytes/s of a GPU to `ranks` neighbours: NVLink inside a machine, else the network."""
        inside = ranks <= self.cluster.gpus_per_node
        return (
            self.gpu.nvlink if inside else self.cluster.network_gbytes * 1e9
        ) * self.assume.link_efficiency


@dataclass(frozen=True, kw_only=True)
class _Pack:
    """Seconds of one micro-batch on a stage."""

    forward: float
    backward: float
    again: float
    tensor_parallel: float
    context_parallel: float
    expert_parallel: float
    send: float

    @property
    def total(self) -> float:
        parts = (self.forward, self.backward, self.again, self.tensor_parallel, self.context_parallel)
        return sum(parts) + self.expert_parallel + self.send


def plan_time(
    task: Task, layout: Layout, *, dp: int, cluster: ClusterConfig, assume: AssumeConfig
) -> StepTime:
    """Returns the time of an optimizer step (of all its updates) with `dp` data-parallel ranks."""
    packs = count_micro_batches(task, layout.parallel, dp)
    share = 1 / (packs * dp * task.num_updates)
    site = _Site(task=task, layout=layout, cluster=cluster, assume=assume, share=share)
    parallel, stages = layout.parallel, list_chunks(task.model, layout.parallel)
    slowest = max((_time_pack(site, chunks) for chunks in stages), key=lambda pack: pack.total)
    reduce, adam = max((_time_update(site, chunks, dp * parallel.cp) for chunks in stages), key=sum)
    generate = sync = 0.0
    if engine := task.engine:
        generate = time_generation(engine, site.gpu, assume)
        sync = plan_engine(engine, site.gpu, assume).sent / (assume.sync_gbytes * 1e9)
    updates = packs * task.num_updates
    # micro-batches in which a stage waits for the others
    waiting = (parallel.pp - 1) / len(stages[0]) * task.num_updates * slowest.total
    time = StepTime(
        generate=generate,
        score=updates * slowest.forward * ((task.num_updates > 1) + (task.reference != "none")),
        compute=updates * (slowest.forward + slowest.backward),
        recompute=updates * slowest.again,
        tensor_parallel=updates * slowest.tensor_parallel,
        context_parallel=updates * slowest.context_parallel,
        expert_parallel=updates * slowest.expert_parallel,
        pipeline=updates * slowest.send + waiting,
        data_parallel=reduce * task.num_updates,
        optimizer=adam * task.num_updates,
        sync=sync,
        mfu=0.0,
        bubble=0.0,
    )
    gpus = dp * parallel.model_parallel_size + task.engine_gpus
    mfu = _model_flops(task) / (time.total * gpus * site.gpu.peak)
    return replace(time, mfu=mfu, bubble=waiting / time.train)


def _model_flops(task: Task) -> float:
    """Returns the FLOPs of forward and backward of a step, recomputation and generation not counted."""
    length = max(1, round(task.work.effective_length))
    language = train_step_flops(task.model, [length], [], freeze=task.freeze) / length * task.work.tokens
    return language + task.work.images * train_step_flops(task.model, [], [_grid(task)], freeze=task.freeze)


def _grid(task: Task) -> tuple[int, int, int]:
    return (1, task.work.image_side, task.work.image_side)


def _time_pack(site: _Site, chunks: tuple[Chunk, ...]) -> _Pack:
    forward, backward, again = _time_compute(site, chunks)
    parallel, model, e = site.layout.parallel, site.task.model, site.task.element
    own = site.tokens / parallel.cp
    num_layers = sum(c.num_layers for c in chunks)
    hidden = own * model.hidden_size * e
    # forward: two all-reduces a layer, or gathers and scatters of the same size under SP; backward the same, and under
    # SP one gather more for each weight gradient
    passes = 8 + 2 * parallel.sp + {"none": 0, "mlp": 2, "full": 4}[site.layout.compute.recompute]
    sent = passes * hidden * num_layers
    if any(c.first for c in chunks):
        patches = site.task.work.patches * site.share / parallel.cp
        passes = 8 + 4 * (site.layout.compute.recompute_vision == "full")
        sent += passes * patches * model.vision.hidden_size * e * model.vision.depth
    keys_and_values = 2 * own * model.num_kv_heads * model.head_dim / parallel.tp * e * num_layers
    others = (parallel.tp - 1) / parallel.tp
    return _Pack(
        forward=forward,
        backward=backward,
        again=again,
        tensor_parallel=sent * others / site.bandwidth(parallel.tp),
        # gathered in forward and in backward, where their gradients are scattered as well
        context_parallel=3 * keys_and_values * (parallel.cp - 1) / site.bandwidth(parallel.tp * parallel.cp),
        expert_parallel=_time_experts(site, hidden * num_layers),
        send=2
        * len(chunks)
        * hidden
        / (parallel.tp if parallel.sp else 1)
        / site.bandwidth(site.cluster.num_gpus)
        if parallel.pp > 1
        else 0.0,
    )


def _time_experts(site: _Site, hidden: float) -> float:
    """Returns the seconds in which tokens go to their experts and back, forward and backward, evenly spread.

    Args:
        hidden: bytes of the tokens of all layers, of the tensor-parallel ranks together.
    """
    model, parallel = site.task.model, site.layout.parallel
    if model.moe is None or parallel.ep * parallel.expert_tp == 1:
        return 0.0
    ranks = parallel.ep * parallel.expert_tp
    passes = 4 + {"none": 0, "mlp": 2, "full": 2}[site.layout.compute.recompute]
    sent = passes * model.moe.num_chosen * hidden / parallel.tp * parallel.expert_tp
    return sent * (ranks - 1) / ranks / site.bandwidth(ranks)


def _time_compute(site: _Site, chunks: tuple[Chunk, ...]) -> tuple[float, float, float]:
    """Returns the seconds of a stage's forward pass, of its backward pass, and of what that computes again."""
    task, compute, assume = site.task, site.layout.compute, site.assume
    model, images = task.model, task.work.images * site.share
    tokens = site.tokens * sum(c.num_layers for c in chunks) / model.num_layers
    length = max(1, round(task.work.effective_length))
    peak = site.gpu.peak * site.layout.parallel.tp * site.layout.parallel.cp
    attention = attention_flops(model, [length]) / length * tokens / (peak * assume.attention_efficiency)
    speed = peak * assume.language_efficiency
    in_fp8 = site.layout.fp8_layers(model) / model.num_layers
    faster = 1 - in_fp8 + in_fp8 / assume.fp8_speedup  # of the linear layers' seconds in BF16
    whole = language_layers_flops(model, [length]) - attention_flops(model, [length])
    layers = whole / length * tokens / speed * faster + attention
    mlp = language_mlp_flops(model, 1) * tokens / speed * faster
    again = {"none": 0.0, "mlp": mlp, "full": layers}[compute.recompute]
    language, tower = layers, 0.0
    if any(c.last for c in chunks):
        language += 2 * site.tokens * model.hidden_size * model.vocab_size / speed
    if any(c.first for c in chunks):
        tower = vision_forward_flops(model, [_grid(task)]) * images / (peak * assume.vision_efficiency)
        if compute.recompute_vision == "full" and "vision" not in task.freeze:
            again += vision_layers_flops(model, [_grid(task)]) * images / (peak * assume.vision_efficiency)
    # gradients of inputs cost as much as the forward pass, and so do those of weights
    backward = (1 if "language" in task.freeze else 2) * language + (
        0 if "vision" in task.freeze else 2
    ) * tower
    return language + tower, backward, again


def _time_update(site: _Site, chunks: tuple[Chunk, ...], ranks: int) -> tuple[float, float]:
    """Returns the seconds in which gradients are reduced and weights gathered, and those of the optimizer."""
    task, parallel = site.task, site.layout.parallel
    trained = [
        p for chunk in chunks for p in list_own(task.model, chunk, parallel) if p.part not in task.freeze
    ]
    experts = sum(p.size for p in trained if p.of_expert)
    others = sum(p.size for p in trained) - experts
    holders = max(1, ranks * parallel.tp // (parallel.ep * parallel.expert_tp))  # of the same experts
    bandwidth = site.bandwidth(ranks * parallel.tp)
    moved = others * (ranks - 1) / ranks + experts * (holders - 1) / holders
    reduce = (4 + task.element) * moved / bandwidth
    if parallel.overlap:
        reduce *= 1 - site.assume.overlapped
    # three states are read and written, and gradients read
    adam = 28 * (others / ranks + experts / holders) / (site.gpu.hbm * site.assume.hbm_efficiency)
    return reduce, adam
