"""Writes what verl and TRL give for fixed tensors to tests/golden/peers.json, for the tests that have neither.

.venv-peers/bin/python -m tests.peers.write_golden
"""

from __future__ import annotations

import json
from dataclasses import fields
from importlib.metadata import version

import torch
from torch import Tensor

from tests.helpers.peer_cases import CONFIGS, GOLDEN, Case, Result, random_case, to_json
from tests.peers.test_advantages import VERL, ask_verl, random_rewards
from tests.peers.trl_losses import knows, run_trl
from tests.peers.verl_losses import run_verl

DIGITS = 12


def main() -> None:
    cases = {
        "ragged": random_case(0).part(1, 6),
        "no empty response": random_case(0, empty=0).part(1, 5),
        "extreme ratios": random_case(2, largest=15.0).part(0, 4),
        "an advantage for each token": random_case(2, by_token=True).part(0, 4),
    }
    cases = {name: rounded(case) for name, case in cases.items()}
    results = []
    for name, config in CONFIGS.items():
        for case_name, case in cases.items():
            if case_name == "no empty response":
                if knows(config):
                    results.append(record("trl", case_name, name, run_trl(config, case)))
            elif fits(name, case_name):
                results.append(record("verl", case_name, name, run_verl(config, case)))
    rewards = random_rewards(0)
    golden = {
        "versions": {name: version(name) for name in ("verl", "trl", "torch")},
        "configs": {name: to_json(config) for name, config in CONFIGS.items()},
        "cases": {name: case_to_json(case) for name, case in cases.items()},
        "losses": results,
        "rewards": rewards.tolist(),
        "advantages": {
            f"{name} {function} {options or ''}".strip(): ask_verl(function, rewards, **options).tolist()
            for name, function, options in VERL
        },
    }
    GOLDEN.write_text(to_text(golden))


def fits(config: str, case: str) -> bool:
    """Returns True if verl and our loss are equal on the case: see test_differences.py."""
    return not (
        (case == "an advantage for each token" and config.startswith("gspo") and "token" not in config)
        or (case == "extreme ratios" and config.endswith("_k3"))
    )


def rounded(case: Case) -> Case:
    """Returns the case with inputs of few digits, so that the file is short."""
    return Case(**{f.name: getattr(case, f.name).mul(1e6).round().div(1e6) for f in fields(case)})


def case_to_json(case: Case) -> dict[str, list]:
    return {f.name: getattr(case, f.name).tolist() for f in fields(case)}


def record(peer: str, case: str, config: str, result: Result) -> dict:
    return {
        "peer": peer,
        "case": case,
        "config": config,
        "loss": result.loss,
        "clip_fraction": result.clip_fraction,
        "dual_clip_fraction": result.dual_clip_fraction,
        "gradient_BL": shorten(result.gradient_BL),
    }


def shorten(values_BL: Tensor) -> list[list[float]]:
    return [[float(f"{value:.{DIGITS}g}") + 0.0 for value in row] for row in values_BL.tolist()]


def to_text(golden: dict) -> str:
    """Returns JSON of a line for each entry of each section."""
    sections = []
    for name, section in golden.items():
        if isinstance(section, dict):
            lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in section.items()]
            opening, closing = "{", "}"
        else:
            lines = [f"  {json.dumps(value)}" for value in section]
            opening, closing = "[", "]"
        sections.append(f" {json.dumps(name)}: {opening}\n" + ",\n".join(lines) + f"\n {closing}")
    return "{\n" + ",\n".join(sections) + "\n}\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
