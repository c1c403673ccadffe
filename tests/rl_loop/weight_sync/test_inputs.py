"""What trainer and engine make prompts with is compared field by field, also what the files of their folders say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_pipeline.encode.config import ImageConfig
from rl.config import EvalConfig, SamplingConfig
from rl.prompts.stream import load_prompt_limits
from rl.weight_sync.digest import digest_model, join_ranks
from rl.weight_sync.inputs import check_inputs, describe_inputs
from rl.weight_sync.layout import WeightMismatch


def describe(config: EvalConfig) -> dict[str, str]:
    return describe_inputs(config, load_prompt_limits(config))


@pytest.fixture
def config(tiny_hf: Path, tmp_path: Path) -> EvalConfig:
    return EvalConfig(model=str(tiny_hf), shards="", out="")


def test_equal_settings_and_copied_files_agree(config: EvalConfig, tmp_path: Path) -> None:
    own = describe(config)
    assert all(len(value) <= 40 for value in own.values())
    assert {
        "tokenizer",
        "chat template",
        "banned tokens",
        "image.max_pixels",
        "image processor: patch_size",
    } <= own.keys()
    folder = tmp_path / "other"
    shutil.copytree(config.model, folder)
    check_inputs(own, describe(replace(config, model=str(folder))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: replace(c, image=ImageConfig(min_pixels=784)),
            "image.min_pixels is 3136 in the trainer, 784 in the",
        ),
        (
            lambda c: replace(c, sampling=SamplingConfig(n=1, temperature=0.7)),
            "sampling.temperature is 0.0 in the trainer, 0.7 in the engine",
        ),
    ],
)
def test_another_setting_is_named(config: EvalConfig, change: Callable, message: str) -> None:
    with pytest.raises(WeightMismatch, match=message):
        check_inputs(describe(config), describe(change(config)))


def edit_json(path: Path, edit: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_files_that_differ_are_named(config: EvalConfig, tmp_path: Path) -> None:
    """Template, tokenizer and vision settings of a folder that another machine has at the same path."""
    folder = tmp_path / "other"
    shutil.copytree(config.model, folder)
    edit_json(folder / "config.json", lambda c: c["vision_config"].update(window_size=56))
    edit_json(folder / "tokenizer.json", lambda t: t["model"]["merges"].pop())
    template = folder / "chat_template.jinja"
    template.write_text("Be short." + template.read_text())
    with pytest.raises(WeightMismatch) as refused:
        check_inputs(describe(config), describe(replace(config, model=str(folder))))
    message = str(refused.value)
    assert all(
        name in message
        for name in ("chat template is", "tokenizer is", "config.json: vision_config.window_size")
    )
    assert "banned tokens" not in message


def test_digests_tell_which_tensor_has_another_bit() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).bfloat16()
    before = digest_model(model)
    assert {"0.weight", "0.bias", "1.running_mean"} <= before.keys()
    with torch.no_grad():
        model[0].weight.view(torch.int16)[1, 2] ^= 1
    after = digest_model(model)
    assert {name for name in before if before[name] != after[name]} == {"0.weight"}
    assert join_ranks([before]) == before
    assert join_ranks([before, after])["rank 1: 0.weight"] == after["0.weight"]
