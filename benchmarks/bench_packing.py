"""Measures packing and balance on steps of the published recipe: padding, fill, and the slowest rank's excess.

- padding: the share of the computed tokens that are none: what sequences and packs are padded to
- fill: the share of `pack_length` that real tokens take, over all packs
- excess: the most FLOPs of a rank over the mean of ranks; with exact lengths, and with texts that are 15 % longer or
  shorter than estimated (one standard deviation), since shards list an estimate
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import numpy as np

from benchmarks.environment import write_result
from benchmarks.recipe_batch import BATCH, PACK_LENGTH, SampleSize, draw_sizes
from data_pipeline.loader.cost import CostModel
from data_pipeline.loader.packing import balance, first_fit, next_fit, pack_capacity, padded_length
from data_pipeline.tables import text_table
from megatron_omr.config import ParallelConfig
from megatron_omr.flops import build_cost_model, train_step_flops
from megatron_omr.plan.shapes import published_shape

STEPS = 5
LAYOUTS = {
    "tp4 cp2 sp": (ParallelConfig(tp=4, cp=2, sp=True), 1),
    "tp8 cp4 sp, float8 by blocks": (ParallelConfig(tp=8, cp=4, sp=True), 128),
}
MODEL = published_shape("Qwen2.5-VL-7B-Instruct")


def main() -> dict[str, object]:
    """Measures, prints, writes benchmarks/results/packing.json, and returns its content."""
    steps = [draw_sizes(BATCH, seed, images=True) for seed in range(STEPS)]
    texts = [draw_sizes(BATCH, seed, images=False) for seed in range(STEPS)]
    packing = {
        f"{way}, {content}, {layout}, DP {dp_size}": measure_packing(way, batches, *LAYOUTS[layout], dp_size)
        for way in ("first_fit", "next_fit")
        for content, batches in (("text", texts), ("text and images", steps))
        for layout in LAYOUTS
        for dp_size in (8, 32)
    }
    excess = {
        f"{way}, DP {dp_size}": measure_excess(way, steps, dp_size)
        for way in ("by cost", "by tokens", "in order")
        for dp_size in (8, 32)
    }
    rows = [(name, *(f"{100 * value:.2f} %" for value in found.values())) for name, found in packing.items()]
    print(text_table(("packing", "padding", "fill"), rows))
    rows = [(name, *(f"{100 * value:.2f} %" for value in found.values())) for name, found in excess.items()]
    print(text_table(("balance", "excess, exact", "excess, estimated"), rows))
    result: dict[str, object] = {
        "samples a step": BATCH,
        "steps": STEPS,
        "packing": packing,
        "excess": excess,
    }
    write_result("packing", result)
    return result


def measure_packing(
    way: str, steps: Sequence[Sequence[SampleSize]], parallel: ParallelConfig, alignment: int, dp_size: int
) -> dict[str, float]:
    """Returns padding and fill over all packs of all ranks."""
    real = computed = room = 0
    multiple, pack_multiple = parallel.sequence_multiple, parallel.pack_multiple(alignment)
    for step in steps:
        for share in split("in order" if way == "next_fit" else "by cost", step, step, dp_size):
            sizes = [padded_length(sample.tokens, multiple) for sample in share]
            fit = next_fit if way == "next_fit" else first_fit
            packs = fit(sizes, pack_capacity(PACK_LENGTH, pack_multiple))
            real += sum(sample.tokens for sample in share)
            computed += sum(padded_length(sum(sizes[i] for i in chosen), pack_multiple) for chosen in packs)
            room += len(packs) * PACK_LENGTH
    return {"padding": 1 - real / computed, "fill": real / room}


def measure_excess(way: str, steps: Sequence[Sequence[SampleSize]], dp_size: int) -> dict[str, float]:
    """Returns the mean over steps of the worst rank's excess."""
    rng = np.random.default_rng(0)
    found = {}
    for name, deviation in (("exact", 0.0), ("estimated", 0.15)):
        excesses = []
        for step in steps:
            errors = np.exp(deviation * rng.standard_normal(len(step)))
            guessed = [
                SampleSize(response=round(sample.response * error), grids=sample.grids)
                for sample, error in zip(step, errors.tolist(), strict=True)
            ]
            flops = [count(share) for share in split(way, step, guessed, dp_size)]
            excesses.append(max(flops) / mean(flops) - 1)
        found[name] = mean(excesses)
    return found


def split(
    way: str, step: Sequence[SampleSize], guessed: Sequence[SampleSize], dp_size: int
) -> list[list[SampleSize]]:
    """Returns each rank's samples."""
    if way == "in order":
        bounds = [len(step) * rank // dp_size for rank in range(dp_size + 1)]
        return [list(step[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
    cost = build_cost_model(MODEL) if way == "by cost" else CostModel()
    costs = [cost.sample(s.tokens, [h * w for _, h, w in s.grids]) for s in guessed]
    return [[step[i] for i in chosen] for chosen in balance(costs, dp_size)]


def count(share: Sequence[SampleSize]) -> float:
    return train_step_flops(MODEL, [s.tokens for s in share], [grid for s in share for grid in s.grids])


if __name__ == "__main__":
    main()
