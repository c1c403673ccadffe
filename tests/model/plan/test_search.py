"""Memory, time and search of whole plans, against figures computed elsewhere and the FLOPs of training."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_omr.config import ComputeConfig, ParallelConfig
from megatron_omr.flops import recomputed_flops, train_step_flops
from megatron_omr.plan.config import AssumeConfig, ClusterConfig
from megatron_omr.plan.duration import StepTime
from megatron_omr.plan.gpus import GIB, GPUS
from megatron_omr.plan.search import Plan, plan_layout, search
from megatron_omr.plan.shapes import published_shape
from megatron_omr.plan.task import Layout, Task, count_work

CLUSTER = ClusterConfig()
IDEAL = AssumeConfig(
    language_efficiency=1, attention_efficiency=1, vision_efficiency=1, response_std=0, images=1
)
ALL_AGAIN = ComputeConfig(recompute="full", recompute_vision="full")


def make_task(name: str = "7B", *, samples: int = 2_048, **changes) -> Task:
    work = count_work(
        samples=samples, response=(675, 0), question=97, image_pixels=448**2, images=1, token_side=28
    )
    task = Task(
        name=name,
        model=published_shape(f"Qwen2.5-VL-{name}-Instruct"),
        precision="bf16",
        freeze=(),
        pack_tokens=61_440,
        max_pixels=4_194_304,
        work=work,
        steps=1,
        with_entropy=False,
    )
    return replace(task, **changes)


def plan(
    parallel: ParallelConfig,
    compute: ComputeConfig = ALL_AGAIN,
    *,
    task: Task | None = None,
    cluster: ClusterConfig = CLUSTER,
    assume: AssumeConfig = IDEAL,
) -> Plan:
    layout = Layout(parallel=parallel, compute=compute)
    return plan_layout(task or make_task(), layout, ranks=cluster.num_gpus, cluster=cluster, assume=assume)


def test_work_is_that_of_the_samples() -> None:
    work = make_task(samples=10).work
    assert (work.images, work.image_side, work.patches) == (10, 32, 10 * 32 * 32)
    assert work.tokens == 10 * (97 + 256 + 675)
    assert work.effective_length == 97 + 256 + 675  # all are equal


def test_static_memory_of_7b_is_what_was_computed_by_hand() -> None:
    """24.9 GB at tp4 cp2 on 8 GPUs: 2 + 4 + 12 / 2 bytes for each of 2.07 G parameters."""
    (parts,) = plan(ParallelConfig(tp=4, cp=2, sp=True)).memory
    assert parts.weights + parts.gradients + parts.optimizer == pytest.approx(24.9e9, rel=2e-3)


def test_reference_costs_a_forward_pass_and_on_the_gpu_its_weights() -> None:
    layout = ParallelConfig(tp=4, cp=2, sp=True)
    without = plan(layout)
    for place, copies in (("host", 1), ("device", 2)):
        found = plan(layout, task=make_task(reference=place))
        assert found.memory[0].weights == copies * without.memory[0].weights
        assert found.time.score == pytest.approx(without.time.compute / 3)  # of forward and backward


def test_logits_are_kept_with_their_gradient() -> None:
    (parts,) = plan(ParallelConfig(tp=4, cp=2, sp=True)).memory
    assert parts.logits == pytest.approx(2 * 2 * 30_720 * 152_064 / 4, rel=0.1)


def test_compute_is_the_flops_of_training() -> None:
    time, work = plan(ParallelConfig()).time, make_task().work
    lens, grids = [1_028] * 2_048, [(1, 32, 32)] * 2_048
    model, peak = make_task().model, 8 * GPUS["h100"].peak
    again = recomputed_flops(model, lens, grids, language="full", vision="full")
    assert time.compute * peak == pytest.approx(train_step_flops(model, lens, grids), rel=1e-3)
    assert time.recompute * peak == pytest.approx(again, rel=1e-6)
    assert time.mfu * time.total * peak == pytest.approx(train_step_flops(model, lens, grids), rel=1e-6)
    assert work.tokens == sum(lens)


def test_frozen_tower_has_no_backward_pass_and_no_activations() -> None:
    task = make_task()
    frozen = replace(task, freeze=("vision", "projector"))
    whole, part = plan(ParallelConfig(), task=task), plan(ParallelConfig(), task=frozen)
    assert part.memory[0].tower == 0 < whole.memory[0].tower
    assert part.memory[0].gradients < whole.memory[0].gradients
    assert part.memory[0].weights == pytest.approx(whole.memory[0].weights, rel=1e-6)
    assert part.time.compute < whole.time.compute and part.time.recompute < whole.time.recompute


def test_bubble_is_the_pipelines() -> None:
    time = plan(ParallelConfig(pp=4, cp=2), cluster=ClusterConfig(nodes=1)).time
    packs = plan(ParallelConfig(pp=4, cp=2)).micro_batches
    assert time.bubble == pytest.approx(3 / (packs + 3), rel=0.01)


def test_a100_computes_as_much_slower_as_its_peak_says() -> None:
    ratio = GPUS["h100"].peak / GPUS["a100"].peak
    slow, fast = (plan(ParallelConfig(), cluster=ClusterConfig(gpu=gpu)).time for gpu in ("a100", "h100"))
    assert slow.compute / fast.compute == pytest.approx(ratio)


def test_overlap_hides_communication_and_recomputation_costs_time() -> None:
    nodes = ClusterConfig(nodes=4)
    layout = ParallelConfig(tp=2, sp=True)
    plain, hidden = (
        plan(replace(layout, overlap=overlap), cluster=nodes).time.data_parallel for overlap in (False, True)
    )
    assert hidden == pytest.approx(0.2 * plain)
    kept = plan(layout, ComputeConfig(), cluster=nodes)
    mlp = plan(layout, ComputeConfig(recompute="mlp"), cluster=nodes)
    full = plan(layout, ComputeConfig(recompute="full"), cluster=nodes)
    assert kept.time.total < mlp.time.total < full.time.total
    assert kept.peak_gib > mlp.peak_gib > full.peak_gib


def test_fp8_speeds_up_the_linear_layers_and_keeps_copies_of_their_weights() -> None:
    layout = ParallelConfig(tp=2, sp=True)
    plain, fp8 = (plan(layout, ComputeConfig(fp8=name, fp8_bf16_layers=0)) for name in ("off", "tensorwise"))
    assert plain.time.compute / 1.3 < fp8.time.compute < plain.time.compute
    linear = 28 * 233_057_792 / 2  # elements of 7B's layers, norms included
    assert fp8.memory[0].buffers - plain.memory[0].buffers == pytest.approx(2 * linear, rel=1e-3)


@pytest.mark.parametrize(("fp8", "gpu"), [("blockwise", "a100"), ("tensorwise", "a800"), ("mxfp8", "h200")])
def test_fp8_is_refused_where_the_gpu_lacks_it(fp8, gpu) -> None:
    with pytest.raises(ValueError, match=f"compute.fp8={fp8} does not run on cluster.gpu={gpu}; use"):
        plan(ParallelConfig(), ComputeConfig(fp8=fp8), cluster=ClusterConfig(gpu=gpu))


def find(task: Task, cluster: ClusterConfig) -> list[Plan]:
    start = Layout(parallel=ParallelConfig(), compute=ComputeConfig())
    return search(task, start, ranks=cluster.num_gpus, cluster=cluster, assume=AssumeConfig())


def test_search_lists_legal_layouts_from_the_fastest_with_the_least_recomputation() -> None:
    found = find(make_task(), CLUSTER)
    seconds = [p.time.total for p in found]
    assert seconds == sorted(seconds)
    assert len({p.layout.parallel for p in found}) == len(found)
    assert {p.layout.parallel.tp for p in found} == {1, 2, 4}, "7B has four key-value heads"
    best = next(p for p in found if not p.problem)
    for compute in (ComputeConfig(), ComputeConfig(recompute="mlp"), ALL_AGAIN):
        other = plan(best.layout.parallel, compute, assume=AssumeConfig())
        assert other.problem or other.time.total >= best.time.total


def test_search_says_what_is_missing() -> None:
    found = find(make_task("72B"), CLUSTER)
    assert all(p.problem for p in found), "72B does not train on 8 GPUs"
    for p in found:
        over = p.peak_gib - GPUS["h100"].memory_gib
        assert f"needs {over:.1f} GiB more; most of it: " in p.problem


def test_more_machines_hold_less_each() -> None:
    one, four = (plan(ParallelConfig(tp=4, sp=True), cluster=ClusterConfig(nodes=n)) for n in (1, 4))
    assert four.memory[0].optimizer == pytest.approx(one.memory[0].optimizer / 4, rel=1e-3)
    assert four.memory[0].reserve == AssumeConfig().reserve_gib * GIB


def test_total_is_the_sum_of_the_phases() -> None:
    time = plan(ParallelConfig(tp=2, pp=2, cp=2, sp=True)).time
    assert isinstance(time, StepTime)
    assert time.total == pytest.approx(
        time.compute
        + time.recompute
        + time.tensor_parallel
        + time.context_parallel
        + time.pipeline
        + time.data_parallel
        + time.optimizer
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("vision_efficiency", 2), ("max_image_share", -1), ("sync_gbytes", 0), ("response_tokens", 0)],
)
def test_impossible_assumptions_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"assume.{field}={value} must"):
        AssumeConfig(**{field: value})
