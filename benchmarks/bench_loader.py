"""Measures samples per second of the loader, against reading the same tar files and decoding their images.

Two corpora: the demo's small PNGs, where overhead per image dominates, and photographs of 640 x 480 as JPEG, where
decoding, resizing and moving pixels dominate. Time is processor time, so the numbers are per core; rounds alternate
between the ways, and the best of each counts, because other work can only slow one down.

"tar, PIL decode, Qwen's size" reads the tar, decodes to RGB and resizes to the model's size, with Pillow alone: the
least that any loader must do with it. The loader also tokenises, cuts patches and packs; it decodes JPEG with
simplejpeg and resizes with torch, and is measured again with Pillow in place of the one and of both.
"""

from __future__ import annotations

import io
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from benchmarks.environment import write_result
from data_pipeline.encode import images
from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.chat_format import ChatFormat
from data_pipeline.encode.config import QWEN2_5_VL_PATCHES, ImageConfig
from data_pipeline.encode.images import final_size
from data_pipeline.encode.limits import ModelLimits
from data_pipeline.loader.config import LoaderConfig
from data_pipeline.loader.loader import Loader
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples, digit_texts
from data_pipeline.types import IMAGE_MARK, Message, Sample
from megatron_omr.tiny import TinyConfig, train_tokenizer

ALLOWED = "tar, PIL decode, Qwen's size"
BATCH = 32
ROUNDS = 5


def main() -> dict[str, object]:
    """Measures, prints, writes benchmarks/results/loader.json, and returns its content."""
    torch.set_num_threads(1)
    encoder = ChatEncoder(
        ModelLimits(
            chat=ChatFormat(train_tokenizer(digit_texts(), TinyConfig())),
            image=ImageConfig(),
            patches=QWEN2_5_VL_PATCHES,
        )
    )
    corpora = {"digits": digit_samples("train", 40 * BATCH, 0), "photographs": photographs(10 * BATCH)}
    results: dict[str, dict[str, float]] = {}
    for name, samples in corpora.items():
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(write_shards(samples, folder), encoder)
        for way, value in results[name].items():
            print(f"{name:12} {way:40} {value:10.3f}")
    result: dict[str, object] = {"unit": "samples per second of processor time", "corpora": results}
    write_result("loader", result)
    return result


def measure(index: ShardIndex, encoder: ChatEncoder) -> dict[str, float]:
    """Returns the speed of each way to read the corpus, and the loader's ratio to the others."""
    config = LoaderConfig(shards=str(index.folder), global_batch_size=BATCH, pack_length=8_192, num_workers=0)
    threads = replace(config, num_workers=1)
    ways: dict[str, Callable[[], int]] = {
        "bare tar": lambda: read_tar(index, decode=False),
        "tar and PIL decode": lambda: read_tar(index, decode=True),
        ALLOWED: lambda: read_tar(index, decode=True, resize=True),
        "webdataset": lambda: read_webdataset(index),
        "loader": lambda: run_loader(config, encoder, len(index)),
        "loader, Pillow decodes": lambda: run_with_pillow(config, encoder, len(index), resize=False),
        "loader, Pillow decodes and resizes": lambda: run_with_pillow(
            config, encoder, len(index), resize=True
        ),
        "loader, one thread ahead": lambda: run_loader(threads, encoder, len(index)),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.process_time()
            samples = way()
            best[name] = min(best[name], time.process_time() - start)
            assert samples == len(index), f"{name} gave {samples} of {len(index)} samples"
    speeds = {name: len(index) / seconds for name, seconds in best.items()}
    ratios = {f"loader / {name}": speeds["loader"] / speeds[name] for name in ways if "loader" not in name}
    ratios |= {f"loader / {name}": speeds["loader"] / speeds[name] for name in ways if "Pillow" in name}
    memory = {"peak memory grown in a further epoch, MiB": memory_growth(threads, encoder, len(index))}
    return {name: round(value, 3) for name, value in (speeds | ratios | memory).items()}


def memory_growth(config: LoaderConfig, encoder: ChatEncoder, count: int) -> float:
    """Returns by how much one more epoch raises the peak memory of this process."""
    before = peak_mib()
    run_loader(config, encoder, count)
    return peak_mib() - before


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def read_webdataset(index: ShardIndex) -> int:
    """Reads every sample with webdataset, without decoding images."""
    import webdataset

    urls = [str(Path(index.folder) / shard.file) for shard in index.shards]
    return sum(1 for _ in webdataset.WebDataset(urls, shardshuffle=False))


def read_tar(index: ShardIndex, *, decode: bool, resize: bool = False) -> int:
    """Reads every member with tarfile; with the options, decodes images to RGB and resizes them as the loader does."""
    samples = 0
    for shard in index.shards:
        with tarfile.open(Path(index.folder) / shard.file) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                data = file.read()
                if member.name.endswith(".json"):
                    samples += 1
                elif decode:
                    image = Image.open(io.BytesIO(data)).convert("RGB")
                    if resize:
                        image.resize(final_size(*image.size, ImageConfig()), Image.Resampling.BICUBIC)
    return samples


def run_loader(config: LoaderConfig, encoder: ChatEncoder, count: int) -> int:
    """Runs one epoch: reads, decodes, encodes and packs."""
    loader = Loader(config, encoder, dp_rank=0, dp_size=1)
    steps = islice(loader, count // BATCH)
    return sum(batch.num_sequences for batches in steps for batch in batches)


def run_with_pillow(config: LoaderConfig, encoder: ChatEncoder, count: int, *, resize: bool) -> int:
    """Runs one epoch without simplejpeg, and with `resize` without torch's resizing: what the loader replaced."""
    with ExitStack() as patches:
        patches.enter_context(patch.object(images, "decode_jpeg", None))
        if resize:
            patches.enter_context(patch.object(images, "_resize", resize_with_pillow))
        return run_loader(config, encoder, count)


def resize_with_pillow(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def photographs(count: int) -> Iterator[Sample]:
    """Yields smooth noise of 640 x 480 as JPEG, with the sizes and decoding costs of photographs."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        turns = (
            Message(role="user", content=f"{IMAGE_MARK}What is the sum of the digits?"),
            Message(role="assistant", content="<think>3 4. 3+4=7</think><answer>7</answer>"),
        )
        yield Sample(
            id=f"photo/{number}", source="photo", messages=turns, images=(file.getvalue(),), answer="7"
        )


if __name__ == "__main__":
    main()
