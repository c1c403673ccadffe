"""Benchmarks by the name of a table that shows them together, in its order (names alone: nothing is imported)."""

from __future__ import annotations

TWELVE_COLUMNS = (
    "mathvista_testmini",
    "mathvision_test",
    "mathvision_testmini",
    "mathverse_testmini",
    "dynamath",
    "wemath_testmini",
    "logicvista",
    "mmmu_val",
    "mmmu_pro_standard",
    "mmmu_pro_vision",
    "charxiv_reasoning",
    "charxiv_descriptive",
)
"""Those of OpenMMReasoner's main table (arXiv 2511.16334, Table 6): nine benchmarks, three of them in two parts."""
TEXT_TRANSFER = ("aime24", "aime25", "gpqa_diamond")
"""Those of its Table 8, without images."""
GROUPS = {"openmmreasoner": TWELVE_COLUMNS, "text": TEXT_TRANSFER}
