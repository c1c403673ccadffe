"""The commands of docs/newcomer.md, on the questions about the first images of easy-VQA and with few steps."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.files import read_json
from data_pipeline.verify.record import read_responses

pytestmark = [pytest.mark.heavy, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "newcomer.md"
SMALLER = {
    "python docs/easy_vqa_rows.py runs/mine": f"{sys.executable} {ROOT}/docs/easy_vqa_rows.py runs/mine 40",
    "--test 600": "--test 40",
    "--steps 2000": "--steps 2",
    "--steps 100": "--steps 1 --prompts_per_step 8",
}
"""Words of the page -> those that take seconds. So few steps teach nothing."""


def read_commands() -> str:
    """Returns all blocks of shell commands of the page, made smaller."""
    commands = "".join(re.findall(r"```bash \w+\n(.*?)```", PAGE.read_text(), re.S))
    for words, smaller in SMALLER.items():
        assert words in commands, f"{PAGE.name} has no longer {words!r}; change SMALLER with it"
        commands = commands.replace(words, smaller)
    return commands


@pytest.mark.timeout(1200)
def test_page_leads_from_rows_to_a_report(tmp_path: Path):
    pytest.importorskip("easy_vqa")
    commands = read_commands()
    done = subprocess.run(
        ["bash", "-euc", commands],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=590,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    mine = tmp_path / "runs/mine"
    assert (
        "100 of 100 rows match" in done.stdout
        and "Images become few tokens" in (mine / "samples.html").read_text()
    )
    assert "images become few tokens" not in done.stderr.partition("sft:")[2], "the page's option cures it"
    for name in ("sft", "rl"):
        found = read_json(mine / "eval" / name / "summary.json")
        baseline = found["baseline"]
        assert found["count"] == len(list(read_responses(mine / "eval" / name / "responses.jsonl"))) <= 40
        assert baseline["train_shards"] == ["runs/mine/parts/train"] and baseline["is_complete"]
        assert (baseline["questions_seen"], baseline["images_seen"]) == (0, 0)
        assert baseline["sentence"] in done.stdout and 0.3 < baseline["by_text"]["accuracy"] < 1
        assert found["by_kind"].keys() == {"color", "shape", "yes or no"}
    page = (mine / "report.html").read_text()
    assert "No training sample has the text and images of one of the questions." in page
    for part in ("accuracy", "supervised-fine-tuning", "reinforcement-learning", "speed", "rollouts"):
        assert f'id="{part}"' in page
