"""The pages on algorithms agree with the code: their table, fields, metrics, recipes and the code that they quote."""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import pytest

from launch.recipes.rl import RL_RECIPES
from rl.algorithms.config import PUBLISHED
from rl.algorithms.policy_loss import POLICY_LOSSES
from rl.config import RLConfig

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "docs" / "algorithms.md"
PAGES = [INDEX, *sorted((ROOT / "docs" / "algorithms").glob("*.md"))]
CODE = [
    path for package in ("rl", "megatron_omr", "data_pipeline") for path in (ROOT / package).rglob("*.py")
]
page_of_algorithms = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def read_tables(page: Path, first: str) -> list[list[str]]:
    """Returns the cells of the rows of all tables of the page whose first column is called `first`."""
    rows, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        inside = bool(cells) and (inside or cells[0] == first)
        if inside and cells[0] != first and not set(cells[0]) <= set("-:"):
            rows.append(cells)
    return rows


def list_names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_table_has_all_losses_with_their_published_settings():
    rows = {list_names(name)[0]: rest for name, *rest in read_tables(INDEX, "name")}
    assert set(rows) == set(POLICY_LOSSES)
    for name, (_, *cells, _) in rows.items():
        low, high, *rest = cells
        assert (float(low), float(high), *rest) == PUBLISHED[name][:4], name


def test_each_loss_is_linked_from_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for loss in POLICY_LOSSES.values():
        assert f"[`{loss.__name__}`](../../{loss.__module__.replace('.', '/')}.py)" in text


@page_of_algorithms
def test_linked_functions_are_where_the_link_leads(page: Path):
    for name, to in re.findall(r"\[`(\w+)`\]\(([^)#]+\.py)\)", page.read_text(encoding="utf-8")):
        assert re.search(rf"^ *(?:def|class) {name}\b", (page.parent / to).read_text("utf-8"), re.M), name


def unindent(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())


@page_of_algorithms
def test_quoted_code_is_in_the_code(page: Path):
    code = "\n".join(unindent(path.read_text(encoding="utf-8")) for path in CODE)
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        assert unindent(textwrap.dedent(block)).strip() in code, block


@cache
def find_logged() -> re.Pattern[str]:
    """Returns a pattern of what the code's strings, and its f-strings of a prefix and one value, may be as metrics."""
    patterns = set[str]()
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Constant(value=str(text)) if re.fullmatch(r"[a-z]\w{3,}_", text):
                    patterns.add(rf"{text}\w+")  # a prefix of metrics that a measurement names
                case ast.Constant(value=str(text)) if re.fullmatch(r"[a-z]\w*", text):
                    patterns.add(
                        rf"{text}(?:_(?:p\d\d|min|max))?"
                    )  # quantiles of samples have the name of the samples
                case ast.JoinedStr(values=[ast.Constant(value=str(text)), ast.FormattedValue()]):
                    patterns |= {rf"{text}\w+"} if re.fullmatch(r"[a-z]\w{3,}_", text) else set()
    return re.compile("|".join(patterns))


@page_of_algorithms
def test_named_metrics_are_logged(page: Path):
    logged = find_logged()
    names = [name for cell, *_ in read_tables(page, "metric") for name in list_names(cell)]
    assert not [name for name in names if not logged.fullmatch(name)]


@page_of_algorithms
def test_named_fields_exist(page: Path):
    roots = {field.name for field in fields(RLConfig)}
    config = RL_RECIPES["demo"]()
    for name in re.findall(r"`(?:--)?([a-z]\w*(?:\.\w+)+)", page.read_text(encoding="utf-8")):
        value, parts = config, name.split(".")
        if parts[0] not in roots or parts[-1] in ("py", "md"):
            continue
        for part in parts:
            assert is_dataclass(value) and hasattr(value, part), name
            value = getattr(value, part)


@page_of_algorithms
def test_named_recipes_exist(page: Path):
    names = [name for cell, *_ in read_tables(page, "recipe") for name in list_names(cell)]
    assert not [name for name in names if name not in RL_RECIPES]
