"""The nearest of many vectors, by USEARCH: every pair while there are few, a graph (HNSW) when there are many.

Vectors are added by one thread, because the graph depends on the order; searching it depends on nothing.
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np

if sys.platform == "linux":
    # USEARCH brings C++ symbols of its own, which abort Ray when it is loaded later; loaded first, these are used.
    ctypes.CDLL("libstdc++.so.6", mode=ctypes.RTLD_GLOBAL)

from usearch.index import Index


class Neighbours:
    """Vectors of length 1 under the keys 0, 1, 2, ... in the order they were added. Kept as float16."""

    def __init__(self, dim: int, *, exact_below: int, threads: int = 0) -> None:
        self._index = Index(ndim=dim, metric="ip", dtype="f16")
        self._exact_below = exact_below
        self._threads = threads

    def __len__(self) -> int:
        return len(self._index)

    def add(self, vectors: np.ndarray) -> None:
        """Add the rows of `vectors` [N, D]."""
        if len(vectors):
            keys = np.arange(len(self), len(self) + len(vectors), dtype=np.uint64)
            self._index.add(keys, vectors.astype(np.float16), threads=1)

    def find(self, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys [N, count] of the nearest to each row of `vectors` [N, D], nearest first, and their cosines.

        Where there are fewer, the cosine is -1.
        """
        keys = np.zeros((len(vectors), count), dtype=np.int64)
        cosines = np.full((len(vectors), count), -1.0, dtype=np.float32)
        if not len(self) or not len(vectors):
            return keys, cosines
        found = self._index.search(
            vectors.astype(np.float16),
            count,
            exact=len(self) <= self._exact_below,
            threads=self._threads,
        )
        width = min(count, len(self))
        counts = found.counts[:, None] if len(vectors) > 1 else len(found)  # one query has a form of its own
        there = np.arange(width) < np.broadcast_to(counts, (len(vectors), 1))
        keys[:, :width][there] = found.keys.reshape(len(vectors), -1)[:, :width][there]
        cosines[:, :width][there] = 1.0 - found.distances.reshape(len(vectors), -1)[:, :width][there]
        return keys, cosines

    def vectors(self, keys: np.ndarray) -> np.ndarray:
        """The vectors [N, D] float16 of `keys` [N]."""
        return np.asarray(self._index.get(keys.astype(np.uint64))).reshape(len(keys), -1)

    @property
    def num_bytes(self) -> int:
        return self._index.memory_usage
