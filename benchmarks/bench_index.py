"""Measures what an index of ten thousand to ten million samples costs: loading, memory, state, time per sample.

Each size is a folder of shards of 1,000 samples, all of them hard links to one real shard: index.json and the rows
have their real sizes and are really read. Each size is measured in a fresh process.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from benchmarks.environment import write_result
from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.chat_format import ChatFormat
from data_pipeline.encode.config import QWEN2_5_VL_PATCHES, ImageConfig
from data_pipeline.encode.limits import ModelLimits
from data_pipeline.files import to_json
from data_pipeline.loader.config import LoaderConfig
from data_pipeline.loader.loader import Loader
from data_pipeline.loader.order import iterate_draws
from data_pipeline.shards.index import INDEX, VERSION, ShardIndex, rows_path
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples, digit_texts
from megatron_omr.tiny import TinyConfig, train_tokenizer

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
PER_SHARD = 1_000
DRAWN = 64_000  # samples that are drawn to measure the cost of one: a window of shards


def main() -> dict[str, object]:
    """Measures, prints, writes benchmarks/results/index.json, and returns its content."""
    sizes: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as root:
        shard = write_shards(digit_samples("train", PER_SHARD, 0, cell=28), Path(root) / "one")
        for size in SIZES:
            folder = Path(root) / str(size)
            link_shards(shard, folder, size // PER_SHARD)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                sizes[f"{size:,}"] = pool.apply(measure, (str(folder),))
            for name, value in sizes[f"{size:,}"].items():
                print(f"{size:>12,} {name:40} {value:12.3f}")
    result: dict[str, object] = {"samples_per_shard": PER_SHARD, "samples": sizes}
    write_result("index", result)
    return result


def link_shards(index: ShardIndex, folder: Path, count: int) -> None:
    """Makes a folder of `count` shards that are all links to the first one of `index`."""
    folder.mkdir()
    shard = index.shards[0]
    path = Path(index.folder) / shard.file
    shards = [replace(shard, file=f"shard-{number:06d}-0000.tar") for number in range(count)]
    for each in shards:
        os.link(path, folder / each.file)
        os.link(rows_path(path), rows_path(folder / each.file))
    (folder / INDEX).write_text(to_json({"version": VERSION, "shards": [asdict(each) for each in shards]}))


def measure(folder: str) -> dict[str, float]:
    """Returns the costs of one folder, in this process."""
    encoder = ChatEncoder(
        ModelLimits(
            chat=ChatFormat(train_tokenizer(digit_texts(), TinyConfig())),
            image=ImageConfig(),
            patches=QWEN2_5_VL_PATCHES,
        )
    )
    config = LoaderConfig(shards=folder, global_batch_size=32, pack_length=8_192, num_workers=0)
    encoder.encode(
        next(digit_samples("train", 1, 0, cell=28))
    )  # imports and compiles what is needed at first use
    before = resident_mib()
    start = time.perf_counter()
    loader = Loader(config, encoder, dp_rank=0, dp_size=1)
    loaded = time.perf_counter()
    index_mib = resident_mib() - before
    next(iter(loader))
    first = time.perf_counter()
    state = loader.state_dict()
    index = ShardIndex.load(folder)
    loader.load_state_dict({**state, "position": len(index) * 9 // 10})
    resumed = time.perf_counter()
    next(iter(loader))
    later = time.perf_counter()
    return {
        "index.json, MB": (Path(folder) / INDEX).stat().st_size / 1e6,
        "loading the index, ms": (loaded - start) * 1e3,
        "memory of the index, MiB": index_mib,
        "first batch of 32, ms": (first - loaded) * 1e3,
        "first batch after resuming at 90 %, ms": (later - resumed) * 1e3,
        "state, bytes": len(to_json(state)),
        "drawing a sample, us of processor time": best(lambda: draw(index)) * 1e6 / DRAWN,
        "rows of a shard, ms of processor time": best(lambda: index.rows(0)) * 1e3,
        "memory in all, over the empty process, MiB": resident_mib() - before,
    }


def draw(index: ShardIndex) -> None:
    """Draws the samples of a window, references and tokens only; no sample is read."""
    for _ in islice(iterate_draws(index, 0), DRAWN):
        pass


def best(run: Callable[[], object]) -> float:
    """Returns the least processor time of three runs, in seconds."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def resident_mib() -> float:
    """Returns the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
