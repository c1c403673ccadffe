"""A whole curation on small corpora: counted by hand, resumable, the same bytes on every executor."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.curate import curate
from data_pipeline.curate_config import SHARDS, CurateConfig, SourceConfig
from data_pipeline.digits import digit_samples
from data_pipeline.funnel import FUNNEL, Funnel
from data_pipeline.ray_session import stop_ray
from data_pipeline.select_config import DedupConfig, FilterConfig
from data_pipeline.shard_index import ShardIndex
from data_pipeline.shard_writer import write_shards
from data_pipeline.shards import read_shards

LONG = "We count the bars one after the other, and then once more to be sure. " * 3


def row(number: int, question: str, response: str = LONG) -> dict:
    turns = [("user", question), ("assistant", f"<think>{response}</think><answer>{number}</answer>")]
    return {"id": f"row-{number}", "messages": [{"role": role, "content": text} for role, text in turns]}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> CurateConfig:
    """Two corpora of text in two files each, one of digits; two questions of the second corpus are in the first."""
    root = tmp_path_factory.mktemp("corpora")
    texts = {
        "first": [row(n, f"How many bars has chart {n}?") for n in range(12)],
        "second": [
            *(row(n, f"How many bars has chart {n}?") for n in (3, 7)),  # in the first corpus
            row(50, "What is the largest prime below 53?", response="Short."),
            row(51, "How many days has a leap year in February?"),
            row(52, "How many edges has a cube?"),
            {"id": "broken"},
        ],
    }
    for name, rows in texts.items():
        (root / name).mkdir()
        for part in range(2):
            lines = "".join(json.dumps(one) + "\n" for one in rows[part::2])
            (root / name / f"train-{part}.jsonl").write_text(lines)
    write_shards(digit_samples("train", 9, 0), root / "digits", samples_per_shard=4)
    benchmark = [s for s in read_shards(root / "digits")][2:4]
    write_shards([replace(s, id=f"benchmark/{s.id}") for s in benchmark], root / "benchmark")
    sources = (
        SourceConfig(name="first", corpus="messages", path=str(root / "first")),
        SourceConfig(name="second", corpus="messages", path=str(root / "second"), max_bad_samples=1),
        SourceConfig(name="digits", corpus=SHARDS, path=str(root / "digits")),
    )
    return CurateConfig(
        out="",
        sources=sources,
        against=(str(root / "benchmark"),),
        dedup=DedupConfig(same_symbols=True),
        responses=FilterConfig(min_words=20),
        samples_per_shard=5,
    )


def test_every_stage_is_counted(recipe, tmp_path):
    config = replace(recipe, out=str(tmp_path / "out"), responses=FilterConfig())
    funnel = curate(config)
    assert funnel == Funnel.load(tmp_path / "out" / FUNNEL)
    assert funnel.totals["raw"] == 12 + 5 + 9
    print(funnel.table())
