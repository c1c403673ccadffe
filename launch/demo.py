"""The demo, as one page: the commands a user would type, one after the other, on real data and with the real parts.

Every stage but the untrained model is an `omr` command in its own process; finished stages are not repeated, so
that an interrupted demo continues where it stopped.
"""

from __future__ import annotations

from launch.config import DemoConfig, DigitsConfig, name_rl_stage
from launch.recipes import eval as eval_recipes
from launch.recipes import sft as sft_recipes
from launch.recipes.rl import RL_RECIPES
from launch.stages import Demo
from launch.summary import print_summary, write_summary


def run_demo(config: DemoConfig) -> None:
    """Data -> model -> SFT -> evaluation -> RL -> evaluation -> report, under `config.out`."""
    demo, rl = Demo(config), name_rl_stage(config.algorithm)
    data, model, sft = (f"{config.out}/{name}" for name in ("data", "model", "sft"))
    demo.stage("data", "data/test/index.json", lambda: write_questions(demo, data))
    demo.stage("model", "model/preprocessor_config.json", lambda: build_model(model, config))
    demo.stage("sft", "sft/hf/config.json", lambda: fine_tune(demo, sft, model, data))
    demo.stage("eval sft", "eval/sft/summary.json", lambda: evaluate(demo, "sft", f"{data}/test"))
    demo.stage(rl, f"{rl}/hf/config.json", lambda: reinforce(demo, rl, f"{sft}/hf", f"{data}/train"))
    demo.stage(f"eval {rl}", f"eval/{rl}/summary.json", lambda: evaluate(demo, rl, f"{data}/test"))
    write_summary(demo)
    demo.omr("report", config.out, recipe=None)
    print_summary(demo)


def write_questions(demo: Demo, out: str) -> None:
    """Writes the questions about scanned digits: train, validation and test."""
    values = {name: getattr(demo.config, name) for name in ("train", "test", "seed", "video")}
    demo.omr("data", "digits", out, recipe=DigitsConfig(out=out), **values)


def build_model(out: str, config: DemoConfig) -> None:
    """Writes an untrained model of one or two million parameters, with a tokenizer trained on the demo's texts."""
    from data_pipeline.sources.digits import digit_texts
    from megatron_omr.families.tiny import TINY_BASES
    from megatron_omr.tiny import create_tiny_model

    create_tiny_model(out, digit_texts(seed=config.seed), config=TINY_BASES[config.base], seed=config.seed)


def fine_tune(demo: Demo, run: str, model: str, data: str) -> None:
    """Trains the model on the worked responses to the training questions, and validates on others."""
    recipe, seed = sft_recipes.demo(), demo.config.seed
    values = {"run": run, "model": model, "steps": demo.config.sft_steps, "seed": seed}
    values |= {"loader__shards": f"{data}/train", "validation__shards": f"{data}/validation"}
    demo.omr("sft", "demo", recipe=recipe, loader__seed=seed, **values)


def reinforce(demo: Demo, stage: str, model: str, shards: str) -> None:
    """Improves the fine-tuned policy on the training questions, by the recipe of the demo's algorithm."""
    name = "demo" if demo.config.algorithm == "gspo" else f"demo_{demo.config.algorithm}"
    values = {"run": f"{demo.config.out}/{stage}", "model": model, "shards": shards}
    values |= {"steps": demo.config.rl_steps, "seed": demo.config.seed}
    demo.omr("rl", name, recipe=RL_RECIPES[name](), **values, engine__max_videos=int(demo.config.video))


def evaluate(demo: Demo, stage: str, shards: str) -> None:
    """Scores greedy responses of one stage's policy to the held-out questions."""
    root, seed = demo.config.out, demo.config.seed
    values = {"model": f"{root}/{stage}/hf", "out": f"{root}/eval/{stage}", "shards": shards, "seed": seed}
    demo.omr("eval", "demo", recipe=eval_recipes.demo(), **values, engine__max_videos=int(demo.config.video))
