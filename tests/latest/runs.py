"""Saves and loads checkpoints in several layouts with the Megatron-Core of the Python that runs this.

python -m tests.latest.runs save MODEL OUT          OUT/LAYOUT: a checkpoint, and the step after it
python -m tests.latest.runs load MODEL SAVED OUT    OUT/FROM-INTO: the step after loading SAVED/FROM in layout INTO
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from data_pipeline.files import write_json
from megatron_omr.config import ParallelConfig
from tests.helpers.checkpoints import load_and_step, train_and_save
from tests.helpers.ranks import run_ranks

LAYOUTS = {"dp2": ParallelConfig(), "tp2": ParallelConfig(tp=2, sp=True), "pp2": ParallelConfig(pp=2)}
CASES = [("dp2", "dp2"), ("tp2", "tp2"), ("pp2", "pp2"), ("dp2", "tp2"), ("tp2", "pp2"), ("pp2", "dp2")]


def save_all(model: Path, out: Path) -> None:
    for name, parallel in LAYOUTS.items():
        (out / name).mkdir(parents=True)
        step = run_ranks(train_and_save, 2, str(model), parallel, str(out / name))[-1]  # of the last stage
        write_json(out / name / "step.json", step._asdict())
    write_json(
        out / "versions.json", {"python": sys.version_info[:2], "megatron-core": version("megatron-core")}
    )


def load_all(model: Path, saved: Path, out: Path) -> None:
    for one, other in CASES:
        place, checkpoint = out / f"{one}-{other}", saved / one / "step-00000002"
        place.mkdir(parents=True)
        loaded = run_ranks(load_and_step, 2, str(model), LAYOUTS[other], str(checkpoint), str(place))
        number, state, step = loaded[-1]
        write_json(place / "step.json", {"number": number, "state": state, "step": step._asdict()})


if __name__ == "__main__":
    {"save": save_all, "load": load_all}[sys.argv[1]](*map(Path, sys.argv[2:]))
