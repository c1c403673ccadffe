"""What computes the layers: the choice of backend by device and precision, FP8's needs, fused weight gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_omr.config import ComputeConfig, ParallelConfig
from megatron_omr.plan.shapes import published_shape
from tests.helpers.ranks import init_ranks, run_ranks
from tests.helpers.trainers import OPTIM

AUTO, LOCAL, TE = (ComputeConfig(backend=name) for name in ("auto", "local", "te"))
SHAPES = {size: published_shape(f"Qwen2.5-VL-{size}-Instruct") for size in ("3B", "7B", "32B", "72B")}


def _check_backends() -> None:
    from megatron_omr.model.spec import resolve_backend

    def resolve(
        compute: ComputeConfig, device: str, problem: str = "", precision: Any = "bf16", cp: int = 1
    ) -> str:
        return resolve_backend(compute, device=device, te_problem=problem, precision=precision, cp=cp)

    gone = "there is no CUDA device"
    assert [resolve(AUTO, "cpu", gone), resolve(LOCAL, "cpu", gone), resolve(AUTO, "meta", gone)] == [
        "local"
    ] * 3
    assert [resolve(AUTO, "cuda"), resolve(TE, "cuda"), resolve(LOCAL, "cuda", "OSError: x")] == [
        "te",
        "te",
        "local",
    ]
    assert [resolve(AUTO, "cuda", precision="fp32", cp=cp) for cp in (1, 2)] == ["local"] * 2
    refused = [
        (
            lambda: resolve(AUTO, "cuda", "OSError: x"),
            "OSError: x; install it .* or set compute.backend=local",
        ),
        (lambda: resolve(TE, "cpu", gone), f"compute.backend=te needs Transformer Engine here.*{gone}"),
        (lambda: resolve(TE, "cuda", precision="fp32", cp=2), "no attention in fp32 for parallel.cp=2"),
        (
            lambda: resolve(ComputeConfig(fp8="blockwise", backend="local"), "cuda"),
            "compute.fp8=blockwise runs in",
        ),
        (lambda: resolve(ComputeConfig(fp8="tensorwise"), "cuda", precision="fp32"), "with precision=bf16"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
    assert resolve(ComputeConfig(fp8="blockwise"), "cpu", gone) == "local"  # emulated


def _check_windows() -> None:
    """Windows have torch's attention unless Transformer Engine's is asked for."""
    from megatron_omr.model.attention import CoreAttention
    from megatron_omr.model.spec import choose_backend, choose_window_attention

    class OtherAttention:
        """In the place of Transformer Engine's, which does not load here."""

    local = choose_backend(LOCAL, precision="fp32")
    backend = replace(local, core_attention=OtherAttention)
    chosen = {
        (asked, has_windows): choose_window_attention(
            ComputeConfig(window_attention=asked), backend, has_windows=has_windows
        ).core_attention
        is CoreAttention
        for asked in ("auto", "local", "te")
        for has_windows in (True, False)
    }
    assert [key for key, is_local in chosen.items() if is_local] == [
        ("auto", True),
        ("local", True),
        ("local", False),
    ]
    with pytest.raises(ValueError, match="compute.window_attention=auto"):
        choose_window_attention(ComputeConfig(window_attention="te"), local, has_windows=True)


def _check_hardware() -> None:
    """As Transformer Engine 2.11's check_fp8_support, check_fp8_block_scaling_support and check_mxfp8_support."""
    from megatron_omr.model.fp8 import find_fp8_problem

    ada, hopper, blackwell, consumer, cuda = (8, 9), (9, 0), (10, 0), (12, 0), (13, 0)
    runs = {
        (recipe, gpu): not find_fp8_problem(recipe, gpu, cuda, "2.11.0")
        for recipe in ("tensorwise", "blockwise", "mxfp8")
        for gpu in ((8, 0), ada, hopper, blackwell, consumer)
    }
    allowed = {("tensorwise", gpu) for gpu in (ada, hopper, blackwell, consumer)}
    allowed |= {
        ("blockwise", hopper),
        ("blockwise", blackwell),
        ("blockwise", consumer),
        ("mxfp8", blackwell),
    }
    assert {case for case, good in runs.items() if good} == allowed
    assert find_fp8_problem("mxfp8", hopper, cuda, "2.11.0").endswith("compute capability 9.0")
    assert "needs CUDA 12.9" in find_fp8_problem("blockwise", hopper, (12, 8), "2.11.0")
    assert "needs Transformer Engine 2.3" in find_fp8_problem("blockwise", hopper, cuda, "2.2.0")


def _check_fields() -> None:
    """Megatron takes them, and keeps the layers at both ends in BF16."""
    from megatron.core.fp8_utils import is_first_last_bf16_layer
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_omr.model.fp8 import build_fp8_fields, megatron_fields

    formats = {"tensorwise": "hybrid", "blockwise": "e4m3", "mxfp8": "e4m3"}
    for fp8, expected in formats.items():
        config = TransformerConfig(
            num_layers=6, hidden_size=64, num_attention_heads=4, bf16=True, **megatron_fields(fp8, 2)
        )
        assert (config.fp8, config.fp8_recipe) == (expected, fp8)
        assert not config.fp8_param and not config.fp8_dot_product_attention
        assert [is_first_last_bf16_layer(config, n) for n in range(6)] == [
            True,
            True,
            False,
            False,
            True,
            True,
        ]
        assert (
            build_fp8_fields(fp8, 2) == {}
        )  # without a GPU Megatron would compute without FP8, and say nothing
    assert megatron_fields("off", 1) == {}


def _check_fusion() -> None:
    """Without the module "auto" does without, and "on" names it."""
    from megatron_omr import cpu

    assert not cpu.fuses_weight_gradients("auto") and not cpu.fuses_weight_gradients("off")
    with pytest.raises(
        ValueError, match="compute.wgrad_fusion=on, and there is no GPU.*not `pip install apex`"
    ):
        cpu.fuses_weight_gradients("on")
    import torch

    torch.cuda.is_available = lambda: True
    assert not cpu.fuses_weight_gradients("auto")
    with pytest.raises(ValueError, match="the module fused_weight_gradient_mlp_cuda of apex is not built"):
        cpu.fuses_weight_gradients("on")


@pytest.mark.heavy
@pytest.mark.parametrize(
    "check", [_check_backends, _check_windows, _check_hardware, _check_fields, _check_fusion]
)
def test_choice(check: Any) -> None:
    run_ranks(check, 1)


def test_tail_of_a_pack_fits_the_recipe() -> None:
    """16 rows of a rank for the product over tokens; blocks of 128 where they are gathered; 32 for MXFP8."""
    plain, sp, cp = ParallelConfig(), ParallelConfig(tp=4, sp=True), ParallelConfig(tp=2, cp=2, sp=True)
    multiples = {
        fp8: [layout.pack_multiple(ComputeConfig(fp8=fp8).alignment(layout)) for layout in (plain, sp, cp)]
        for fp8 in ("off", "tensorwise", "blockwise", "mxfp8")
    }
    assert multiples == {
        "off": [1, 4, 4],
        "tensorwise": [16, 64, 64],
        "blockwise": [16, 512, 512],
        "mxfp8": [32, 128, 128],
    }


def test_layers_of_published_models_fit() -> None:
    """72B at tp 8 has a width of 3,696: a multiple of 16, not of 32. Blocks at its end are smaller."""
    for size, tp in (("3B", 2), ("7B", 4), ("32B", 8), ("72B", 4), ("72B", 8)):
        for fp8 in ("tensorwise", "blockwise"):
            ComputeConfig(fp8=fp8).check_model(SHAPES[size], ParallelConfig(tp=tp, sp=True))
    ComputeConfig(fp8="mxfp8").check_model(SHAPES["72B"], ParallelConfig(tp=4, sp=True))
    with pytest.raises(
        ValueError, match=r"fp8=mxfp8 .* multiples of 32, and intermediate_size / tp is 3696 .*tp=8"
    ):
        ComputeConfig(fp8="mxfp8").check_model(SHAPES["72B"], ParallelConfig(tp=8, sp=True))


def test_a_layer_must_be_left_for_fp8() -> None:
    with pytest.raises(ValueError, match="compute.fp8_bf16_layers=14 must be at most 13: 28 layers"):
        ComputeConfig(fp8="tensorwise", fp8_bf16_layers=14).check_model(SHAPES["7B"], ParallelConfig())
    with pytest.raises(ValueError, match="compute.fp8_bf16_layers=8 must be at most 7"):
        ComputeConfig(fp8="tensorwise", fp8_bf16_layers=8).check_model(SHAPES["7B"], ParallelConfig(pp=4))
    ComputeConfig(fp8_bf16_layers=99).check_model(SHAPES["7B"], ParallelConfig())  # off


def _describe(folder: str) -> str:
    from megatron_omr.train.trainer import build_trainer

    ranks = init_ranks(ParallelConfig())
    return build_trainer(folder, ParallelConfig(), ranks, OPTIM, precision="fp32", steps=8).backends.line()


@pytest.mark.heavy
def test_one_line_names_what_computes(tiny_hf: Any) -> None:
    assert run_ranks(_describe, 1, str(tiny_hf)) == [
        "backends: linear: Megatron-Core, attention: Megatron-OMR, window attention: Megatron-OMR, norm: Megatron-OMR, "
        "optimizer: GroupStepAdam of Megatron-OMR, multi tensor: Megatron-Core, weight gradients: not fused, "
        "fp8: off, transformer engine: not used, there is no CUDA device"
    ]
