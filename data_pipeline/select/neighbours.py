"""Nearest-neighbour search by USEARCH: compares every pair while there are few vectors, else searches a graph (HNSW).

Vectors are added by one thread, because the graph depends on their order; results of a search do not depend on threads.
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np

if sys.platform == "linux":
    # USEARCH bundles C++ symbols that abort Ray if it is loaded later; with libstdc++ loaded first, both use that.
    ctypes.CDLL("libstdc++.so.6", mode=ctypes.RTLD_GLOBAL)

from usearch.index import Index


class Neighbours:
    """Vectors of length 1, kept as float16 under the keys 0, 1, 2, ... in the order they were added."""

    def __init__(self, *, exact_below: int, threads: int = 0) -> None:
        self._index: Index | None = None
        self._exact_below = exact_below
        self._threads = threads

    def __len__(self) -> int:
        return 0 if self._index is None else len(self._index)

    def add(self, vectors: np.ndarray) -> None:
        """Adds the rows of `vectors` [N, D]."""
        if self._index is None:
            self._index = Index(ndim=vectors.shape[1], metric="ip", dtype="f16")
        if len(vectors):
            keys = np.arange(len(self), len(self) + len(vectors), dtype=np.uint64)
            self._index.add(keys, vectors.astype(np.float16), threads=1)

    def find(self, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns for each row of `vectors` [N, D] the keys [N, count] and cosines of its neighbours, nearest first.

        Where there are fewer than `count`, the cosine is -1.
        """
        keys = np.zeros((len(vectors), count), dtype=np.int64)
        cosines = np.full((len(vectors), count), -1.0, dtype=np.float32)
        if not len(self) or not len(vectors):
            return keys, cosines
        # one query more, because the result of a single one has another type
        queries = np.concatenate([vectors, vectors[:1]]).astype(np.float16)
        exact = len(self) <= self._exact_below
        found = self._index.search(queries, count, exact=exact, threads=self._threads)
        width = found.keys.shape[1]
        is_found = np.arange(width) < found.counts[:-1, None]
        keys[:, :width][is_found] = found.keys[:-1][is_found]
        cosines[:, :width][is_found] = 1.0 - found.distances[:-1][is_found]
        return keys, cosines

    def vectors(self, keys: np.ndarray) -> np.ndarray:
        """Returns the vectors [N, D] float16 of `keys` [N]."""
        return np.asarray(self._index.get(keys.astype(np.uint64))).reshape(len(keys), -1)
