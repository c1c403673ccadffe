"""Every measured figure of README and docs comes from a card in benchmarks/results, or says that it has none."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from benchmarks.environment import UNVERIFIED, describe_run, digest_shards, write_card
from tests.helpers.figures import (
    RESULTS,
    ROOT,
    Block,
    Figure,
    find_part,
    is_found,
    list_links,
    read_blocks,
    read_card,
)

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CARDS = sorted(path.name for path in RESULTS.glob("*.json"))
LISTED = tomllib.loads((Path(__file__).parent / "fixtures" / "unmeasured_figures.toml").read_text())
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def list_unmeasured(page: str) -> set[str]:
    """Returns the figures of a page that are listed as settings, published or computed."""
    return {figure for kind in LISTED.values() for figure in kind.get(page, ())}


def name(figure: Figure) -> str:
    return f"{figure.text} {figure.unit}".strip()


@each_page
def test_linked_cards_have_the_figures_beside_the_link(page):
    for block in read_blocks(page):
        unmeasured = list_unmeasured(block.page)
        for figure in filter(lambda figure: figure.counts, block.figures if block.cards else ()):
            assert is_found(figure, block) or name(figure) in unmeasured, (
                f"{block.page}: {name(figure)} is not in {block.cards}, beside: {block.text[:120]!r}; "
                "correct it, link the right card, or write (unverified) behind it"
            )


@each_page
def test_links_to_cards_lead_to_a_part_of_them(page):
    """Also where no figure that is compared stands beside the link."""
    links = list_links(page)
    assert len(links) == len(re.findall(r"\]\([^)]*benchmarks/results/", page.read_text(encoding="utf-8"))), (
        f"{page.name} has a link to benchmarks/results/ that is not [text](.../benchmarks/results/NAME.json#/PART)"
    )
    for card, pointer in links:
        assert card in CARDS, f"{page.name} links {card}, which is not in benchmarks/results"
        try:
            find_part(read_card(card), pointer)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            pytest.fail(f"{page.name} links {card}#{pointer}, which {card} does not have: {error!r}")


@each_page
def test_measured_figures_have_a_card(page):
    for block in read_blocks(page):
        if block.cards or block.is_unverified:
            continue
        missing = {name(f) for f in block.figures if f.is_measured} - list_unmeasured(block.page)
        assert not missing, (
            f"{block.page}: {', '.join(sorted(missing))} in {block.text[:120]!r}: link the card in benchmarks/results, "
            "write (unverified) behind a measurement that has none, or list in tests/fixtures/unmeasured_figures.toml "
            "what is not measured"
        )


def test_listed_figures_are_still_there():
    for page in {page for kind in LISTED.values() for page in kind}:
        there = {name(figure) for block in read_blocks(ROOT / page) for figure in block.figures}
        assert list_unmeasured(page) <= there, f"{page} has no {list_unmeasured(page) - there} any more"


@pytest.mark.parametrize("card", CARDS)
def test_cards_have_a_head(card):
    """Values that nobody wrote down are "unverified"; a GPU or a load may be null."""
    head = read_card(card)
    for part in ("/command", "/commit", "/date", "/data", "/environment/cpu", "/environment/python"):
        value = find_part(head, part)
        assert isinstance(value, str) and value, (
            f"{card}: {part} is {value!r}; write it down, or {UNVERIFIED!r}"
        )
    assert is_commit(head["commit"]), f"{card}: commit {head['commit']!r} is neither one nor {UNVERIFIED!r}"
    assert head["environment"]["cores"] > 0 and head["environment"]["versions"]
    assert {"gpu", "load_average"} <= head["environment"].keys()


def is_commit(text: str) -> bool:
    """Returns whether it has the form of a commit, with + where files were changed since, or is unverified."""
    return text == UNVERIFIED or re.fullmatch(r"[0-9a-f]{7,40}\+?", text) is not None


@pytest.mark.parametrize(
    "text", ["", "main", "8a94a5", "8A94A5F", "8a94a5f++", "the commit 8a94a5f", "Unverified"]
)
def test_other_words_are_no_commit(text):
    assert not is_commit(text)


def test_write_card_puts_the_head_before_the_result(tmp_path):
    path = write_card(tmp_path / "card.json", {"seconds": 1.5}, data="sha256 0 of 1 shards")
    assert '"command": "python -m pytest' in path.read_text() or '"command": "python' in path.read_text()
    assert is_commit(describe_run("x")["commit"])  # pyright: ignore
    assert list(describe_run("x")) == ["command", "commit", "date", "data", "environment"]
    assert path.read_text().rstrip().endswith('"seconds": 1.5\n}')


def test_digest_is_of_names_and_bytes(tmp_path):
    assert digest_shards(tmp_path) == UNVERIFIED
    (tmp_path / "a.tar").write_bytes(b"1")
    first = digest_shards(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"2")
    assert first.endswith(" of 1 shards") and digest_shards(tmp_path) != first


@pytest.mark.parametrize(
    ("text", "number", "is_same"),
    [
        ("1.88 s", 1.8814, True),
        ("1.87 s", 1.8814, False),
        ("92%", 0.9236, True),
        ("93 %", 0.9236, False),
        ("+10.7", 0.10745, True),
        ("+10.7", -0.10745, False),
        ("-10.7", -0.10745, True),
        ("-10.7", 0.10745, False),
        ("10.7 points", -0.10745, True),
        ("1.8 kB", 1802.0, True),
        ("1.8e-4", 0.000184943, True),
        ("1.9e-4", 0.000184943, False),
        ("3,010", 3010, True),
        ("0.39 ms", 0.00039, True),
        ("0.39 s", 0.00039, False),
    ],
)
def test_a_figure_equals_a_number_that_rounds_to_it(text, number, is_same):
    (figure,) = Block(page="", text=text, is_unverified=False).figures
    assert figure.equals(number) == is_same


def test_what_is_no_measurement_is_left_out():
    text = "vLLM 0.32 with 1.1 M parameters: `x 3 s`, 12 s (unverified), aim: 5 s, 95 % intervals, 4.5 s"
    found = [name(f) for f in Block(page="", text=text, is_unverified=False).figures if f.is_measured]
    assert found == ["4.5 s"]
