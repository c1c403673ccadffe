"""The commands of docs/own_data.md, unchanged, against a real vLLM server; and distillation on Ray."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.config import WorkConfig
from data_pipeline.curate.config import SHARDS, CurateConfig, SourceConfig
from data_pipeline.curate.curate import curate
from data_pipeline.curate.funnel import FUNNEL, Funnel
from data_pipeline.distill.config import TeacherConfig
from data_pipeline.select.config import FilterConfig
from data_pipeline.served.config import ServerConfig
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.config import RowsConfig
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import IMAGE_MARK, Sample
from data_pipeline.verify.config import CheckerConfig
from tests.helpers.model_server import ModelServer

pytestmark = [pytest.mark.heavy, pytest.mark.slow]

PAGE = Path(__file__).parents[3] / "docs" / "own_data.md"
FORM = '{"structured_outputs": {"regex": "<think>[0-9]{1,3}</think><answer>[3-6]</answer>"}}'
"""Holds a random model to the form of an answer, and to four digits of which one in four is right by chance."""


@pytest.fixture(scope="module")
def questions() -> list[Sample]:
    return [sample for sample in digit_samples("test", 80, 0) if sample.answer in "3456"][:12]


@pytest.fixture
def place(questions: list[Sample], tmp_path: Path) -> Path:
    """A folder with mine.jsonl (ten questions, one of them twice), a benchmark that has one, and other shards."""
    rows = []
    for number, sample in enumerate([*questions[:10], questions[4]]):
        (tmp_path / f"{number}.png").write_bytes(sample.images[0])
        text = next(m.content for m in sample.messages if m.role == "user").replace(IMAGE_MARK, "").strip()
        rows.append(
            {"id": f"q-{number}", "question": text, "answer": sample.answer, "image": f"{number}.png"}
        )
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_shards([replace(questions[7], id="benchmark/7")], tmp_path / "shards" / "benchmark")
    write_shards(digit_samples("train", 20, 0), tmp_path / "shards" / "general")
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_block(name: str, place: Path, server: ModelServer) -> str:
    """Run the page's block of commands of that name in `place`; returns what it printed."""
    found = re.search(rf"```bash {name}\n(.*?)```", PAGE.read_text(), re.S)
    assert found, f"{PAGE.name} has no block {name!r}"
    lines = found[1].replace("http://127.0.0.1:8000/v1", f"{server.url}/v1").splitlines()
    for number, line in enumerate(lines):
        if found := re.match("omr data (distill|score|curate)", line):  # for the random model
            model = "teacher" if found[1] == "score" else "teachers.0"
            lines[number] += f" --{model}.max_tokens 64 --{model}.extra_body '{FORM}'"
    done = subprocess.run(
        ["bash", "-euc", "\n".join(lines)],
        cwd=place,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_step_by_step(place: Path, server: ModelServer):
    printed = run_block("steps", place, server)
    assert "11 of 11 rows match" in printed
    clean = {sample.metadata["row_id"] for sample in read_shards(place / "shards/clean")}
    assert clean == {f"q-{n}" for n in range(10) if n != 7}, "q-10 is q-4 again, q-7 a benchmark's"
    kept = list(read_shards(place / "shards/kept"))
    per_question = [sample.metadata["question"] for sample in kept]
    assert kept and max(map(per_question.count, per_question)) <= 4
    for sample in kept:
        assert sample.messages[-1].content.endswith(f"<answer>{sample.answer}</answer>")
        assert sample.metadata["teacher"] == "tiny" and 0 <= float(sample.metadata["pass_rate"]) <= 1
    mixed = {source.name: source.count for source in ShardIndex.load(place / "shards/mixed").sources}
    assert sum(mixed.values()) == 20 and mixed["kept"] > 0


def test_in_one_command(place: Path, server: ModelServer):
    printed = run_block("own", place, server)
    funnel = Funnel.load(place / "runs/mine" / FUNNEL)
    totals = funnel.totals
    assert (totals["raw"], totals["filtered"], totals["distilled"]) == (11, 10, 80)
    assert 0 < totals["verified"] == totals["selected"] == totals["mixed"] < 80
    assert sum(funnel.dropped()["verified"].values()) == 80 - totals["verified"]
    assert f"{totals['verified']}" in printed and "1 duplicate" in printed
    assert "distilled" in (place / "runs/mine/report.html").read_text()
    assert "data:image" in (place / "runs/mine/samples.html").read_text()


@pytest.mark.usefixtures("ray_session")
def test_distillation_on_ray_gives_the_same_bytes(
    questions: list[Sample], server: ModelServer, tmp_path: Path
):
    """Teacher and student, three shards on two tasks."""
    write_shards(questions, tmp_path / "questions", ShardConfig(samples_per_shard=4))
    teacher = TeacherConfig(
        server=ServerConfig(base_url=f"{server.url}/v1", concurrency=4),
        k=4,
        max_tokens=64,
        extra_body=FORM,
        checker=CheckerConfig(workers=1),
    )
    rows = RowsConfig(path=str(tmp_path / "questions"))
    local = CurateConfig(
        out=str(tmp_path / "local"),
        sources=(SourceConfig(name="digits", corpus=SHARDS, rows=rows, responses="distill"),),
        teachers=(teacher,),
        per_question=2,
        difficulty=True,
        student=replace(teacher, seed=7),
        responses=FilterConfig(max_pass_rate=0.75),
    )
    curate(local)
    curate(replace(local, out=str(tmp_path / "ray"), work=WorkConfig(executor="ray", workers=2)))
    for stage in ("filtered", "selected"):
        assert files(tmp_path / "local" / stage) == files(tmp_path / "ray" / stage)
    assert len(ShardIndex.load(tmp_path / "local/selected/digits")) > 0
    assert (tmp_path / "local" / FUNNEL).read_bytes() == (tmp_path / "ray" / FUNNEL).read_bytes()
