"""The demo, as one page: the commands a user would type, one after the other, on real data and real parts.

Every stage but the untrained model is an `omr` command in a process of its own; what is finished is not done
again, so that an interrupted demo continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable

from launch.config import DemoConfig
from launch.stages import Demo
from launch.summary import print_summary, write_summary


def run_demo(config: DemoConfig) -> None:
    """Data -> model -> SFT -> evaluation -> GSPO -> evaluation -> report, under `config.out`."""
    demo = Demo(config)
    root, seed = str(demo.root), str(demo.seed)
    data, model, sft, rl = (f"{root}/{name}" for name in ("data", "model", "sft", "rl"))
    demo.stage("data", "data/test/index.json", demo.omr("data", "digits", data, seed=seed))
    demo.stage("model", "model/preprocessor_config.json", lambda: build_model(model, demo.seed))
    demo.stage(
        "sft",
        "sft/hf/config.json",
        demo.omr(
            "sft", "demo", run=sft, model=model, seed=seed, loader__shards=f"{data}/train", loader__seed=seed
        ),
    )
    demo.stage("eval sft", "eval/sft/summary.json", evaluation(demo, "sft"))
    demo.stage(
        "rl",
        "rl/hf/config.json",
        demo.omr("rl", "demo", run=rl, model=f"{sft}/hf", shards=f"{data}/train", seed=seed),
    )
    demo.stage("eval rl", "eval/rl/summary.json", evaluation(demo, "rl"))
    write_summary(demo)
    demo.omr("report", root)()
    print_summary(demo)


def build_model(out: str, seed: int) -> None:
    """An untrained Qwen2.5-VL of 1.1 million parameters, with a tokenizer trained on the demo's texts."""
    from data_pipeline.sources.digits import digit_texts
    from megatron_omr.tiny import create_tiny_model

    create_tiny_model(out, digit_texts(seed=seed), seed=seed)


def evaluation(demo: Demo, stage: str) -> Callable[[], None]:
    """Greedy answers of one stage's policy to the held-out questions."""
    root = demo.root
    words = ("eval", "demo", "--model", f"{root}/{stage}/hf", "--out", f"{root}/eval/{stage}")
    return demo.omr(*words, shards=f"{root}/data/test", seed=str(demo.seed))
