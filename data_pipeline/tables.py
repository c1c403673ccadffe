"""Text tables for the console."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(head: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> str:
    """Returns lines of aligned columns under `head`: the first `left` columns to the left, the others to the right.

    >>> print(text_table(["source", "kept"], [["mmk12", 120], ["tqa", 7]]))
    source  kept
    mmk12    120
    tqa        7
    """
    cells = [list(map(str, row)) for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)
