"""Measures the cost of finding duplicates: fingerprints of real images, and the comparison of more and more vectors.

The comparison runs on synthetic fingerprints of the real size, 7 in 100 of which are near copies; the others are
random vectors, which are the hardest for a graph. Rates are of processor time; memory is the growth of a fresh process
until the last duplicate. Files are read back from disk, as in a real run.
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
from data_pipeline.select.encoders import IMAGE_DIM, TEXT_DIM
from data_pipeline.select.fingerprints import Fingerprints, fingerprint_samples
from data_pipeline.select.near_duplicates import FingerprintedFolder, find_duplicates
from data_pipeline.sources.digits import digit_samples

SIZES = (10_000, 100_000)
SHARD = 5_000
IMAGES = 2_000


def main(sizes: tuple[int, ...] = SIZES) -> dict[str, object]:
    """Measures, prints, writes benchmarks/results/dedup.json, and returns its contents."""
    result: dict[str, object] = {"fingerprints": measure_fingerprints()}
    print(result["fingerprints"])
    passes = {}
    for size in sizes:
        passes[str(size)] = measure_pass(size)
        print(f"{size:9,} {passes[str(size)]}")
    result["passes"] = passes
    write_result("dedup", result)
    return result


def measure_fingerprints() -> dict[str, float]:
    """Returns samples per second and core, decoding included; the demo's images are about 100 pixels wide."""
    samples = list(digit_samples("train", IMAGES, 0))
    fingerprint_samples(samples[:10], "ngrams")
    start = time.process_time()
    found = fingerprint_samples(samples, "ngrams")
    seconds = time.process_time() - start
    with TemporaryDirectory() as folder:
        found.save(Path(folder) / "x.npz")
        size = (Path(folder) / "x.npz").stat().st_size
    return {
        "samples_per_second_per_core": round(IMAGES / seconds),
        "ms_per_sample": round(1e3 * seconds / IMAGES, 3),
        "bytes_per_sample": round(size / IMAGES),
    }


def measure_pass(size: int) -> dict[str, float]:
    """Returns seconds and memory of the pass over `size` synthetic samples, of which 7 % are near copies."""
    with TemporaryDirectory() as folder:
        planted = write_fingerprints(Path(folder), size)
        paths = tuple(sorted(Path(folder).glob("*.npz")))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:  # so that memory is its own
            found, wall, seconds, grown = fresh.submit(_find, paths).result()
    return {
        "seconds_of_wall_time": round(wall, 1),
        "seconds_of_processor_time": round(seconds, 1),
        "samples_per_second_per_core": round(size / seconds),
        "ms_per_sample": round(1e3 * seconds / size, 3),
        "memory_bytes_per_sample": round(grown / size),
        "planted": len(planted),
        "recall": round(len(found & planted) / len(planted), 4),
        "wrongly_dropped": len(found - planted),
    }


def _find(paths: tuple[Path, ...]) -> tuple[set[str], float, float, int]:
    """Returns ids of the duplicates, wall and processor seconds, and this process' growth in bytes until the last."""
    process = psutil.Process()
    before = after = process.memory_info().rss
    found: set[str] = set()
    start, used = time.perf_counter(), time.process_time()
    for duplicate in find_duplicates([FingerprintedFolder(digest="x", fingerprints=paths)], DedupConfig()):
        found.add(duplicate.id)
        if len(found) % 100 == 0:
            after = process.memory_info().rss
    return found, time.perf_counter() - start, time.process_time() - used, after - before


def write_fingerprints(folder: Path, size: int) -> set[str]:
    """Writes fingerprints of `size` samples with images; returns the ids of those that are near an earlier one."""
    rng = np.random.default_rng(0)
    planted: set[str] = set()
    first: list[np.ndarray] = []
    for number, start in enumerate(range(0, size, SHARD)):
        ids = [str(i) for i in range(start, start + SHARD)]
        parts = [rng.normal(size=(SHARD, dim)).astype(np.float32) for dim in (TEXT_DIM, IMAGE_DIM)]
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
            encoder="ngrams",
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
