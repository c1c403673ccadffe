"""Times our training step on one GPU in BF16 and in each FP8 recipe, and transformers' beside it, at 3B's shapes.

    python -m benchmarks.gpu_train                    one GPU; all layers where memory allows
    python -m benchmarks.gpu_train --tiny             the whole script at a tiny size, on any machine

Weights are random; samples have the lengths of the SFT recipe. Every case runs in this one process, one after the
other, with the same samples. Model FLOPs utilisation is given where the device's peak is known, of the BF16 peak, and
for FP8 of the FP8 peak too. transformers gets BF16 weights and moments, its fastest attention here, torch's fused
AdamW, and its samples sorted by length, so that little is padded.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.environment import write_card, write_result
from benchmarks.gpu_plan import plan_step
from benchmarks.gpu_samples import draw_samples
from data_pipeline.encode.images import normalise
from data_pipeline.loader.packing import merge
from data_pipeline.types import Example
from megatron_omr import cpu, parallel
from megatron_omr.config import ComputeConfig, OptimConfig, ParallelConfig
from megatron_omr.dtypes import Precision
from megatron_omr.flops import peak_flops, train_step_flops
from megatron_omr.model.build import build_model
from megatron_omr.model_config import ModelConfig
from megatron_omr.parallel import Ranks
from megatron_omr.plan.shapes import CONFIGS
from megatron_omr.train.backends import name_backends
from megatron_omr.train.losses import sft_loss
from megatron_omr.train.optimizer import build_optimizer, wrap_chunks
from megatron_omr.train.step import MicroBatch, train_step
from megatron_omr.train.trainer import Trainer, unwrap_chunks

OPTIM = OptimConfig(lr=1e-5, schedule="constant", warmup_steps=0, clip_grad=1.0)
RESERVE_GIB = 8
"""For CUDA, workspaces, and what is lost between blocks."""
GPU_CASES = {
    "fp8 off": ComputeConfig(),
    "fp8 off, Transformer Engine's attention for windows": ComputeConfig(window_attention="te"),
    "fp8 off, all recomputed": ComputeConfig(recompute="full", recompute_vision="full"),
    "fp8 tensorwise": ComputeConfig(fp8="tensorwise"),
    "fp8 blockwise": ComputeConfig(fp8="blockwise"),
    "fp8 mxfp8": ComputeConfig(fp8="mxfp8"),
    "fp8 tensorwise, all recomputed": ComputeConfig(
        fp8="tensorwise", recompute="full", recompute_vision="full"
    ),
    "fp8 blockwise, all recomputed": ComputeConfig(
        fp8="blockwise", recompute="full", recompute_vision="full"
    ),
}
TRANSFORMERS = "transformers"


@dataclass(frozen=True, kw_only=True)
class Size:
    """The work of one step, and how often it is timed."""

    name: str
    folder: Path
    layers: int
    num_tokens: int
    longest: int
    image_side: int
    steps: int
    warmup: int
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One case on one set of samples."""

    seconds: float  # a step, median
    tokens_per_second: float
    tflops: float
    peak_gib: float | None  # of the device's memory, None where it is not counted
    planned_gib: dict[str, float] | None = None  # what `omr plan` expects of it, by part
    mfu: float | None = None  # of the BF16 peak
    mfu_fp8: float | None = None  # of the FP8 peak, for FP8
    phases: dict[str, float] | None = None  # seconds, in steps of their own
    backends: str = ""


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Measures, prints, writes the result as JSON, and returns it."""
    options = parse_options(sys.argv[1:] if argv is None else argv)
    with tempfile.TemporaryDirectory() as scratch:
        size = choose_size(options, Path(scratch))
        shape = replace(ModelConfig.from_hf(size.folder), num_layers=size.layers)
        ranks = parallel.initialize(
            ParallelConfig(), rank=0, world_size=1, init_method=f"file://{scratch}/rendezvous", seed=0
        )
        result: dict[str, object] = {
            "device": cpu.device_name(),
            "size": asdict(size) | {"folder": size.name},
        }
        for kind in options.samples:
            side = size.image_side if kind == "images" else 0
            samples = draw_samples(shape, num_tokens=size.num_tokens, longest=size.longest, image_side=side)
            result[kind] = measure_all(size, shape, ranks, samples, options.cases)
            save(result, options.out)  # time on a GPU may end before the other kind has
        parallel.shutdown()
    return result


def save(result: dict[str, object], out: Path | None) -> None:
    """Writes the result to `out`, or among the benchmarks' results."""
    if out:
        write_card(out, result)
    else:
        write_result("gpu_train" if cpu.device() == "cuda" else "gpu_train_tiny", result)


def parse_options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model; nothing is learned of its speed")
    parser.add_argument("--model", default="Qwen2.5-VL-3B-Instruct", help="a published shape")
    parser.add_argument("--layers", type=int, default=0, help="of the language model; 0: as many as fit")
    parser.add_argument("--tokens", type=int, default=8_192, help="in a step")
    parser.add_argument("--steps", type=int, default=5, help="timed of each case")
    parser.add_argument(
        "--cases", nargs="+", choices=[*GPU_CASES, TRANSFORMERS], default=[*GPU_CASES, TRANSFORMERS]
    )
    parser.add_argument("--samples", nargs="+", choices=["images", "text"], default=["images", "text"])
    parser.add_argument("--out", type=Path, help="file of the result; default: benchmarks/results")
    options = parser.parse_args(argv)
    if cpu.device() != "cuda" and not options.tiny:
        parser.error("there is no GPU: --tiny runs the script at a tiny size")
    return options


def choose_size(options: argparse.Namespace, scratch: Path) -> Size:
    """Returns the published shape with as many layers as memory holds, or a tiny one."""
    if options.tiny:
        from megatron_omr.tiny import create_tiny_model

        create_tiny_model(scratch / "tiny", ["What is 1 plus 1? 2"] * 50)
        layers = ModelConfig.from_hf(scratch / "tiny").num_layers
        precision: Precision = "bf16" if cpu.device() == "cuda" else "fp32"
        return Size(
            name="tiny",
            folder=scratch / "tiny",
            layers=layers,
            num_tokens=512,
            longest=256,
            image_side=2,
            steps=1,
            warmup=1,
            precision=precision,
        )
    folder = CONFIGS / options.model
    work = {"num_tokens": options.tokens, "longest": 8_192, "image_side": 16}
    layers = options.layers or count_layers_that_fit(
        ModelConfig.from_hf(folder),
        [GPU_CASES[name] for name in options.cases if name != TRANSFORMERS],
        torch.cuda.get_device_properties(0).total_memory,
        **work,
    )
    return Size(
        name=options.model,
        folder=folder,
        layers=layers,
        **work,
        steps=options.steps,
        warmup=2,
        precision="bf16",
    )


def count_layers_that_fit(
    model: ModelConfig, cases: Sequence[ComputeConfig], num_bytes: int, **work: int
) -> int:
    """Returns the layers with which all cases fit the GPU's memory by the plan; `work` as of draw_samples."""
    samples = draw_samples(model, **work)
    room = num_bytes / 2**30 - RESERVE_GIB

    def fits(layers: int) -> bool:
        shape = replace(model, num_layers=layers)
        return all(plan_step(shape, compute, samples, "bf16")["total"] <= room for compute in cases)

    return next((layers for layers in range(model.num_layers, 3, -1) if fits(layers)), 3)


def measure_all(
    size: Size, shape: ModelConfig, ranks: Ranks, samples: Sequence[Example], names: Sequence[str]
) -> dict[str, object]:
    """Returns the named cases, and the ratios to each other, on these samples."""
    grids = [sample.image_grid_thw.tolist() for sample in samples]
    flops = train_step_flops(shape, [len(s) for s in samples], [tuple(g) for grid in grids for g in grid])
    found: dict[str, object] = {"samples": len(samples), "tokens": sum(map(len, samples)), "flops": flops}
    cases: dict[str, object] = {}
    seconds: dict[str, float] = {}
    for name in names:
        if name == TRANSFORMERS:
            continue
        compute = GPU_CASES[name]
        try:
            measured = measure_ours(size, shape, ranks, samples, compute, flops)
        except (
            ValueError,
            torch.OutOfMemoryError,
        ) as refusal:  # this hardware, or a part that is not installed
            cases[name] = {"refused": str(refusal)}
            print(f"{name}: {refusal}", flush=True)
            continue
        cases[name], seconds[name] = asdict(measured), measured.seconds
        emulated = compute.fp8 != "off" and cpu.device() != "cuda"
        print(describe_case(f"{name}, emulated" if emulated else name, measured), flush=True)
    found |= {
        "ours": cases,
        "times_speed_without_fp8": {
            name: round(seconds["fp8 off"] / s, 3) for name, s in seconds.items() if "fp8 off" in seconds
        },
    }
    if TRANSFORMERS not in names:
        return found
    theirs, attention = measure_transformers(size, samples, flops)
    print(describe_case(f"transformers, {attention}", theirs), flush=True)
    return found | {
        "transformers": asdict(theirs) | {"attention": attention},
        "times_transformers_speed": {name: round(theirs.seconds / s, 3) for name, s in seconds.items()},
    }


def free_memory() -> None:
    """Returns the memory of the case before, whose objects refer to each other, to the device."""
    gc.collect()
    if cpu.device() == "cuda":
        torch.cuda.empty_cache()


def describe_case(name: str, measured: Measured) -> str:
    utilisation = (
        "no MFU: the device's peak is not known" if measured.mfu is None else f"{measured.mfu:.1%} MFU"
    )
    memory = "" if measured.peak_gib is None else f", {measured.peak_gib:.1f} GiB"
    if measured.planned_gib is not None:
        memory += f", {measured.planned_gib['total']:.3g} GiB planned"
    return (
        f"{name}: {measured.seconds:.3f} s, {measured.tokens_per_second:,.0f} tokens/s, {utilisation}{memory}"
    )


def measure_ours(
    size: Size,
    shape: ModelConfig,
    ranks: Ranks,
    samples: Sequence[Example],
    compute: ComputeConfig,
    flops: float,
) -> Measured:
    """Times our step; then, in steps of their own, its phases with Megatron's timers, which wait for the GPU."""
    free_memory()
    trainer = build_random_trainer(size, shape, ranks, compute)
    rows = ParallelConfig().pack_multiple(compute.alignment(ParallelConfig()))
    batch = [MicroBatch(packed=merge(samples, pack_multiple=rows, pad_token_id=0), loss=sft_loss)]
    measured = time_step(size, lambda: train_step(trainer, batch), samples, flops, fp8=compute.fp8 != "off")
    return replace(
        measured,
        phases=time_phases(trainer, batch),
        planned_gib=plan_step(shape, compute, samples, size.precision),
        backends=trainer.backends.line(),
    )


def build_random_trainer(size: Size, shape: ModelConfig, ranks: Ranks, compute: ComputeConfig) -> Trainer:
    """Returns a trainer as build_trainer does, with random weights instead of a folder's."""
    chunks = build_model(shape, ParallelConfig(), ranks, precision=size.precision, compute=compute)
    with torch.no_grad():
        for chunk in chunks:
            for name, parameter in chunk.named_parameters():
                norm = "norm" in name and name.endswith("weight")
                parameter.fill_(1.0) if norm else parameter.normal_(std=0.02)
    wrapped = wrap_chunks(chunks)
    optimizer, scheduler = build_optimizer(wrapped, OPTIM, steps=1_000)
    backends = name_backends(chunks, optimizer, compute)
    return Trainer(
        model=shape,
        parallel=ParallelConfig(),
        ranks=ranks,
        chunks=wrapped,
        optimizer=optimizer,
        scheduler=scheduler,
        backends=backends,
    )


def time_step(
    size: Size, step: Callable[[], object], samples: Sequence[Example], flops: float, *, fp8: bool = False
) -> Measured:
    """Returns the median of the timed steps, after those that warm up."""
    on_gpu = cpu.device() == "cuda"
    seconds = []
    for number in range(size.warmup + size.steps):
        if on_gpu and number == size.warmup:
            torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        started = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[size.warmup :])
    peak = peak_flops(cpu.device_name())
    return Measured(
        seconds=median,
        tokens_per_second=sum(map(len, samples)) / median,
        tflops=flops / median / 1e12,
        peak_gib=torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        mfu=None if peak is None else flops / median / peak,
        mfu_fp8=None if peak is None or not fp8 else flops / median / (2 * peak),
    )


def time_phases(trainer: Trainer, batch: Sequence[MicroBatch]) -> dict[str, float]:
    """Returns seconds of forward, backward and the rest of a step: optimizer, clipping and gradient reduction."""
    from megatron.core.timers import Timers  # behind megatron_omr, which prepares for it

    (chunk,) = cast("list[Any]", unwrap_chunks(trainer))
    timers = Timers(log_level=2, log_option="max")
    chunk.config.timers = timers
    try:
        torch.cuda.synchronize()
        started = time.perf_counter()
        train_step(trainer, batch)
        torch.cuda.synchronize()
        whole = time.perf_counter() - started
    finally:
        chunk.config.timers = None
    forward, backward = (timers(name).elapsed(reset=True) for name in ("forward-compute", "backward-compute"))
    return {"forward": forward, "backward": backward, "rest": whole - forward - backward}


def measure_transformers(size: Size, samples: Sequence[Example], flops: float) -> tuple[Measured, str]:
    """Times transformers' model; returns the attention that it used, too."""
    free_memory()
    model, attention = build_transformers(size)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=OPTIM.lr, weight_decay=0.0, fused=cpu.device() == "cuda"
    )
    patches = ModelConfig.from_hf(size.folder).family.patches
    batches = [pad(group, model.config.image_token_id) for group in group_by_length(samples, size.longest)]
    num_learned = sum(float((s.loss_mask > 0).sum()) for s in samples)

    def step() -> None:
        optimizer.zero_grad()
        for batch in batches:
            inputs = {name: value.to(cpu.device()) for name, value in batch.items()}
            if "pixel_values" in inputs:
                inputs["pixel_values"] = normalise(inputs["pixel_values"], patches).to(model.dtype)
            model(**inputs, num_items_in_batch=num_learned).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_grad)
        optimizer.step()

    return time_step(size, step, samples, flops), attention


def build_transformers(size: Size) -> tuple[Any, str]:
    """Returns transformers' model with random weights, and its attention: flash-attention where it is installed."""
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.utils import is_flash_attn_2_available

    attention = "flash_attention_2" if is_flash_attn_2_available() else "sdpa"
    config = AutoConfig.from_pretrained(size.folder)
    config.text_config.num_hidden_layers = size.layers
    if hasattr(config.text_config, "layer_types"):
        config.text_config.layer_types = config.text_config.layer_types[: size.layers]
    dtype = torch.bfloat16 if size.precision == "bf16" else torch.float32
    with torch.device(cpu.device()):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
    return model.train(), attention


def group_by_length(samples: Sequence[Example], num_tokens: int) -> list[list[Example]]:
    """Returns the samples from long to short, in groups of at most `num_tokens` tokens with their padding."""
    groups: list[list[Example]] = []
    for sample in sorted(samples, key=len, reverse=True):
        if groups and len(groups[-1][0]) * (len(groups[-1]) + 1) <= num_tokens:
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return groups


def pad(samples: Sequence[Example], image_token_id: int) -> dict[str, torch.Tensor]:
    """Returns transformers' usual inputs: one row a sample, padded at its end."""
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence([s.input_ids for s in samples], batch_first=True)
    learned = pad_sequence([s.loss_mask for s in samples], batch_first=True)
    inputs = {
        "input_ids": ids,
        "attention_mask": pad_sequence([torch.ones_like(s.input_ids) for s in samples], batch_first=True),
        "labels": ids.masked_fill(learned == 0, -100),
    }
    if any(len(s.image_grid_thw) for s in samples):
        inputs |= {
            "pixel_values": torch.cat([s.pixels for s in samples]),
            "image_grid_thw": torch.cat([s.image_grid_thw for s in samples]),
            "mm_token_type_ids": (ids == image_token_id).int(),
        }
    return inputs


if __name__ == "__main__":
    main()
