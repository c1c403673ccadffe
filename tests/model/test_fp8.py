"""FP8: what is rounded, how, and where; the emulation on real layouts; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_omr.config import ComputeConfig, ParallelConfig
from tests.helpers.ranks import init_ranks, run_ranks
from tests.helpers.trainers import OPTIM, exported, random_micro_batches

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def rounded(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    from megatron_omr.model.fp8 import round_to_fp8

    return round_to_fp8(x, *args, **options)


def on_a_rank(check: Callable[[], None]) -> None:
    """Megatron is imported in a process of its own."""
    run_ranks(check, 1)


def _check_tensorwise() -> None:
    """As Transformer Engine's Float8CurrentScaling: one float32 scale takes the largest value to the format's."""
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    for dtype, highest in ((E4M3, 448.0), (E5M2, 57344.0)):
        scale = highest / x.abs().max()
        assert torch.allclose(rounded(x, dtype), (x * scale).to(dtype).float() / scale, rtol=1e-6, atol=0)
        assert rounded(x, dtype).abs().max() == pytest.approx(x.abs().max().item(), rel=1e-6)
    # e4m3 has 3 bits of mantissa: eighths between 1 and 2, if the scale is a power of two
    values = torch.tensor([[1.0, 1.06, 1.07, 1.1875, 1.19, -1.4, 448.0, 2**-9, 2**-11]])
    expected = [[1.0, 1.0, 1.125, 1.25, 1.25, -1.375, 448.0, 2**-9, 0.0]]
    assert rounded(values).tolist() == expected
    assert rounded(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


def _check_blocks() -> None:
    """An outlier costs precision in its own block alone; blocks at the end may be smaller; scales are powers of two."""
    x = torch.randn(200, 300, generator=torch.Generator().manual_seed(1))
    for rows, columns in ((1, 128), (128, 1), (128, 128), (1, 32)):
        expected = torch.empty_like(x)
        for i in range(0, 200, rows):
            for j in range(0, 300, columns):
                part = x[i : i + rows, j : j + columns]
                scale = 2.0 ** torch.floor(torch.log2(448 / part.abs().max()))
                expected[i : i + rows, j : j + columns] = (part * scale).to(E4M3).float() / scale
        assert torch.equal(rounded(x, block=(rows, columns), power_of_two=True), expected)
    spoilt = x.clone()
    spoilt[0, 0] = 1e6
    whole, blocks = (rounded(spoilt, block=block, power_of_two=True) for block in (None, (1, 128)))
    assert (whole[1:] == 0).float().mean() > 0.5
    assert torch.equal(blocks[1:], rounded(x, block=(1, 128), power_of_two=True)[1:])


def _check_products() -> None:
    """The three products of a layer are those of torch's own FP8 product, with the recipe's scales."""
    from megatron_omr.model.fp8 import RECIPES, _RoundedLinear

    generator = torch.Generator().manual_seed(2)
    x, w, g = (torch.randn(*shape, generator=generator) for shape in ((16, 1, 48), (32, 48), (16, 1, 32)))
    x.requires_grad_(), w.requires_grad_()
    y = _RoundedLinear.apply(x, w, RECIPES["tensorwise"])
    y.backward(g)
    assert x.grad is not None and w.grad is not None

    def product(a: torch.Tensor, a_type: torch.dtype, b: torch.Tensor, b_type: torch.dtype) -> torch.Tensor:
        scales = [torch.finfo(t).max / m.abs().max() for m, t in ((a, a_type), (b, b_type))]
        left, right = (m * scale for m, scale in zip((a, b), scales, strict=True))
        right = right.T.contiguous().T.to(b_type)  # as the kernels want it
        inverse = [1 / scale for scale in scales]
        return torch._scaled_mm(left.contiguous().to(a_type), right, *inverse, out_dtype=torch.float32)

    x_TK, w_NK, g_TN = x.detach()[:, 0], w.detach(), g[:, 0]
    for ours, theirs in (
        (y[:, 0], product(x_TK, E4M3, w_NK.T, E4M3)),
        (x.grad[:, 0], product(g_TN, E5M2, w_NK, E4M3)),
        (w.grad, product(g_TN.T, E5M2, x_TK, E4M3)),
    ):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("check", [_check_tensorwise, _check_blocks, _check_products])
def test_rounding(check: Callable[[], None]) -> None:
    on_a_rank(check)


def _first_steps(
    folder: str, parallel: ParallelConfig, computes: list[ComputeConfig]
) -> list[tuple[Any, ...]]:
    """Returns of each config: loss and gradient norm of two steps, emulated layers, and the exported weights' sum."""
    from megatron_omr.model.fp8 import count_emulated
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer, unwrap_chunks

    ranks, found = init_ranks(parallel), []
    for compute in computes:
        trainer = build_trainer(folder, parallel, ranks, OPTIM, precision="fp32", steps=8, compute=compute)
        steps = [train_step(trainer, random_micro_batches(trainer, parallel, seed=seed)) for seed in (1, 2)]
        chunks = unwrap_chunks(trainer)
        layers = [name for name, m in chunks[0].named_modules() if "_forward_impl" in vars(m)]
        assert len(layers) == sum(count_emulated(chunk) for chunk in chunks)
        weights = sum(float(t.double().sum()) for t in exported(trainer).values())
        found.append((*((s.loss, s.grad_norm) for s in steps), layers, weights, trainer.backends.fp8))
    return found


@pytest.fixture(scope="module")
def first_steps(tiny_hf: Path) -> dict[ComputeConfig | None, tuple[Any, ...]]:
    computes = [
        ComputeConfig(),
        ComputeConfig(fp8_bf16_layers=0),
        *(
            ComputeConfig(fp8=fp8, fp8_bf16_layers=n)
            for fp8 in ("tensorwise", "blockwise", "mxfp8")
            for n in (0, 1)
        ),
    ]
    (found,) = run_ranks(_first_steps, 1, str(tiny_hf), ParallelConfig(), computes)
    return dict(zip(computes, found, strict=True))


@pytest.mark.heavy
def test_off_changes_no_bit(first_steps: dict[ComputeConfig, tuple[Any, ...]]) -> None:
    off, also_off = first_steps[ComputeConfig()], first_steps[ComputeConfig(fp8_bf16_layers=0)]
    assert off == also_off and off[2] == [] and off[4] == "off"


@pytest.mark.heavy
@pytest.mark.parametrize("fp8", ["tensorwise", "blockwise", "mxfp8"])
def test_decoder_layers_round_and_no_others(
    first_steps: dict[ComputeConfig, tuple[Any, ...]], fp8: Any
) -> None:
    """Four linear layers in each of the four decoder layers, or the two inner ones: no tower, projector or output."""
    linears = ("mlp.linear_fc1", "mlp.linear_fc2", "self_attention.linear_proj", "self_attention.linear_qkv")
    for kept, numbers in ((0, (0, 1, 2, 3)), (1, (1, 2))):
        found = first_steps[ComputeConfig(fp8=fp8, fp8_bf16_layers=kept)]
        assert set(found[2]) == {
            f"language_model.decoder.layers.{n}.{linear}" for n in numbers for linear in linears
        }
        assert found[4] == f"{fp8}, emulated in float32 in {len(found[2])} linear layers"


@pytest.mark.heavy
@pytest.mark.parametrize(("fp8", "bound"), [("tensorwise", 0.03), ("blockwise", 0.03), ("mxfp8", 0.03)])
def test_first_losses_differ_a_little(
    first_steps: dict[ComputeConfig, tuple[Any, ...]], fp8: Any, bound: float
) -> None:
    (loss, norm), (next_loss, _), *_ = first_steps[ComputeConfig()]
    for kept in (0, 1):
        rounded, rounded_norm = first_steps[ComputeConfig(fp8=fp8, fp8_bf16_layers=kept)][0]
        after = first_steps[ComputeConfig(fp8=fp8, fp8_bf16_layers=kept)][1][0]
        assert 0 < abs(rounded - loss) < bound * loss
        assert 0 < abs(rounded_norm / norm - 1) < 0.2
        assert 0 < abs(after - next_loss) < bound * next_loss


def _train_and_save(
    folder: str, parallel: ParallelConfig, compute: ComputeConfig, out: str
) -> tuple[float, ...]:
    from megatron_omr.checkpoint.save import save_checkpoint
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer

    ranks = init_ranks(parallel)
    trainer = build_trainer(folder, parallel, ranks, OPTIM, precision="fp32", steps=8, compute=compute)
    first, second = (
        train_step(trainer, random_micro_batches(trainer, parallel, seed=seed)) for seed in (1, 2)
    )
    save_checkpoint(trainer, Path(out), step=2, state={}, template=folder, keep=1)
    if ranks.rank == 0:
        save_file(exported(trainer), f"{out}/weights.safetensors")
    else:
        exported(trainer)
    return first.loss, first.grad_norm, second.loss


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("parallel", "fp8"),
    [
        (ParallelConfig(tp=2, sp=True), "blockwise"),
        (ParallelConfig(tp=2), "tensorwise"),
        (ParallelConfig(pp=2), "tensorwise"),
    ],
    ids=["tp2 sp", "tp2", "pp2"],
)
def test_layouts_round_alike(
    tiny_hf: Path,
    tmp_path: Path,
    first_steps: dict[ComputeConfig, tuple[Any, ...]],
    parallel: ParallelConfig,
    fp8: Any,
) -> None:
    """Near to one process, which rounds with other scales where tensors are split; and nearer than to no rounding."""
    compute = ComputeConfig(fp8=fp8, fp8_bf16_layers=1)
    found = run_ranks(_train_and_save, 2, str(tiny_hf), parallel, compute, str(tmp_path))
    loss, norm, next_loss = found[-1]
    (alone, norm_alone), (next_alone, _), *_ = first_steps[compute]
    bound = 1e-6 if parallel.pp > 1 else 0.01
    assert loss == pytest.approx(alone, rel=bound)
    assert norm == pytest.approx(norm_alone, rel=max(bound, 1e-4) * 10)
    assert next_loss == pytest.approx(next_alone, rel=max(bound, 1e-4) * 10)


def _load(folder: str, checkpoint: str, computes: list[ComputeConfig]) -> list[bool]:
    """Returns for each config whether the weights loaded from the checkpoint are those that the run exported."""
    from megatron_omr.checkpoint.load import load_checkpoint
    from megatron_omr.train.trainer import build_trainer

    wanted = load_file(Path(checkpoint).with_name("weights.safetensors"))
    ranks, found = init_ranks(ParallelConfig()), []
    for compute in computes:
        trainer = build_trainer(
            folder, ParallelConfig(), ranks, OPTIM, precision="fp32", steps=8, compute=compute
        )
        load_checkpoint(trainer, Path(checkpoint))
        weights = exported(trainer)
        same = all(torch.equal(weights[name], tensor) for name, tensor in wanted.items())
        found.append(same and weights.keys() == wanted.keys())
    return found


@pytest.mark.heavy
def test_weights_of_an_fp8_run_load_without_it_and_back(tiny_hf: Path, tmp_path: Path) -> None:
    fp8, off = ComputeConfig(fp8="mxfp8"), ComputeConfig()
    run_ranks(_train_and_save, 1, str(tiny_hf), ParallelConfig(), fp8, str(tmp_path))
    checkpoint = str(tmp_path / "step-00000002")
    assert run_ranks(_load, 1, str(tiny_hf), checkpoint, [off, fp8]) == [[True, True]]
