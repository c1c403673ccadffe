"""What finding duplicates costs per sample: fingerprints of real images, and the pass over vectors as it grows.

The pass runs on synthetic fingerprints as wide as the real ones, 7 in 100 of which are near copies; the others are
random vectors, the hardest there are for a graph. The rate is of processor time, memory by how much a fresh process
has grown at the last duplicate. Files are read back from disk, as in a real run.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from benchmarks.environment import write_result
from data_pipeline.select.config import DedupConfig
from data_pipeline.select.encoders import TEXT_DIM, load_encoders
from data_pipeline.select.fingerprints import Fingerprints, fingerprint_shard
from data_pipeline.select.near_duplicates import Corpus, find_duplicates
from data_pipeline.sources.digits import digit_samples

SIZES = (10_000, 100_000)
SHARD = 5_000
IMAGES = 2_000


def main(sizes: tuple[int, ...] = SIZES) -> dict[str, object]:
    """Measure, print, write benchmarks/results/dedup.json, and return what it holds."""
    result: dict[str, object] = {"fingerprints": fingerprints()}
    print(result["fingerprints"])
    passes = {}
    for size in sizes:
        passes[str(size)] = one_pass(size)
        print(f"{size:9,} {passes[str(size)]}")
    result["passes"] = passes
    write_result("dedup", result)
    return result


def fingerprints() -> dict[str, float]:
    """Samples per second and core, decoding included; the images are the demo's, about 100 pixels wide."""
    samples = list(digit_samples("train", IMAGES, 0))
    encoders = load_encoders("ngrams", "dct")
    fingerprint_shard(samples[:10], encoders)
    start = time.process_time()
    found = fingerprint_shard(samples, encoders)
    seconds = time.process_time() - start
    with TemporaryDirectory() as folder:
        found.save(Path(folder) / "x.npz")
        size = (Path(folder) / "x.npz").stat().st_size
    return {"samples_per_second_per_core": round(IMAGES / seconds), "bytes_per_sample": round(size / IMAGES)}


def one_pass(size: int) -> dict[str, float]:
    """Seconds and memory of the pass over `size` synthetic samples, of which 7 % are near copies."""
    with TemporaryDirectory() as folder:
        planted = write_parts(Path(folder), size)
        parts = tuple(sorted(Path(folder).glob("*.npz")))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:  # so that memory is its own
            found, wall, seconds, grown = fresh.submit(_find, parts).result()
    return {
        "seconds_of_wall_time": round(wall, 1),
        "seconds_of_processor_time": round(seconds, 1),
        "samples_per_second_per_core": round(size / seconds),
        "memory_bytes_per_sample": round(grown / size),
        "planted": len(planted),
        "recall": round(len(found & planted) / len(planted), 4),
        "wrongly_dropped": len(found - planted),
    }


def _find(parts: tuple[Path, ...]) -> tuple[set[str], float, float, int]:
    """Ids of the duplicates, wall and processor seconds, and the bytes this process had grown by at the last."""
    process = psutil.Process()
    before = after = process.memory_info().rss
    found: set[str] = set()
    start, used = time.perf_counter(), time.process_time()
    for duplicate in find_duplicates([Corpus(digest="x", parts=parts)], DedupConfig()):
        found.add(duplicate.id)
        if len(found) % 100 == 0:
            after = process.memory_info().rss
    return found, time.perf_counter() - start, time.process_time() - used, after - before


def write_parts(folder: Path, size: int) -> set[str]:
    """Fingerprints of `size` samples with images; returns the ids of those that are near an earlier one."""
    rng = np.random.default_rng(0)
    dims = (TEXT_DIM, load_encoders("ngrams", "dct").image_dim)
    planted: set[str] = set()
    first: list[np.ndarray] = []
    for number, start in enumerate(range(0, size, SHARD)):
        ids = [str(i) for i in range(start, start + SHARD)]
        parts = [rng.normal(size=(SHARD, dim)).astype(np.float32) for dim in dims]
        symbols = np.arange(start, start + SHARD, dtype=np.uint64)
        if number:
            copies = rng.choice(SHARD, SHARD * 7 // 100, replace=False)
            planted |= {ids[row] for row in copies}
            for part, original in zip(parts, first, strict=True):
                noise = rng.normal(size=(len(copies), part.shape[1])).astype(np.float32)
                part[copies] = original[copies] + 0.05 * noise
            symbols[copies] = copies
        else:
            first = [part.copy() for part in parts]
        text, image = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts)
        zeros = np.zeros(SHARD, dtype=np.uint64)
        Fingerprints(
            encoders="synthetic",
            ids=tuple(ids),
            sources=("made",) * SHARD,
            content=rng.integers(1, 2**63, SHARD).astype(np.uint64),
            question=zeros,
            symbols=symbols,
            answer=zeros,
            num_images=np.ones(SHARD, dtype=np.int32),
            text=text.astype(np.float16),
            image=image.astype(np.float16),
        ).save(folder / f"{number:06d}.npz")
    return planted


if __name__ == "__main__":
    main()
