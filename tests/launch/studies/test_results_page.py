"""The results in docs/studies.md are those of the cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.files import read_json
from launch.studies.recipes import STUDIES

ROOT = Path(__file__).parents[3]
CARDS = sorted((ROOT / "benchmarks/results").glob("study_*.json"))
RESULTS = {found["study"]: found for card in CARDS if "study" in (found := read_json(card))}


def test_at_least_four_studies_have_results_at_three_seeds() -> None:
    whole = [
        name
        for name, found in RESULTS.items()
        if all(len(cell["accuracy"]) >= 3 for cell in found["cells"].values())
    ]
    assert len(whole) >= 4


@pytest.mark.parametrize("name", RESULTS)
def test_page_has_the_rows_and_sentences_of_the_card(name: str) -> None:
    found, page = RESULTS[name], (ROOT / "docs/studies.md").read_text()
    part = page.partition(f"results/study_{name}.json)")[2].partition("results/study_")[0]
    for cell in STUDIES[name].cells:
        row = found["cells"][cell.name]
        seeds = ", ".join(f"{seed}: {100 * accuracy:.1f}" for seed, accuracy in row["accuracy"].items())
        samples = f"{row['samples']:,}" if row["samples"] else ""
        assert f"| {cell.title} | {samples} | {100 * row['mean_accuracy']:.1f} % | {seeds} |" in part
    assert found["claims"] and all(claim["sentence"] in part for claim in found["claims"])
