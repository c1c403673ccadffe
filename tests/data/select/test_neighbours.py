"""Neighbours against scikit-learn's brute force; results do not depend on batches and threads."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from data_pipeline.select.neighbours import Neighbours


def clustered(count: int, dim: int = 96) -> np.ndarray:
    """Unit vectors [count, dim] with near neighbours: families of about five around random centres."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(count // 5, dim))
    vectors = centres[rng.integers(0, len(centres), count)] + 0.1 * rng.normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def build(vectors: np.ndarray, *, exact_below: int, threads: int = 0, batch: int = 1000) -> Neighbours:
    index = Neighbours(exact_below=exact_below, threads=threads)
    for start in range(0, len(vectors), batch):
        index.add(vectors[start : start + batch])
    return index


@pytest.mark.parametrize(("exact_below", "least"), [(10**9, 1.0), (0, 0.95)])
def test_agrees_with_brute_force(exact_below: int, least: float):
    """The graph may miss neighbours; how many depends on the build of USEARCH (1 in 100 was not seen)."""
    vectors = clustered(6000)
    queries = vectors[:500]
    oracle = NearestNeighbors(n_neighbors=3, metric="cosine", algorithm="brute")
    distances, _ = oracle.fit(vectors.astype(np.float64)).kneighbors(queries.astype(np.float64))
    _, cosines = build(vectors, exact_below=exact_below).find(queries, 3)
    float16 = 2 * np.finfo(np.float16).eps  # rounding of both vectors, lengths of 1
    assert (np.abs(cosines - (1 - distances)) < float16).mean() >= least


def test_results_do_not_depend_on_batches_and_threads():
    vectors = clustered(4000)
    results = [
        build(vectors, exact_below=0, threads=threads, batch=batch).find(vectors, 4)
        for threads, batch in ((1, 1000), (2, 1000), (0, 137))
    ]
    for keys, cosines in results[1:]:
        assert (keys == results[0][0]).all() and (cosines == results[0][1]).all()


def test_empty_index_few_vectors_and_single_queries():
    vectors = clustered(20)
    index = Neighbours(exact_below=100)
    assert (index.find(vectors, 3)[1] == -1).all()
    index.add(vectors[:2])
    keys, cosines = index.find(vectors[1:2], 3)
    assert keys[0, 0] == 1 and cosines[0, 0] == pytest.approx(1, abs=1e-3) and cosines[0, 2] == -1
    assert index.find(vectors[:0], 3)[0].shape == (0, 3)
    assert (index.vectors(np.array([1, 0])) == vectors[[1, 0]]).all()


@pytest.mark.heavy
def test_ray_starts_in_a_process_that_loaded_usearch():
    """Without libstdc++ loaded before USEARCH, Ray aborts."""
    code = (
        "import data_pipeline.select.neighbours\n"
        "from data_pipeline.ray_session import start_ray, stop_ray\n"
        "start_ray(); stop_ray(); print('both work')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "both work" in done.stdout, done.stderr[-2000:]
