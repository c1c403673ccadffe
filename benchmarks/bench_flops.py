"""Compares the FLOPs of the published recipe's step with what other projects count for it.

Prints the table of docs/flops.md. Arithmetic only: the result is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.environment import write_result
from benchmarks.peer_flops import PEERS
from benchmarks.recipe_batch import BATCH, draw_sizes
from megatron_omr.flops import train_step_flops
from megatron_omr.plan.shapes import published_shape

COLUMNS = (
    "whole step",
    "language model",
    "images of 224 x 224",
    "images of 896 x 896",
    "images of 2,044 x 2,044",
)


def main() -> dict[str, object]:
    """Computes, prints, writes benchmarks/results/flops.json, and returns its content."""
    result: dict[str, object] = {"samples": BATCH, "relative errors": measure()}
    write_result("flops", result)
    print(markdown())
    return result


def measure() -> dict[str, dict[str, float]]:
    """Returns the relative error of each peer's formula for Qwen2.5-VL-7B, by column."""
    model = published_shape("Qwen2.5-VL-7B-Instruct")
    batch = draw_sizes(BATCH, seed=0, images=True)
    lengths = [size.tokens for size in batch]
    columns: dict[str, tuple[Sequence[int], Sequence[Sequence[int]]]] = {
        "whole step": (lengths, [grid for size in batch for grid in size.grids]),
        "language model": (lengths, ()),
        **{name: ((), [(1, side, side)]) for name, side in zip(COLUMNS[2:], (16, 64, 146), strict=True)},
    }
    return {
        peer: {
            name: count(model, *columns[name]) / train_step_flops(model, *columns[name]) - 1
            for name in COLUMNS
        }
        for peer, count in PEERS.items()
    }


def markdown() -> str:
    """Returns the table of docs/flops.md."""
    head = f"| formula of | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}"
    rows = [
        f"| {peer} | {' | '.join(f'{100 * errors[name]:+.1f} %' for name in COLUMNS)} |"
        for peer, errors in measure().items()
    ]
    return "\n".join([head, *rows])


if __name__ == "__main__":
    main()
