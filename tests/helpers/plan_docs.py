"""Fills in the plans of docs/plan.md: after each line `$ omr plan ...` of a block, what that command prints.

`python -m tests.helpers.plan_docs` writes the page anew.
"""

from __future__ import annotations

import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path

from launch.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "plan.md"


def render(text: str) -> str:
    """Returns the page with the output of its commands as it is now."""

    def run(block: re.Match[str]) -> str:
        out = io.StringIO()
        with redirect_stdout(out):
            assert main(shlex.split(block[1])) == 0
        return f"```\n$ omr {block[1]}\n{out.getvalue()}```"

    return re.sub(r"```\n\$ omr (plan .*)\n(?:[^`].*\n|\n)*```", run, text)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
