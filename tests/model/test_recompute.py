"""Recomputation: equal to the bit with images and in layouts, in the bytes and the peak that the formula says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from megatron_omr.config import ComputeConfig, OptimConfig, ParallelConfig
from megatron_omr.dtypes import Precision
from tests.helpers.ranks import init_ranks, run_ranks
from tests.helpers.trainers import OPTIM, exported, random_micro_batches

pytestmark = pytest.mark.heavy

PLAIN, MLP, FULL = (ComputeConfig(recompute=recompute) for recompute in ("none", "mlp", "full"))
TOWER = replace(MLP, recompute_vision="full")
LAYOUTS = {
    "one process": (ParallelConfig(), 1),
    "tp2 sp": (ParallelConfig(tp=2, sp=True), 2),
    "pp2 vp2": (ParallelConfig(pp=2, vp=2), 2),
    "cp2": (ParallelConfig(cp=2), 2),
    "dp2 overlap": (ParallelConfig(overlap=True), 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recomputing_changes_no_bit(tiny_tied_hf: Path, layout: str) -> None:
    parallel, processes = LAYOUTS[layout]
    assert run_ranks(_equal, processes, str(tiny_tied_hf), parallel) == [[True, True, True]] * processes


def test_recomputing_under_frozen_parts_changes_no_bit(tiny_tied_hf: Path) -> None:
    """Megatron's checkpointed layers have gradients only where their input has one."""
    for parts in (("language",), ("vision", "projector")):
        optim = replace(OPTIM, freeze=parts)
        assert run_ranks(_equal, 1, str(tiny_tied_hf), ParallelConfig(), optim)[0] == [True, True, True]


def _equal(folder: str, parallel: ParallelConfig, optim: OptimConfig = OPTIM) -> list[bool]:
    """Returns for each mode whether two steps have the plain form's losses, entropies, norms, gradients and weights."""
    from megatron_omr.train.losses import LossOutput, sft_loss
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer

    ranks = init_ranks(parallel)

    def loss(logprobs_T: Any, entropy_T: Any, packed: Any) -> LossOutput:
        output = sft_loss(logprobs_T, entropy_T, packed)
        return replace(output, metrics={"entropy": (entropy_T.sum(), output.count)})

    def train(compute: ComputeConfig) -> tuple[list[Any], list[Any]]:
        trainer = build_trainer(folder, parallel, ranks, optim, precision="bf16", steps=8, compute=compute)
        values: list[Any] = []
        for seed in (1, 2):
            batches = random_micro_batches(trainer, parallel, seed=seed)
            result = train_step(trainer, [replace(b, loss=loss, with_entropy=True) for b in batches])
            values += [result.loss, result.grad_norm, result.metrics]
        gradients = [buffer.grad_data for chunk in trainer.chunks for buffer in chunk.buffers]
        return values, [*gradients, *exported(trainer).values()]

    values, tensors = train(PLAIN)
    assert not ranks.is_last_stage or values[2]["entropy"] > 0
    equal = []
    for compute in (MLP, FULL, TOWER):
        again, others = train(compute)
        equal.append(again == values and all(a.equal(b) for a, b in zip(others, tensors, strict=True)))
    return equal


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("tp", [1, 2])
def test_bytes_kept_are_those_of_the_formula(tiny_hf: Path, tp: int, precision: Precision) -> None:
    parallel = ParallelConfig(tp=tp, sp=tp > 1)
    for seen in run_ranks(_kept_bytes, tp, str(tiny_hf), parallel, precision):
        tokens, patches, layers = seen["tokens"], seen["patches"], seen["layers"]
        e = 2 if precision == "bf16" else 4
        hidden, ffn, head, patch_hidden, patch_ffn = 128, 256 // tp, 32, 64, 128 // tp
        plain = seen["plain"]
        assert plain["language"] - seen["mlp"]["language"] == layers * tokens * 3 * ffn * e
        assert seen["mlp"]["tower"] == plain["tower"] == seen["full"]["tower"]
        # the inputs of the layers, the table of angles in float32, and what the final norm keeps
        final_norm = (hidden * e + 4) * tokens // tp
        assert seen["full"]["language"] == layers * tokens * hidden * e // tp + tokens * 4 * head + final_norm
        # under sequence parallelism, too, the tower's patches are whole on each rank
        patch_norm = (patch_hidden * e + 4) * patches
        assert seen["tower"]["tower"] == 4 * patches * patch_hidden * e + patches * 4 * 16 + patch_norm
        assert plain["tower"] > 4 * patches * (3 * patch_ffn + 4 * patch_hidden) * e


def _kept_bytes(folder: str, parallel: ParallelConfig, precision: Precision) -> dict[str, Any]:
    """Returns what the decoders of language model and tower keep for their backward pass, by mode."""
    from megatron_omr.train.trainer import build_trainer, unwrap_chunks
    from tests.helpers.memory import saved_bytes

    ranks, seen = init_ranks(parallel), {}
    for name, compute in {"plain": PLAIN, "mlp": MLP, "full": FULL, "tower": TOWER}.items():
        trainer = build_trainer(folder, parallel, ranks, OPTIM, precision=precision, steps=8, compute=compute)
        (chunk,) = unwrap_chunks(trainer)
        pack = random_micro_batches(trainer, parallel, seed=1)[0].packed
        calls = _decoder_calls(chunk, pack)
        seen[name] = {part: saved_bytes(call, skip=chunk.parameters()) for part, call in calls.items()}
    return seen | {"tokens": pack.num_tokens, "patches": len(pack.pixels), "layers": 4}


def _decoder_calls(chunk: Any, pack: Any) -> dict[str, Callable[[], Any]]:
    """Returns calls of the two decoders with the inputs that they get in a forward pass over `pack`."""
    decoders = {"language": chunk.language_model.decoder, "tower": chunk.vision_model.decoder}
    calls: dict[str, Callable[[], Any]] = {}

    def keep(part: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(zip(("hidden_states", "attention_mask"), args, strict=False)) | kwargs
        named["hidden_states"] = named["hidden_states"].detach().requires_grad_()
        calls[part] = partial(module, **named)

    hooks = [
        decoder.register_forward_pre_hook(partial(keep, part), with_kwargs=True)
        for part, decoder in decoders.items()
    ]
    chunk(pack)
    for hook in hooks:
        hook.remove()
    return calls


def test_peak_of_backward_is_that_of_one_layer_and_the_inputs(tiny_hf: Path) -> None:
    (plain, plain_peak), (mlp, mlp_peak), (full, full_peak) = run_ranks(_peaks, 1, str(tiny_hf))[0]
    layer, mlp_of_layer = plain // 4, (plain - mlp) // 4  # what is made again, and then kept, at one time
    # beside what is kept there are gradients, which are alike, and the output of a recomputed MLP
    assert plain_peak - full_peak == pytest.approx(plain - full - layer, rel=0.1)
    assert plain_peak - mlp_peak == pytest.approx(plain - mlp - mlp_of_layer, rel=0.25)
    assert full_peak < mlp_peak < plain_peak


def _peaks(folder: str) -> list[tuple[int, int]]:
    """Returns what the language model's decoder keeps, and its peak in forward and backward, by mode."""
    import torch

    from megatron_omr.train.trainer import build_trainer, unwrap_chunks
    from tests.helpers.memory import peak_bytes, saved_bytes

    ranks, seen = init_ranks(ParallelConfig()), []
    for compute in (PLAIN, MLP, FULL):
        trainer = build_trainer(
            folder, ParallelConfig(), ranks, OPTIM, precision="bf16", steps=8, compute=compute
        )
        (chunk,) = unwrap_chunks(trainer)
        pack = random_micro_batches(trainer, ParallelConfig(), seed=1)[0].packed
        call = _decoder_calls(chunk, pack)["language"]
        kept = saved_bytes(call, skip=chunk.parameters())

        def both(call=call) -> None:
            out = call()
            torch.autograd.backward(out, out.detach())

        both()
        seen.append((kept, peak_bytes(both)))
    return seen
