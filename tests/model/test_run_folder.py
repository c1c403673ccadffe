"""A run's folder: settings that a resumed run must keep."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from data_pipeline.files import write_json
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from megatron_omr.config import ComputeConfig, SFTConfig
from megatron_omr.train.run_folder import claim_run, list_checkpoints, list_train_shards, save_config


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float = 0.1
    max_bad_steps: int = 10


@dataclass(frozen=True, kw_only=True)
class Config:
    run: str = "a"
    model: str = "m"
    steps: int = 10
    optim: Optim = Optim()


def test_resumed_run_must_keep_its_settings(tmp_path: Path) -> None:
    save_config(Config(), tmp_path, resumes=False)
    save_config(Config(steps=20), tmp_path, resumes=True)
    with pytest.raises(ValueError, match=r"made with other settings: optim.lr was 0.1, is 0.2;"):
        save_config(Config(optim=Optim(lr=0.2)), tmp_path, resumes=True)
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 20


def test_fields_newer_than_the_run_had_their_defaults(tmp_path: Path) -> None:
    for missing in ({"optim": {"max_bad_steps": 10}}, {}):
        (tmp_path / "config.json").write_text(json.dumps({"run": "a", "model": "m", "steps": 10} | missing))
        with pytest.raises(ValueError, match=r"made with other settings: optim.lr was 0.1, is 0.2;"):
            save_config(Config(optim=Optim(lr=0.2)), tmp_path, resumes=True)
        save_config(Config(), tmp_path, resumes=True)


def test_run_whose_fields_are_gone_is_refused_by_name(tmp_path: Path) -> None:
    begun = {"run": "a", "model": "m", "optim": {"lr": 0.1, "beta": 0.9, "max_bad_steps": 3}}
    (tmp_path / "config.json").write_text(json.dumps(begun))
    with pytest.raises(
        ValueError, match=r"begun by a version that had optim.beta, which this one does not have"
    ):
        save_config(Config(), tmp_path, resumes=True)


def test_resumed_run_keeps_its_number_format_and_may_change_its_kernels(tmp_path: Path) -> None:
    begun = SFTConfig(run="a", model="m", compute=ComputeConfig(fp8="tensorwise"))
    save_config(begun, tmp_path, resumes=False)
    kernels = replace(begun.compute, backend="local", recompute="full", wgrad_fusion="off")
    save_config(replace(begun, compute=kernels), tmp_path, resumes=True)
    with pytest.raises(ValueError, match=r"compute.fp8 was 'tensorwise', is 'off';"):
        save_config(replace(begun, compute=ComputeConfig()), tmp_path, resumes=True)


def test_folder_without_room_for_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(shutil.disk_usage(tmp_path).free // 2)  # takes no room itself
    with pytest.raises(OSError, match=r"run has .* GB free, and a checkpoint takes at least .* GB"):
        claim_run(Config(model=str(tmp_path)), tmp_path / "run")


def test_resumed_run_may_raise_the_limits_that_stopped_it(tmp_path: Path) -> None:
    save_config(Config(), tmp_path, resumes=False)
    save_config(Config(optim=Optim(max_bad_steps=20)), tmp_path, resumes=True)
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["max_bad_steps"] == 20


def test_only_folders_of_our_own_names_are_checkpoints(tmp_path: Path) -> None:
    ours = ["step-00000005", "step-00000040", "step-12345678"]
    names = [
        *reversed(ours),
        "step-00000005-best",
        "step-00000040.bak",
        "best-step-00000005",
        "step-123456789",
    ]
    for name in [*names, "step-40", "step-0000004x", ".step-00000041.partial", ".step-00000001.old"]:
        (tmp_path / name).mkdir()
    for name in ("step-notes.txt", "step-00000050"):
        (tmp_path / name).touch()
    assert [path.name for path in list_checkpoints(tmp_path)] == ours
    assert list_checkpoints(tmp_path / "none") == []


def test_training_shards_are_those_of_the_run_and_of_the_runs_before(tmp_path: Path) -> None:
    for name in ("sft-data", "rl-data"):
        write_shards(digit_samples("train", 2, 0), tmp_path / name)
    sft, rl = tmp_path / "sft", tmp_path / "rl"
    begin = {
        "run": str(sft),
        "model": str(tmp_path / "base"),
        "loader": {"shards": str(tmp_path / "sft-data")},
    }
    write_json(sft / "config.json", begin)
    write_json(
        rl / "config.json", {"run": str(rl), "model": str(sft / "hf"), "shards": str(tmp_path / "rl-data")}
    )
    assert list_train_shards(rl / "hf") == [str(tmp_path / "rl-data"), str(tmp_path / "sft-data")]
    assert list_train_shards(sft / "hf") == [str(tmp_path / "sft-data")]
    assert list_train_shards(tmp_path / "base") == []
    gone = begin | {
        "loader": {"shards": str(tmp_path / "gone")},
        "model": str(sft / "hf"),
    }  # names itself, too
    write_json(sft / "config.json", gone)
    assert list_train_shards(sft / "hf") == []
