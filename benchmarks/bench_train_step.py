"""Times our single-process training step and transformers with torch's AdamW: same model, same data.

Ours packs the samples end to end; transformers gets the usual padded batch. Rounds alternate between the two,
and the median counts. A ratio above 1 means that ours is faster.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from benchmarks.environment import write_result
from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.config import QWEN2_5_VL_PATCHES, ImageConfig
from data_pipeline.encode.images import normalise
from data_pipeline.loader.packing import merge
from data_pipeline.sources.digits import digit_samples, digit_texts
from data_pipeline.types import Example
from megatron_omr import parallel
from megatron_omr.config import OptimConfig, ParallelConfig
from megatron_omr.tiny import TinyConfig, create_tiny_model
from megatron_omr.train.losses import sft_loss
from megatron_omr.train.step import MicroBatch, train_step
from megatron_omr.train.trainer import build_trainer

BATCH, ROUNDS = 16, 7
SIZES = {
    "tiny": TinyConfig(),
    "small": TinyConfig(
        hidden_size=256,
        intermediate_size=768,
        num_layers=8,
        vision_hidden_size=128,
        vision_intermediate_size=384,
    ),
    "medium": TinyConfig(
        hidden_size=512,
        intermediate_size=1536,
        num_layers=12,
        num_heads=8,
        num_kv_heads=4,
        vision_depth=6,
        vision_hidden_size=256,
        vision_intermediate_size=768,
    ),
}
OPTIM = OptimConfig(lr=1e-4, schedule="constant", warmup_steps=0, clip_grad=1.0)


@dataclass(frozen=True, kw_only=True)
class Timing:
    parameters: int
    ours: float  # seconds a step, median
    transformers: float

    @property
    def ratio(self) -> float:
        return self.transformers / self.ours


def main() -> dict[str, object]:
    """Measures, prints, writes benchmarks/results/train_step.json, and returns its content."""
    torch.set_num_threads(1)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ranks = parallel.initialize(
            ParallelConfig(), rank=0, world_size=1, init_method=f"file://{folder}/rendezvous", seed=0
        )
        for name, size in SIZES.items():
            model = Path(folder) / name
            create_tiny_model(model, digit_texts(), config=size)
            timing = measure(str(model), ranks)
            results[name] = {
                "parameters": timing.parameters,
                "ours_seconds": round(timing.ours, 4),
                "transformers_seconds": round(timing.transformers, 4),
                "ratio": round(timing.ratio, 3),
            }
            print(
                f"{name:8} {timing.parameters / 1e6:6.1f} M  ours {timing.ours:.3f} s  "
                f"transformers {timing.transformers:.3f} s  ratio {timing.ratio:.2f}"
            )
        parallel.shutdown()
    result: dict[str, object] = {
        "samples_per_step": BATCH,
        "threads": 1,
        "precision": "fp32",
        "sizes": results,
    }
    write_result("train_step", result)
    return result


def measure(model: str, ranks: parallel.Ranks) -> Timing:
    """Returns median seconds of both steps over alternating rounds; the first round warms up."""
    encoder = ChatEncoder.from_hf(model, ImageConfig(min_pixels=784))
    examples = [encoder.encode(sample) for sample in digit_samples("train", BATCH, seed=0)]
    ours, num_parameters = megatron_step(model, ranks, examples, encoder.pad_token_id)
    theirs = transformers_step(model, examples, encoder.pad_token_id)
    rounds = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS + 1)][1:]
    return Timing(
        parameters=num_parameters,
        ours=statistics.median(a for a, _ in rounds),
        transformers=statistics.median(b for _, b in rounds),
    )


def seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def megatron_step(
    model: str, ranks: parallel.Ranks, examples: Sequence[Example], pad_token_id: int
) -> tuple[Callable[[], None], int]:
    """Returns our step over one packed micro-batch, and the number of parameters."""
    trainer = build_trainer(model, ParallelConfig(), ranks, OPTIM, precision="fp32", steps=1_000)
    batch = merge(examples, pad_token_id=pad_token_id)

    def step() -> None:
        train_step(trainer, [MicroBatch(packed=batch, loss=sft_loss)])

    return step, sum(p.numel() for chunk in trainer.chunks for p in chunk.parameters())


def transformers_step(model: str, examples: Sequence[Example], pad_token_id: int) -> Callable[[], None]:
    """Returns the usual step of transformers: padded batch, torch's AdamW, gradient clipping."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    hf = Qwen2_5_VLForConditionalGeneration.from_pretrained(model, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(hf.parameters(), lr=OPTIM.lr, weight_decay=OPTIM.weight_decay)
    ids = pad_sequence([e.input_ids for e in examples], batch_first=True, padding_value=pad_token_id)
    mask = pad_sequence([torch.ones_like(e.input_ids) for e in examples], batch_first=True)
    learned = pad_sequence([e.loss_mask for e in examples], batch_first=True)
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(learned == 0, -100),
        "pixel_values": normalise(torch.cat([e.pixels for e in examples]), QWEN2_5_VL_PATCHES),
        "image_grid_thw": torch.cat([e.image_grid_thw for e in examples]),
        "mm_token_type_ids": (ids == hf.config.image_token_id).int(),
    }

    def step() -> None:
        optimizer.zero_grad()
        hf(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), OPTIM.clip_grad)
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
