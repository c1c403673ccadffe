"""Conversion of whole folders, Hugging Face -> Megatron (TP2 x PP2) -> Hugging Face, against `cp` of the same bytes.

The weights are random BF16 in the shapes of the 3B, with fewer layers for the smaller sizes. Each conversion is a whole
command in a process of its own, imports included, and follows the `cp` that it is compared with. All begin with a disk
at rest and end with the bytes on it (`cp` with a sync after it).
Memory is the largest resident size of that process (VmHWM): pages of mapped files count, and no weights are mapped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import write_result
from data_pipeline.files import to_json
from megatron_omr.convert.hf_folder import HfTensors, HfWriter
from megatron_omr.convert.mapping import build_rules
from megatron_omr.model_config import ModelConfig
from megatron_omr.plan.shapes import CONFIGS

SIZES = {"0.3B": (2, 1), "1B": (9, 1), "3B": (36, 32)}
"""Layers of the language model and of the vision tower."""
TINY_VOCABULARY = 32_768  # of the 0.3B: the 3B's own would be all of it
ROUNDS = 2  # of which the best of each part counts
DEFAULT = ("0.3B", "1B")
LAYOUT = ("--parallel.tp", "2", "--parallel.pp", "2")
RUN = """
import sys
from pathlib import Path
from launch.cli import main
code = main(sys.argv[1:])
print([line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")][0])
sys.exit(code)
"""


def main(sizes: Sequence[str] = DEFAULT) -> dict[str, object]:
    """Measures, prints and writes benchmarks/results/convert.json, where sizes not measured now stay; returns it."""
    found = _read_before()
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="convert-") as folder:
            found[size] = measure(size, Path(folder))
        for name, value in found[size].items():
            print(f"{size:5} {name:40} {value:10.3f}", flush=True)
    result: dict[str, object] = {"layout": "tp2 pp2", "models": found}
    write_result("convert", result)
    return result


def _read_before() -> dict[str, dict[str, float]]:
    path = Path(__file__).parent / "results" / "convert.json"
    return json.loads(path.read_text())["models"] if path.exists() else {}


def measure(size: str, root: Path) -> dict[str, float]:
    """Returns times, their ratios and memory for one size."""
    hf, checkpoint, back, copy = (root / name for name in ("hf", "checkpoint", "back", "copy"))
    num_bytes = write_random_model(hf, shorten_3b(size))
    rounds = []
    for _ in range(ROUNDS):
        for left in (checkpoint, back):
            shutil.rmtree(left, ignore_errors=True)
        cp_hf = time_copy(hf, copy)
        there, there_mib = run_command("to-megatron", hf, checkpoint, *LAYOUT)
        cp_checkpoint = time_copy(checkpoint, copy)
        again, again_mib = run_command("to-hf", checkpoint, back)
        rounds.append((cp_hf, there, cp_checkpoint, again, there_mib, again_mib))
    cp_hf, there, cp_checkpoint, again, there_mib, again_mib = map(min, zip(*rounds, strict=True))
    compare_folders(hf, back)
    return {
        "load average": os.getloadavg()[0],
        "weights, GB": num_bytes / 1e9,
        "cp and sync of the folder, s": cp_hf,
        "cp and sync of the checkpoint, s": cp_checkpoint,
        "to Megatron, s": there,
        "to Hugging Face, s": again,
        "to Megatron, times cp": there / cp_hf,
        "to Hugging Face, times cp": again / cp_checkpoint,
        "to Megatron, peak MiB": there_mib,
        "to Hugging Face, peak MiB": again_mib,
        "imports alone, peak MiB": _imports_mib(),
    }


def shorten_3b(size: str) -> dict[str, Any]:
    """Returns config.json of the 3B with the layers of `size`."""
    layers, vision_layers = SIZES[size]
    config = json.loads((CONFIGS / "Qwen2.5-VL-3B-Instruct" / "config.json").read_text())
    text = config.get("text_config") or config
    text["num_hidden_layers"], config["vision_config"]["depth"] = layers, vision_layers
    if size == "0.3B":
        text["vocab_size"] = TINY_VOCABULARY
        ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        config |= {name: number for number, name in enumerate(ids)}
    return config


def write_random_model(folder: Path, config: Mapping[str, Any]) -> int:
    """Writes a folder of random BF16 weights, one tensor at a time; returns their bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(to_json(config))
    rules = build_rules(ModelConfig.from_hf(folder))
    entries = [
        (name, shape, torch.bfloat16)
        for rule in rules
        for name, shape in zip(rule.stored, rule.hf_shapes(), strict=True)
    ]
    generator = torch.Generator().manual_seed(0)
    with HfWriter(folder, entries) as writer:
        for name, shape, dtype in entries:
            bits = torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, generator=generator)
            writer.write(name, bits.view(dtype))
    with HfTensors(folder) as tensors:
        return sum(place.num_bytes for place in tensors.places.values())


def compare_folders(one: Path, other: Path) -> None:
    """Compares the files of weights to the bit.

    Raises:
        CalledProcessError: one differs; cmp says where.
    """
    files = sorted(path.name for path in one.glob("*.safetensors"))
    assert files == sorted(path.name for path in other.glob("*.safetensors"))
    for name in files:
        subprocess.run(["cmp", one / name, other / name], check=True)


def time_copy(source: Path, target: Path) -> float:
    """Copies a folder with cp, syncs its files, and removes it: what follows finds the same free memory."""
    os.sync()
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    subprocess.run(["sync", *[path for path in target.rglob("*") if path.is_file()]], check=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def run_command(direction: str, source: Path, out: Path, *options: str) -> tuple[float, float]:
    """Runs `omr convert` in a process of its own; returns seconds, and the process's peak of memory in MiB."""
    words = ["convert", direction, str(source), str(out), *options]
    command = [sys.executable, "-c", RUN, *words]
    os.sync()
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    *_, line = done.stdout.splitlines()
    return seconds, int(line.split()[1]) / 1024


def _imports_mib() -> float:
    code = RUN.replace(
        "code = main(sys.argv[1:])",
        "import megatron_omr.convert_folders.to_megatron, megatron_omr.convert_folders.to_hf; code = 0",
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[1]) / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", default=DEFAULT, help=f"of {', '.join(SIZES)}")
    main(parser.parse_args().sizes)
