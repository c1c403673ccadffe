"""A whole curation of small corpora: counts checked by hand, resumable, the same bytes on every executor."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.config import WorkConfig
from data_pipeline.curate.config import SHARDS, CurateConfig, SourceConfig
from data_pipeline.curate.curate import curate
from data_pipeline.curate.funnel import FUNNEL, Funnel
from data_pipeline.select.config import DedupConfig, FilterConfig
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.config import RowsConfig
from data_pipeline.sources.digits import digit_samples
from launch.recipes.data import DATA_RECIPES
from tests.helpers.processes import wait_until

NAMES_FOLDERS = "dedup/drop_lists/counts.json"
"""The one file that names the folders of a curation."""
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
    write_shards(digit_samples("train", 9, 0), root / "digits", ShardConfig(samples_per_shard=4))
    benchmark = list(read_shards(root / "digits"))[2:4]
    write_shards([replace(s, id=f"benchmark/{s.id}") for s in benchmark], root / "benchmark")
    sources = (
        SourceConfig(name="first", corpus="messages", rows=RowsConfig(path=str(root / "first"))),
        SourceConfig(
            name="second", corpus="messages", rows=RowsConfig(path=str(root / "second")), max_bad_samples=1
        ),
        SourceConfig(name="digits", corpus=SHARDS, rows=RowsConfig(path=str(root / "digits"))),
    )
    return CurateConfig(
        out="unused",
        sources=sources,
        against=(str(root / "benchmark"),),
        dedup=DedupConfig(same_symbols=True),
        responses=FilterConfig(min_words=20),
        writer=ShardConfig(samples_per_shard=5),
    )


@pytest.fixture(scope="module")
def reference(recipe, tmp_path_factory) -> dict[str, bytes]:
    """The files that a curation without interruption leaves."""
    out = tmp_path_factory.mktemp("reference") / "out"
    curate(replace(recipe, out=str(out)))
    return files(out)


def files(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()
    }


def ids(folder: Path) -> list[str]:
    return [sample.id.removeprefix("messages/") for sample in read_shards(folder)]


def test_counts_of_every_stage(recipe, tmp_path):
    out = tmp_path / "out"
    funnel = curate(replace(recipe, out=str(out)))
    assert funnel == Funnel.load(out / FUNNEL)
    assert funnel.totals == {"raw": 12 + 5 + 9, "filtered": 12 + 3 + 7, "selected": 12 + 2, "mixed": 14}
    assert funnel.dropped() == {
        "raw": {"schema": 1},
        "filtered": {"duplicate": 2, "contamination": 2},
        "selected": {"length": 8},  # one short response, and all of digits
    }
    assert [len(ids(out / "selected" / name)) for name in ("first", "second", "digits")] == [12, 2, 0]
    mixed = ShardIndex.load(out / "mixed")
    assert [source.count for source in mixed.sources] == [12, 2, 0]
    text = funnel.table()
    assert "filtered dropped 2 duplicate, 2 contamination" in text
    lists = [json.loads(path.read_text()) for path in (out / "filtered").rglob("dropped/*")]
    assert sum(len(found["dropped"]) for found in lists) == 4, "each drop is named on disk"


def test_second_run_changes_nothing_and_other_filters_only_their_stage(recipe, tmp_path):
    config = replace(recipe, out=str(tmp_path / "out"))
    curate(config)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    curate(config)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    funnel = curate(replace(config, responses=FilterConfig(min_words=1)))
    assert funnel.totals["selected"] == 12 + 3 + 7, "the short response and those of digits are kept now"
    kept = [path for path in before if "selected" not in path.parts]
    assert kept and all(path.stat().st_mtime_ns == before[path] for path in kept)


def test_mixture_of_fewer_samples_follows_the_weights(recipe, tmp_path):
    curate(replace(recipe, out=str(tmp_path), samples=5, weights="second=1e6"))
    mixed = ShardIndex.load(tmp_path / "mixed")
    assert [source.count for source in mixed.sources] == [3, 2, 0]


def test_wrong_config_is_named_before_any_stage_runs(recipe, tmp_path):
    config = replace(recipe, out=str(tmp_path / "out"))
    source = recipe.sources[0]
    with pytest.raises(ValueError, match="no corpus .massages.; did you mean 'messages'"):
        curate(replace(config, sources=(replace(source, corpus="massages"),)))
    with pytest.raises(ValueError, match="nowhere does not exist"):
        curate(replace(config, sources=(replace(source, rows=RowsConfig(path="./nowhere")),)))
    for fault, problem in (
        (dict(sources=(replace(source, name="../up"),)), "each with another name, of letters"),
        (dict(sources=(source, source)), "each with another name"),
        (dict(weights="other=2"), "names .other."),
        (dict(samples=-1), "samples=-1 must be at least 0"),
        (dict(deduplicate=False), "deduplicate is off"),
    ):
        with pytest.raises(ValueError, match=problem):
            replace(config, **fault)
    assert not (tmp_path / "out").exists()


def test_published_recipes_name_the_missing_corpus(monkeypatch, tmp_path):
    """Their corpora are not on this machine; the check comes first and does not ask the hub."""
    monkeypatch.chdir(tmp_path)
    for recipe in DATA_RECIPES.values():
        with pytest.raises(ValueError, match="does not exist; download it there"):
            curate(recipe())


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.heavy)])
def executor(request):
    if request.param == "ray":
        request.getfixturevalue("ray_session")
    return request.param


@pytest.mark.slow
def test_every_executor_leaves_the_same_bytes(executor, recipe, reference, tmp_path):
    curate(replace(recipe, out=str(tmp_path), work=WorkConfig(executor=executor, workers=2)))
    found = files(tmp_path)
    assert found.keys() == reference.keys()
    assert [name for name in found if found[name] != reference[name]] == [NAMES_FOLDERS]


@pytest.mark.parametrize("moment", ["raw/second", "dedup/fingerprints", "filtered/second", "selected/first"])
def test_a_killed_curation_continues_to_the_same_bytes(moment, recipe, reference, tmp_path):
    config = replace(recipe, out=str(tmp_path))
    process = multiprocessing.get_context("spawn").Process(target=curate, args=(config,))
    process.start()
    wait_until(lambda: any((tmp_path / moment).glob("*")) or not process.is_alive(), every=0.001)
    assert process.is_alive(), f"curate ended before {moment}"
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert not (tmp_path / FUNNEL).exists() or Funnel.load(tmp_path / FUNNEL).totals.get("mixed") is None
    curate(config)
    found = files(tmp_path)
    assert {name for name in found if found[name] != reference.get(name)} == {NAMES_FOLDERS}
    assert found.keys() == reference.keys()
