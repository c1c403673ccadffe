"""The `omr` commands of a study, as words: each is a recipe of the demo with the values that differ."""

from __future__ import annotations

from collections.abc import Mapping

from data_pipeline.distill.config import AskConfig, DistillConfig, TeacherConfig
from data_pipeline.select.config import SelectConfig
from data_pipeline.types import SYSTEM_PROMPT
from launch.config import DigitsConfig
from launch.recipes import eval as eval_recipes
from launch.recipes import sft as sft_recipes
from launch.recipes.rl import RL_RECIPES
from launch.stages import list_options
from launch.studies.study import Rl, Sft

SCORING = TeacherConfig(k=4)
"""What `omr data score` begins with."""
Words = list[str]


def digits_words(out: str, *, train: int, test: int, seed: int, text: bool) -> Words:
    """Returns the command that writes questions about digits."""
    values = {"train": train, "validation": 1, "test": test, "seed": seed, "text": text}
    return ["data", "digits", out, *list_options(DigitsConfig(out=""), values)]


def sft_words(run: str, *, model: str, shards: str, steps: int, seed: int) -> Words:
    """Returns the command of SFT: the demo's, from another model on other shards."""
    values = {"run": run, "model": model, "loader.shards": shards, "steps": steps}
    values |= {"seed": seed, "loader.seed": seed}
    return ["sft", "demo", *list_options(sft_recipes.demo(), values)]


def rl_words(training: Rl, run: str, *, model: str, shards: str, steps: int, seed: int) -> Words:
    """Returns the command of a cell's RL."""
    values: dict[str, object] = {"run": run, "model": model, "shards": shards, "steps": steps, "seed": seed}
    options = list_options(RL_RECIPES[training.recipe](), values | dict(training.values))
    return ["rl", training.recipe, *options]


def eval_words(out: str, *, model: str, shards: str) -> Words:
    """Returns the command that scores greedy responses to held-out questions."""
    values = {"model": model, "out": out, "shards": shards, "baseline_samples": 0}
    values["engine.num_engines"] = (
        1  # in the command's own process: Ray and a second engine take longer to start
    )
    return ["eval", "demo", *list_options(eval_recipes.demo(), values)]


def distill_words(questions: str, out: str, *, asked: int, url: str | None = None) -> Words:
    """Returns the command that asks a teacher, and keeps all right responses; nothing is asked twice."""
    values = {"per_question": asked, **_teacher_values("teachers.0", asked, url)}
    return ["data", "distill", questions, out, *list_options(DistillConfig(shards="", out=""), values)]


def score_words(questions: str, out: str, *, asked: int, url: str | None = None) -> Words:
    """Returns the command that writes the pass rate of each question."""
    recipe = AskConfig(shards="", out="", teacher=SCORING)
    return ["data", "score", questions, out, *list_options(recipe, _teacher_values("teacher", asked, url))]


def select_words(training: Sft, responses: str, out: str) -> Words:
    """Returns the command that keeps what a cell learns from of the samples in `responses`/shards."""
    values: dict[str, object] = {f"filters.{field}": value for field, value in training.filters.items()}
    if training.needs_pass_rates:
        values["scores"] = (f"{responses}/scores.jsonl",)
    options = list_options(SelectConfig(shards="", out=""), values)
    return ["data", "select", f"{responses}/shards", out, *options]


def _teacher_values(teacher: str, asked: int, url: str | None) -> Mapping[str, object]:
    """Returns the settings of a field that is a teacher: what the demo's models were trained with."""
    return {
        f"{teacher}.k": asked,
        f"{teacher}.max_tokens": eval_recipes.demo().sampling.max_tokens,
        f"{teacher}.system_prompt": SYSTEM_PROMPT,
        f"{teacher}.server.base_url": url,
        f"{teacher}.server.unavailable_timeout": 60,  # of a server that was just started here, and is not restarted
    }
