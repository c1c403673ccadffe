"""A small model made for shards: its tokenizer knows their texts, and the folder is whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2_5_VLForConditionalGeneration

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.config import ImageConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from launch.cli import main
from megatron_omr.tiny import TinyConfig, TinyRunConfig, create_tiny_model_for


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(digit_samples("train", 60, 0), tmp_path / "shards")
    return tmp_path / "shards"


def test_command_makes_a_model_that_encodes_the_shards_in_few_tokens(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "model"
    assert main(["tiny", str(shards), str(out), "--hidden_size", "64", "--num_layers", "1"]) == 0
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(out)
    printed = capsys.readouterr().out
    assert f"{model.num_parameters():,} parameters" in printed and f"--model {out}" in printed
    encoder = ChatEncoder.from_hf(out, ImageConfig())
    sample = next(read_shards(shards))
    assert len(encoder.encode(sample)) < 0.5 * sum(len(message.content) for message in sample.messages)
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode


def test_tokenizer_reads_no_more_samples_than_asked(shards: Path, tmp_path: Path):
    few = TinyRunConfig(shards=str(shards), out=str(tmp_path / "few"), samples=2, num_layers=1)
    all_of_them = TinyRunConfig(shards=str(shards), out=str(tmp_path / "all"), samples=0, num_layers=1)
    assert create_tiny_model_for(few)[1] < create_tiny_model_for(all_of_them)[1] <= 2_048


def test_a_failure_leaves_no_folder(tmp_path: Path):
    with pytest.raises(ValueError, match="does not exist"):
        create_tiny_model_for(TinyRunConfig(shards=str(tmp_path / "none"), out=str(tmp_path / "model")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_layers": 1}, "deepstack_visual_indexes has 2 entries, each for a language layer"),
        ({"vision_depth": 2}, r"deepstack_visual_indexes=\[0, 2\] must rise and be below depth=2"),
        ({"num_position_embeddings": 101}, "num_position_embeddings=101 must be a square"),
        (
            {"family": "qwen3_vl_moe", "num_experts": 2, "num_experts_per_tok": 4},
            "num_experts_per_tok=4 must be at most num_experts=2",
        ),
        ({"family": "qwen3_vl_moe", "mlp_only_layers": (0, 1, 2, 3)}, "leave no layer with experts"),
    ],
)
def test_model_that_could_not_be_read_is_refused_before_its_weights_are_made(
    shards: Path, tmp_path: Path, sizes: dict[str, Any], message: str
):
    config = TinyRunConfig(
        shards=str(shards), out=str(tmp_path / "model"), samples=2, **{"family": "qwen3_vl"} | sizes
    )
    with pytest.raises(ValueError, match=message):
        create_tiny_model_for(config)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 100}, "hidden_size=100 must be a multiple of 8 x num_heads = 32, e.g. 96"),
        ({"num_heads": 3, "hidden_size": 120}, "num_heads=3 must be a multiple of num_kv_heads = 2"),
        ({"vision_hidden_size": 8}, "vision_hidden_size=8 must be a multiple of 4 x vision_num_heads = 16"),
        ({"vocab_size": 100}, "vocab_size=100 must be at least 263"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        TinyConfig(**sizes)
