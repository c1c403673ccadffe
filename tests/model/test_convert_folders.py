"""Hugging Face folder -> Megatron checkpoint in one layout -> Hugging Face folder from another: the same bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

from launch.cli import main
from megatron_omr.config import ConvertConfig, ParallelConfig
from tests.helpers.ranks import run_ranks

pytestmark = pytest.mark.heavy


def to_megatron(config: ConvertConfig) -> None:
    from megatron_omr.convert_folders import to_megatron

    env = os.environ
    to_megatron(
        config, rank=int(env["RANK"]), world_size=int(env["WORLD_SIZE"]), init_method=env["INIT_METHOD"]
    )


def to_hf(config: ConvertConfig) -> None:
    from megatron_omr.convert_folders import to_hf

    env = os.environ
    to_hf(config, rank=int(env["RANK"]), world_size=int(env["WORLD_SIZE"]), init_method=env["INIT_METHOD"])


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (ParallelConfig(tp=2), ParallelConfig()),
        (ParallelConfig(pp=2), ParallelConfig(tp=2)),
        (ParallelConfig(pp=2, layers=(3, 1)), ParallelConfig(pp=2, vp=2)),
        (ParallelConfig(pp=2, vp=2), ParallelConfig()),
    ],
    ids=["tp2-tp1", "pp2-tp2", "pp2 uneven-pp2 vp2", "pp2 vp2-tp1"],
)
@pytest.mark.parametrize("fixture", ["tiny_hf", "tiny_tied_hf"])
def test_round_trip_through_a_checkpoint_keeps_the_bytes(
    fixture: str,
    there: ParallelConfig,
    back: ParallelConfig,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    source, checkpoint, result = request.getfixturevalue(fixture), tmp_path / "checkpoint", tmp_path / "hf"
    run_ranks(to_megatron, 2, ConvertConfig(source=str(source), out=str(checkpoint), parallel=there))
    config = ConvertConfig(source=str(checkpoint), out=str(result), parallel=back)
    run_ranks(to_hf, back.model_parallel_size, config)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, result))
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) and before[name].dtype == after[name].dtype for name in before)
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json", "generation_config.json"):
        assert (source / name).read_bytes() == (result / name).read_bytes()


def test_existing_folder_is_not_overwritten(tiny_hf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(p.name for p in tiny_hf.iterdir())
    assert main(["convert", "to-megatron", str(tiny_hf), str(tiny_hf)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert sorted(p.name for p in tiny_hf.iterdir()) == before
