"""`omr eval`: published benchmarks by name, or the held-out questions of a recipe."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, Suppress

from data_pipeline.benchmarks.groups import GROUPS
from data_pipeline.files import atomic_writer
from launch.arguments import FLAT, Command, CommandGroup, recipes
from launch.recipes.eval import EVAL_RECIPES
from launch.submit.checks import check_served
from megatron_omr.model_config import ModelConfig
from rl.config import EngineConfig, EvalConfig
from rl.evaluation.config import BenchmarksConfig

TABLE = "scores.md"


def evaluate_recipe(config: Annotated[EvalConfig, FLAT]) -> None:
    """Score a Hugging Face folder on held-out questions through vLLM: omr eval RECIPE.

    Examples:
      omr eval demo
      omr eval demo --model runs/demo/sft/hf --out runs/demo/eval/sft
      omr eval qwen2_5_vl_7b_greedy --subset 500
      omr eval demo --sampling.n 8 --sampling.temperature 1 --out runs/demo/eval/rl_n8
    """
    prepare(config.model, config.engine)
    from rl.evaluation.baseline import describe_seen
    from rl.evaluation.run import evaluate

    found = evaluate(config)
    low, high = found.ci95
    print(
        f"{found.accuracy:.1%} of {found.count:,} questions are right, 95 % CI {100 * low:.1f} to {100 * high:.1f}"
    )
    if found.baseline is None:
        print(
            "no baseline: give the training shards as --train_shards to compare with their most frequent answers"
        )
        return
    print(found.baseline.sentence)
    print(describe_seen(found.baseline, found.count))


def evaluate_benchmarks(
    others: Positional[tuple[str, ...]] = (),
    *,
    config: Annotated[BenchmarksConfig, FLAT],
    first: Suppress[str],
) -> None:
    """Score a Hugging Face folder on published benchmarks through vLLM: omr eval BENCHMARK ... --model HF_DIR.

    Each is imported into shards once, ROOT/NAME, asked and scored as published, and stands beside the paper's numbers
    in OUT/scores.md; OUT/scores.json has all numbers. The same command continues where it stopped.

    Args:
        others: Further benchmarks, or groups of them.

    Examples:
      omr eval mathvista_testmini --model my-model --path downloads/MathVista --out runs/eval/mine
      omr eval mathverse_testmini wemath_testmini --model my-model --subset 300
      omr eval openmmreasoner text --model my-model --engine.num_engines 8
      omr eval aime24 --model my-model --sampling.n 32
    """
    from data_pipeline.benchmarks.registry import list_benchmarks

    benchmarks = list_benchmarks((first, *others))  # finds a typo before anything starts
    prepare(config.model, config.engine)
    from launch.evaluation.table import print_table, write_markdown
    from rl.evaluation.benchmarks import evaluate_benchmarks as evaluate

    scores = evaluate(benchmarks, config)
    table = Path(config.out) / TABLE
    with atomic_writer(table) as file:
        file.write(write_markdown(scores).encode())
    print(f"{print_table(scores)}\nin {table}")


def prepare(model: str, engine: EngineConfig) -> None:
    """Refuses a wrong folder, and a model that vLLM cannot serve as wished, before Ray and vLLM start."""
    check_served(ModelConfig.from_hf(model), model, engine.tp)
    # read when torch is imported: OpenMP's threads would keep their cores busy while they wait for each other
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _commands() -> dict[str, Command]:
    """Returns the command of each recipe, group of benchmarks, and benchmark."""
    from data_pipeline.benchmarks.registry import BENCHMARKS

    bound = {name: partial(evaluate_benchmarks, first=name) for name in (*GROUPS, *BENCHMARKS)}
    for name, command in bound.items():
        members = GROUPS.get(name, ())
        group = f"{len(members)} benchmarks, {members[0]} to {members[-1]}" if members else ""
        summary = group or BENCHMARKS[name].corpus.published
        command.__doc__ = f"{summary}\n\n{evaluate_benchmarks.__doc__}"
    held_out = recipes(evaluate_recipe, EVAL_RECIPES)
    assert not callable(held_out.commands)
    return {**held_out.commands, **bound}


EVAL = CommandGroup(
    doc="""Score a model on published benchmarks, omr eval BENCHMARK ... --model HF_DIR; or on a recipe's questions.

    Benchmarks are imported once, asked and scored as published, and set beside the paper's numbers. A recipe has
    held-out questions of its own: omr eval RECIPE.

    Examples:
      omr eval mathvista_testmini --model my-model --path downloads/MathVista
      omr eval openmmreasoner text --model my-model --subset 300 --out runs/eval/mine
      omr eval demo
      omr eval qwen2_5_vl_7b_greedy --model my-model --shards data/held_out
    """,
    commands=_commands,
    kind="benchmark or recipe",
)
