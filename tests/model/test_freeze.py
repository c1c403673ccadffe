"""Frozen parts and parts with their own learning rate: bytes, weights, layouts, checkpoints; against torch's AdamW."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_omr.config import OptimConfig, ParallelConfig
from megatron_omr.model_config import Part
from tests.helpers.ranks import init_ranks, run_ranks
from tests.helpers.trainers import exported, random_micro_batches

pytestmark = pytest.mark.heavy

# gradients that rounding alone makes must not decide an update
OPTIM = OptimConfig(lr=1e-3, warmup_steps=1, weight_decay=0.1, eps=1e-4)
FROZEN: list[tuple[Part, ...]] = [
    (),
    ("vision",),
    ("vision", "projector"),
    ("language",),
    ("language", "vision"),
    ("language", "projector"),
]
OWN_LRS = replace(OPTIM, vision_lr=1e-4, projector_lr=5e-3)
# with the language model frozen, the last pipeline stage has nothing to train
OPTIMS = [OWN_LRS, replace(OPTIM, freeze=("language",)), replace(OPTIM, freeze=("vision", "projector"))]


def hf_part(name: str) -> Part:
    if "visual." not in name:
        return "language"
    return "projector" if "visual.merger." in name or "deepstack_merger" in name else "vision"


@pytest.mark.parametrize("tied", [False, True])
def test_frozen_parts_keep_their_weights_and_take_no_memory(
    tied: bool, request: pytest.FixtureRequest
) -> None:
    folder = str(request.getfixturevalue("tiny_tied_hf" if tied else "tiny_hf"))
    for parts, seen in zip(FROZEN, run_ranks(_measure_freezing, 1, folder)[0], strict=True):
        trained = {part for part in ("vision", "projector", "language") if part not in parts}
        assert seen["changed"] == trained
        # a parameter begins at a multiple of 64 elements, a buffer ends at one of 128
        padded = math.ceil(sum(math.ceil(n / 64) * 64 for n in seen["trained_numels"]) / 128) * 128
        assert seen["gradient_bytes"] == 4 * padded
        assert seen["optimizer_bytes"] == 2 * 4 * sum(seen["trained_numels"])
        tower_is_frozen = {"vision", "projector"} <= set(parts)
        assert (seen["tower_saved"] == 0) == tower_is_frozen


def _measure_freezing(folder: str) -> list[dict[str, Any]]:
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer, unwrap_chunks
    from tests.helpers.memory import saved_bytes

    parallel = ParallelConfig()
    ranks, seen = init_ranks(parallel), []
    for parts in FROZEN:
        optim = replace(OPTIM, freeze=parts, warmup_steps=0)
        trainer = build_trainer(folder, parallel, ranks, optim, precision="fp32", steps=8)
        (chunk,) = unwrap_chunks(trainer)
        before, batches = exported(trainer), random_micro_batches(trainer, parallel, seed=1)
        train_step(trainer, batches)
        changed = {hf_part(name) for name, t in exported(trainer).items() if not t.equal(before[name])}
        pack = batches[0].packed
        states = [t for state in trainer.optimizer.optimizer.state.values() for t in state.values()]
        seen.append(
            {
                "changed": changed,
                "trained_numels": [p.numel() for p in chunk.parameters() if p.requires_grad],
                "gradient_bytes": sum(buffer.grad_data.nbytes for buffer in trainer.chunks[0].buffers),
                "optimizer_bytes": sum(state.nbytes for state in states),
                "tower_saved": saved_bytes(
                    lambda tower=chunk.vision_model, pack=pack: tower(pack.pixels, pack.image_grid_thw),
                    skip=chunk.parameters(),
                ),
            }
        )
    return seen


@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(pp=2, vp=2),
        ParallelConfig(tp=2, sp=True),
        ParallelConfig(overlap=True),
    ],
    ids=["pp2 vp2", "tp2 sp", "dp2 overlap"],
)
def test_layouts_agree_on_frozen_parts(tiny_tied_hf: Path, parallel: ParallelConfig) -> None:
    (one,) = run_ranks(_train_frozen, 1, str(tiny_tied_hf), ParallelConfig())
    *_, last = run_ranks(_train_frozen, 2, str(tiny_tied_hf), parallel)
    for a, b in zip(one, last, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def _train_frozen(folder: str, parallel: ParallelConfig) -> list[list[float]]:
    """Returns loss, gradient norm and learning rate of two steps, for each of OPTIMS.

    After them the first weights compute the logprobs that they computed before, and the trained ones theirs.
    """
    from megatron_omr.swap.reference import Reference
    from megatron_omr.train.step import forward_logprobs, train_step
    from megatron_omr.train.trainer import build_trainer

    ranks, seen = init_ranks(parallel), []
    for optim in OPTIMS:
        trainer = build_trainer(folder, parallel, ranks, optim, precision="fp32", steps=8)
        reference, kept = (
            Reference(trainer.chunks),
            sum(b.param_data.nbytes for c in trainer.chunks for b in c.buffers),
        )
        assert reference.nbytes == kept
        batches = [random_micro_batches(trainer, parallel, seed=seed) for seed in (1, 2)]
        packs = [batch.packed for batch in batches[0]]
        first, results = forward_logprobs(trainer, packs), [train_step(trainer, step) for step in batches]
        moved = forward_logprobs(trainer, packs)
        with reference.swapped_in():
            again = forward_logprobs(trainer, packs)
        after = forward_logprobs(trainer, packs)
        assert all(torch.equal(old, frozen) for old, frozen in zip(first, again, strict=True))
        assert all(torch.equal(new, own) for new, own in zip(moved, after, strict=True))
        if first and optim is OWN_LRS:  # else text alone may not have changed
            assert not any(torch.equal(old, new) for old, new in zip(first, moved, strict=True))
        seen.append([value for r in results for value in (r.loss, r.grad_norm, r.lr)])
    return seen


@pytest.mark.parametrize("base", ["tiny_hf", "tiny_qwen3"])
@pytest.mark.parametrize(
    "optim", [OWN_LRS, replace(OPTIM, freeze=("language",), vision_lr=1e-4)], ids=["own rates", "frozen"]
)
def test_three_steps_equal_torch_adamw_with_groups(
    base: str, optim: OptimConfig, request: pytest.FixtureRequest
) -> None:
    folder = str(request.getfixturevalue(base))
    differences, lrs = run_ranks(_steps_beside_torch, 1, folder, optim)[0]
    assert lrs == pytest.approx([0, optim.lr, optim.lr * (1 + math.cos(math.pi / 7)) / 2])
    for name, difference in differences.items():
        # a step changes a weight by about its learning rate; the least difference of a weight of 1 is 1e-3 of 1e-4
        assert difference < 1e-2 * optim.own_lrs.get(hf_part(name), optim.lr), name


def _steps_beside_torch(folder: str, optim: OptimConfig) -> tuple[dict[str, float], list[float]]:
    """Returns the differences from transformers' weights after three steps of torch's AdamW, and the learning rates."""
    from megatron_omr.oracle import Oracle, draw_packs
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer

    parallel = ParallelConfig()
    trainer = build_trainer(folder, parallel, init_ranks(parallel), optim, precision="fp32", steps=8)
    results = [train_step(trainer, random_micro_batches(trainer, parallel, seed=s)) for s in (1, 2, 3)]
    lrs, oracle = [r.lr for r in results], Oracle(folder)
    adamw = _torch_adamw(oracle.weights(), optim)
    trained = [weight for group in adamw.param_groups for weight in group["params"]]
    for seed, lr in zip((1, 2, 3), lrs, strict=True):
        for group in adamw.param_groups:
            group["lr"] = lr * optim.own_lrs.get(group["part"], optim.lr) / optim.lr
        count = oracle.run(draw_packs(trainer.model, seed))
        for weight in trained:
            weight.grad /= count
        torch.nn.utils.clip_grad_norm_(trained, optim.clip_grad)
        adamw.step()
        for weight in oracle.weights().values():
            weight.grad = None
    ours, theirs = exported(trainer), oracle.weights()
    return {name: float((ours[name] - theirs[name]).detach().abs().max()) for name in theirs}, lrs


def _torch_adamw(weights: dict[str, torch.Tensor], optim: OptimConfig) -> torch.optim.AdamW:
    """Returns an optimizer of the parts that are trained, each weight a group with its part and decay."""
    groups = [
        {
            "params": [weight],
            "part": hf_part(name),
            "weight_decay": optim.weight_decay if weight.dim() > 1 else 0.0,
        }
        for name, weight in weights.items()
        if hf_part(name) not in optim.freeze
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps)


def test_resumed_run_keeps_frozen_parts_and_rates(tiny_hf: Path, tmp_path: Path) -> None:
    saved = run_ranks(_save, 2, str(tiny_hf), str(tmp_path), ParallelConfig(pp=2))
    for parallel in (ParallelConfig(pp=2), ParallelConfig(tp=2)):
        loaded = run_ranks(_resume, 2, str(tiny_hf), str(tmp_path), parallel)
        for number, optim in enumerate(OPTIMS):
            (_, before), (rates, after) = saved[-1][number], loaded[-1][number]
            assert rates == {optim.lr, *optim.own_lrs.values()}
            assert after == (before if parallel.pp == 2 else pytest.approx(before, rel=1e-5))


def _save(folder: str, run: str, parallel: ParallelConfig) -> list[tuple[set[float], list[float]]]:
    """Saves after a step, for each of OPTIMS, and makes two more; returns as _resume()."""
    ranks, places = init_ranks(parallel), [Path(run) / str(n) for n in range(len(OPTIMS))]
    cases = zip(places, OPTIMS, strict=True)
    return [_run(folder, place, parallel, ranks, optim, resume=False) for place, optim in cases]


def _resume(folder: str, run: str, parallel: ParallelConfig) -> list[tuple[set[float], list[float]]]:
    """Loads what _save() wrote, and makes two steps; returns the rates of the groups, and the steps' values."""
    ranks, places = init_ranks(parallel), [Path(run) / str(n) for n in range(len(OPTIMS))]
    cases = zip(places, OPTIMS, strict=True)
    return [_run(folder, place, parallel, ranks, optim, resume=True) for place, optim in cases]


def _run(
    folder: str, place: Path, parallel: ParallelConfig, ranks: Any, optim: OptimConfig, *, resume: bool
) -> tuple[set[float], list[float]]:
    from megatron_omr.checkpoint.load import load_newest
    from megatron_omr.checkpoint.save import save_checkpoint
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer

    trainer = build_trainer(folder, parallel, ranks, optim, precision="fp32", steps=8)

    def step(seed: int) -> list[float]:
        result = train_step(trainer, random_micro_batches(trainer, parallel, seed=seed))
        return [result.loss, result.grad_norm, result.lr]

    if resume:
        assert load_newest(trainer, place)[0] == 1
    else:
        step(1)
        save_checkpoint(trainer, place / "checkpoints", step=1, state={}, template=folder, keep=1)
    values = step(2) + step(3)
    weights = exported(trainer).values()
    values += [float(tensor.double().pow(2).sum()) for tensor in weights]
    return {group["max_lr"] for group in trainer.optimizer.param_groups}, values
