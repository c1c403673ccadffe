"""The peer of bench_rl_step: TRL's GRPOTrainer with GSPO, run by .venv-peers/bin/python. Not for use by itself.

Usage: python -m benchmarks.peer_rl_step FOLDER, where FOLDER/job.json says what to run. Writes FOLDER/trl.json.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

from data_pipeline.verify.check import check_text


class TimedTrainer(GRPOTrainer):
    """Keeps the seconds of each phase: `phases` has one dict a step."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.phases: list[dict[str, float]] = []

    def _generate_single_turn(self, *arguments: Any, **named: Any) -> Any:
        return self._time("generate", super()._generate_single_turn, *arguments, **named)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.phases.append({"began": time.perf_counter()})
        return super()._generate_and_score_completions(inputs)

    def _time(self, phase: str, call: Any, *arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        result = call(*arguments, **named)
        self.phases[-1][phase] = time.perf_counter() - started
        return result


def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """0.9 accuracy + 0.1 format, by the checker that our loop uses."""
    texts = [completion[0]["content"] for completion in completions]
    verdicts = [check_text(text, wanted, "released") for text, wanted in zip(texts, answer, strict=True)]
    return [0.9 * verdict.accuracy + 0.1 * verdict.format for verdict in verdicts]


def to_parts(role: str, text: str) -> dict[str, Any]:
    """Returns a turn as transformers' templates take it, with each image mark as a part of its own."""
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(text.split("<image>")):
        parts += [{"type": "image", "text": None}] if number else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return {"role": role, "content": parts}


def build_dataset(folder: Path) -> Dataset:
    """Returns the prompts, in the order in which our loop asks them."""
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    return Dataset.from_list(
        [
            {
                "prompt": [to_parts(m["role"], m["content"]) for m in row["messages"]],
                "images": [Image.open(folder / name).convert("RGB") for name in row["images"]],
                "answer": row["answer"],
            }
            for row in rows
        ]
    )


def main(folder: Path) -> None:
    """Trains as job.json says; writes the seconds of each step, and what was generated."""
    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    responses = job["prompts_per_step"] * job["n"]
    arguments = GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_steps=job["steps"],
        per_device_train_batch_size=job["micro_batch_size"],
        gradient_accumulation_steps=responses // job["micro_batch_size"],
        num_generations=job["n"],
        max_completion_length=job["max_tokens"],
        temperature=1.0,
        importance_sampling_level="sequence",
        loss_type="grpo",
        epsilon=3e-4,
        epsilon_high=4e-4,
        beta=0.0,
        learning_rate=job["lr"],
        lr_scheduler_type="cosine",
        shuffle_dataset=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = TimedTrainer(
        model=AutoModelForImageTextToText.from_pretrained(job["model"], dtype=torch.float32),
        processing_class=AutoProcessor.from_pretrained(job["model"]),
        reward_funcs=reward,
        args=arguments,
        train_dataset=build_dataset(folder),
    )
    trainer.train()
    ended = time.perf_counter()
    begins = [phase["began"] for phase in trainer.phases] + [ended]
    logs = [row for row in trainer.state.log_history if "reward" in row]
    steps = [
        {
            "seconds": end - begin,
            "generate": phase["generate"],
            "reward": row["reward"],
            "response_len": row["completions/mean_length"],
        }
        for begin, end, phase, row in zip(begins, begins[1:], trainer.phases, logs, strict=False)
    ]
    (folder / "trl.json").write_text(json.dumps({"steps": steps}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
