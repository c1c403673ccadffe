"""The report's section about the data."""

from __future__ import annotations

from data_pipeline.curate.funnel import FUNNEL
from launch.report.run_page import write_report
from tests.helpers.browser import ParsedPage
from tests.helpers.report_run import make_funnel, sft_row, write_lines


def test_the_funnel_is_drawn_beside_the_published_ones(tmp_path):
    make_funnel().save(tmp_path / FUNNEL)
    parsed = ParsedPage(write_report(tmp_path))
    texts = {text.strip() for text in parsed.texts}
    assert {"103,103 (100%)", "820,019 (795%)", "583,794 (566%)"} <= texts, "shares of this run's first stage"
    assert {"824,000 (800%)", "583,000 (566%)", "874,357 (849%)"} <= texts, "OpenMMReasoner's"
    assert {"2,372,320 (100%)", "2,286,030 (96%)", "586,000 (25%)", "123,000 (5%)"} <= texts, "MMFineReason's"
    assert {"verified: wrong", "235,989", "selected: near", "12,345", "llava_cot"} <= texts
    assert parsed.texts.index("selected: near") < parsed.texts.index("selected: exact")


def test_a_funnel_alone_makes_a_page_and_none_leaves_it_out(tmp_path):
    make_funnel().save(tmp_path / FUNNEL)
    parsed = ParsedPage(write_report(tmp_path))
    assert "chart-funnel" in parsed.ids and "chart-accuracy" not in parsed.ids
    (tmp_path / FUNNEL).write_text('{"rows": [{"stage": "cooked"}]}')
    write_lines(tmp_path / "sft/metrics.jsonl", [sft_row(1)])
    parsed = ParsedPage(write_report(tmp_path))
    assert "data" not in parsed.ids and "funnel.json is not readable" in parsed.text
    (tmp_path / FUNNEL).unlink()
    parsed = ParsedPage(write_report(tmp_path))
    assert "data" not in parsed.ids and "As published" not in parsed.text
