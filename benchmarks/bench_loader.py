"""Samples per second of the loader, against reading the same tar files bare and decoding their images.

Two corpora: the demo's small PNGs, where every microsecond around an image shows, and photographs of 640 x
480 as JPEG, where decoding, resizing and moving pixels rule. Time is processor time, so the numbers are per
core; rounds alternate between the ways, and the best of each counts: other work only ever slows one down.

*What decoding allows* is reading the bare tar, decoding to RGB and resizing to the size that the model is given,
all with Pillow alone: no loader can leave these out. The loader tokenises, cuts patches and packs besides.
"""

from __future__ import annotations

import io
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.environment import write_result
from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.config import ImageConfig
from data_pipeline.encode.images import final_size
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
    """Measure, print, write benchmarks/results/loader.json, and return what it holds."""
    torch.set_num_threads(1)
    encoder = ChatEncoder(train_tokenizer(digit_texts(), TinyConfig()), ImageConfig())
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
    """Speed of each way through the corpus, and the loader's share of the plain ways."""
    config = LoaderConfig(shards=str(index.folder), global_batch_size=BATCH, pack_length=8_192, num_workers=0)
    threads = replace(config, num_workers=1)
    ways: dict[str, Callable[[], int]] = {
        "bare tar": lambda: read_tar(index, decode=False),
        "tar and PIL decode": lambda: read_tar(index, decode=True),
        ALLOWED: lambda: read_tar(index, decode=True, resize=True),
        "webdataset": lambda: read_webdataset(index),
        "loader": lambda: run_loader(config, encoder, len(index)),
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
    ratios = {f"loader / {name}": speeds["loader"] / speeds[name] for name in list(ways)[:4]}
    memory = {"peak memory grown in a further epoch, MiB": memory_growth(threads, encoder, len(index))}
    return {name: round(value, 3) for name, value in (speeds | ratios | memory).items()}


def memory_growth(config: LoaderConfig, encoder: ChatEncoder, count: int) -> float:
    """How much further the most that this process ever held goes up in an epoch, others having gone before."""
    before = peak_mib()
    run_loader(config, encoder, count)
    return peak_mib() - before


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def read_webdataset(index: ShardIndex) -> int:
    """Read every sample as webdataset does, bytes of images as they are."""
    import webdataset

    urls = [str(Path(index.folder) / shard.file) for shard in index.shards]
    return sum(1 for _ in webdataset.WebDataset(urls, shardshuffle=False))


def read_tar(index: ShardIndex, *, decode: bool, resize: bool = False) -> int:
    """Read every member with tarfile; if asked, decode images to RGB and resize them as the loader must."""
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
    """One epoch: read, decode, encode and pack."""
    loader = Loader(config, encoder, dp_rank=0, dp_size=1)
    steps = islice(loader, count // BATCH)
    return sum(batch.num_sequences for batches in steps for batch in batches)


def photographs(count: int) -> Iterator[Sample]:
    """Smooth noise of 640 x 480 as JPEG: sizes and decoding costs of photographs, without any."""
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
