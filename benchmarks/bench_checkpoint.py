"""Saving and loading a checkpoint against writing and reading the same bytes, and how long training waits for it.

Two data-parallel ranks train a model of 130 M parameters in bf16 and save 1.8 GB. Plain writing is each rank's bytes
from memory into a file, synced; plain reading is the same files into memory. All are read from the page cache.
Rounds alternate between what is compared, and the best of each counts, because other work can only slow it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.environment import write_result
from data_pipeline.sources.digits import digit_texts
from launch.ranks.launcher import rank_environment, run_local
from megatron_omr.config import CheckpointConfig, OptimConfig, ParallelConfig
from megatron_omr.tiny import TinyConfig, create_tiny_model

SIZE = TinyConfig(
    hidden_size=1024, intermediate_size=2816, num_layers=12, num_heads=16, num_kv_heads=4, vocab_size=8192
)
ROUNDS, STEPS, PROCESSES = 3, 4, 2


def main() -> dict[str, object]:
    """Measures, prints and writes benchmarks/results/checkpoint.json; returns its content."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        create_tiny_model(model, digit_texts(), config=SIZE)
        by_rank = run_local(measure, PROCESSES, str(model), folder)
    slowest = {name: max(seconds[name] for seconds in by_rank) for name in by_rank[0]}
    gigabytes = sum(seconds["gigabytes"] for seconds in by_rank)
    result: dict[str, object] = {
        "unit": "s",
        **slowest,
        "gigabytes": gigabytes,
        "save / write": slowest["save"] / slowest["write"],
        "load / read": slowest["load"] / slowest["read"],
        "pause, background / waiting": slowest["pause, background"] / slowest["pause, waiting"],
        "steps, while saving / not": slowest["steps, while saving"] / slowest["steps"],
    }
    for name, value in result.items():
        print(f"{name:28} {value if isinstance(value, str) else format(value, '8.3f')}")
    write_result("checkpoint", result)
    return result


def measure(model: str, folder: str) -> dict[str, float]:
    """Returns the best seconds of each part on this rank, and the gigabytes that it wrote."""
    from data_pipeline.loader.packing import merge
    from megatron_omr import parallel
    from megatron_omr.checkpoint.load import load_checkpoint
    from megatron_omr.checkpoint.save import CheckpointWriter
    from megatron_omr.oracle import draw_packs
    from megatron_omr.train.losses import sft_loss
    from megatron_omr.train.step import MicroBatch, train_step
    from megatron_omr.train.trainer import build_trainer

    rank, world_size, init_method = rank_environment()
    layout = ParallelConfig()
    ranks = parallel.initialize(layout, rank=rank, world_size=world_size, init_method=init_method, seed=0)
    trainer = build_trainer(model, layout, ranks, OptimConfig(), precision="bf16", steps=100)
    packs = draw_packs(trainer.model, 0)[rank::world_size]
    batches = [merge(pack, multiple=1, pack_multiple=1, pad_token_id=0) for pack in packs]

    def train() -> None:
        for _ in range(STEPS):
            train_step(trainer, [MicroBatch(packed=batch, loss=sft_loss) for batch in batches])

    def writer(background: bool) -> CheckpointWriter:
        config = CheckpointConfig(keep=1, background=background)
        return CheckpointWriter(trainer, Path(folder) / "checkpoints", config, template=model)

    waiting, background = writer(False), writer(True)
    checkpoint, plain = Path(folder) / "checkpoints/step-00000001", Path(folder) / f"plain-{rank}"
    own = checkpoint / f"__{rank}_0.distcp"

    def save_beside_training() -> None:
        background.save(1, {})
        train()

    train()
    waiting.save(1, {})
    torch.distributed.barrier()
    data = own.read_bytes()
    buffer = bytearray(len(data))
    parts: dict[str, Callable[[], object]] = {
        "write": lambda: write(plain, data),
        "save": lambda: waiting.save(1, {}),
        "read": lambda: read(own, buffer),
        "load": lambda: load_checkpoint(trainer, checkpoint),
        "steps": train,
        "steps, while saving": save_beside_training,
    }
    best = dict.fromkeys([*parts, "pause, waiting", "pause, background"], float("inf"))
    for _ in range(ROUNDS):
        for name, run in parts.items():
            torch.distributed.barrier()
            waiting.take_pause()
            started = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - started)
            if name == "save":
                best["pause, waiting"] = min(best["pause, waiting"], waiting.take_pause())
        best["pause, background"] = min(best["pause, background"], background.take_pause())
        background.finish()
    return best | {"gigabytes": len(data) / 1e9}


def write(path: Path, data: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        written = 0
        while written < len(data):
            written += file.write(memoryview(data)[written:])
        os.fsync(file.fileno())


def read(path: Path, buffer: bytearray) -> None:
    with path.open("rb", buffering=0) as file:
        count = 0
        while size := file.readinto(memoryview(buffer)[count:]):
            count += size


if __name__ == "__main__":
    main()
