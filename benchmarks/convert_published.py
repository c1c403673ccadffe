"""Conversion of the published Qwen3-VL shapes, Hugging Face -> Megatron -> Hugging Face, compared to the bit.

The 2B is whole, TP2 x PP2. Of the others one layer of the language model and two of the vision tower stand for all, in
their full width and with all experts; TP2, and EP2 where there are experts. Weights are random BF16. Not part of `make
bench`: it writes 22 GB for the largest. The load of the machine tells how far the seconds can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench_convert import compare_folders, run_command, write_random_model
from benchmarks.environment import write_result
from megatron_omr.plan.shapes import CONFIGS

WHOLE = "Qwen3-VL-2B-Instruct"
MODELS = sorted(path.name for path in CONFIGS.glob("Qwen3-VL-*"))


def main(models: Sequence[str]) -> None:
    """Converts each model there and back; writes benchmarks/results/convert_published.json."""
    found = {}
    for name in models:
        with tempfile.TemporaryDirectory(prefix="convert-") as folder:
            found[name] = measure(name, Path(folder))
        print(name, found[name], flush=True)
    write_result("convert_published", {"models": found})


def measure(name: str, root: Path) -> dict[str, object]:
    """Returns bytes, seconds and peak memory of one model, whose weights came back equal to the bit."""
    config = json.loads((CONFIGS / name / "config.json").read_text())
    layout = ["--parallel.tp", "2"]
    if name == WHOLE:
        layout += ["--parallel.pp", "2"]
    else:
        shorten(config)
    if "num_experts" in config["text_config"]:
        layout += ["--parallel.sp", "--parallel.ep", "2"]
    hf, checkpoint, back = (root / part for part in ("hf", "checkpoint", "back"))
    num_bytes = write_random_model(hf, config)
    there, there_mib = run_command("to-megatron", hf, checkpoint, *layout)
    again, again_mib = run_command("to-hf", checkpoint, back)
    compare_folders(hf, back)
    return {
        "layers": config["text_config"]["num_hidden_layers"],
        "layout": " ".join(layout),
        "weights, GB": num_bytes / 1e9,
        "to Megatron, s": there,
        "to Hugging Face, s": again,
        "to Megatron, peak MiB": there_mib,
        "to Hugging Face, peak MiB": again_mib,
        "load average": os.getloadavg()[0],
    }


def shorten(config: dict[str, Any]) -> None:
    """Leaves one layer of the language model, and of the tower two, the second of which feeds deepstack."""
    config["text_config"]["num_hidden_layers"] = 1
    config["vision_config"] |= {"depth": 2, "deepstack_visual_indexes": [1]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, help=f"of {', '.join(MODELS)}")
    main(parser.parse_args().models)
