"""Configs of model and layout: read from config.json, and errors that name the field."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.loader.config import LoaderConfig
from megatron_omr.config import ComputeConfig, OptimConfig, ParallelConfig, SFTConfig, ValidationConfig
from megatron_omr.families.shapes import MoeConfig
from megatron_omr.model_config import ModelConfig

HF: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "dtype": "bfloat16",
    "image_token_id": 5,
    "video_token_id": 6,
    "vision_start_token_id": 3,
    "vision_end_token_id": 4,
    "tie_word_embeddings": True,
    "text_config": {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_theta": 1e6, "mrope_section": [4, 6, 6]},
    },
    "vision_config": {
        "depth": 4,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "in_chans": 3,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [3],
        "out_hidden_size": 128,
    },
}

QWEN3: dict[str, Any] = HF | {
    "model_type": "qwen3_vl",
    "text_config": HF["text_config"]
    | {
        "head_dim": 48,
        "rope_parameters": {"rope_theta": 1e6, "mrope_section": [10, 7, 7], "mrope_interleaved": True},
    },
    "vision_config": {
        name: value
        for name, value in HF["vision_config"].items()
        if name not in ("window_size", "fullatt_block_indexes")
    }
    | {"patch_size": 16, "num_position_embeddings": 144, "deepstack_visual_indexes": [0, 2]},
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "norm_topk_prob": True}

YARN = HF["text_config"]["rope_parameters"] | {"rope_type": "yarn", "factor": 2.0, "beta_fast": "32"}


def read(folder: Path, **changes: Any) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(HF | changes))
    return ModelConfig.from_hf(folder)


def test_config_of_transformers_5(tmp_path: Path) -> None:
    model = read(tmp_path)
    assert (model.precision, model.rope.theta, model.head_dim) == ("bf16", 1e6, 32)
    assert model.vision.in_channels == 3 and model.vision.fullatt_block_indexes == (3,)
    assert model.vision_token_ids == (5, 6, 3, 4)


def test_config_of_qwen3_vl(tmp_path: Path) -> None:
    model = read(tmp_path, **QWEN3)
    assert (model.head_dim, model.qk_norm, model.qkv_bias, model.moe) == (48, True, False, None)
    assert model.rope.interleaved and model.family.patches.side == 16
    assert model.vision.num_levels == 2 and model.vision.positions_per_side == 12
    assert model.vision.num_full_layers == 4 and not model.vision.gated_mlp


def test_config_of_qwen3_vl_with_experts(tmp_path: Path) -> None:
    text = QWEN3["text_config"] | EXPERTS | {"mlp_only_layers": [2], "decoder_sparse_step": 1}
    moe = read(tmp_path, **QWEN3 | {"model_type": "qwen3_vl_moe", "text_config": text}).moe
    assert moe is not None and (moe.num_experts, moe.num_chosen, moe.layers) == (8, 2, (0, 1, 3))


@pytest.mark.parametrize("said", [{}, {"norm_topk_prob": None}, {"norm_topk_prob": False}])
def test_weights_of_experts_must_be_said_to_add_up(tmp_path: Path, said: dict[str, Any]) -> None:
    text = QWEN3["text_config"] | EXPERTS
    del text["norm_topk_prob"]
    with pytest.raises(ValueError, match="norm_topk_prob=(None|False) is not supported; only True is"):
        read(tmp_path, **QWEN3 | {"model_type": "qwen3_vl_moe", "text_config": text | said})


@pytest.mark.parametrize("whole", [None, True, False])
@pytest.mark.parametrize("text", [None, True, False])
@pytest.mark.parametrize("base", [HF, QWEN3], ids=["qwen2_5_vl", "qwen3_vl"])
def test_embeddings_are_tied_where_transformers_ties_them(
    tmp_path: Path, base: dict[str, Any], text: bool | None, whole: bool | None
) -> None:
    from transformers import AutoConfig

    changed = {name: value for name, value in base.items() if name != "tie_word_embeddings"}
    if whole is not None:
        changed["tie_word_embeddings"] = whole
    if text is not None:
        changed["text_config"] = base["text_config"] | {"tie_word_embeddings": text}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    theirs = AutoConfig.from_pretrained(tmp_path).tie_word_embeddings
    assert ModelConfig.from_hf(tmp_path).tie_word_embeddings == theirs


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("text_config", {"attention_bias": True}, "attention_bias=True is not supported"),
        ("text_config", {"head_dim": None}, "head_dim=None must be a whole number"),
        (
            "text_config",
            {"rope_parameters": {"rope_theta": 1e6, "mrope_section": [10, 7, 7]}},
            "must be true",
        ),
        ("text_config", {"num_hidden_layers": 1}, "deepstack_visual_indexes has 2 entries, each for a lang"),
        ("vision_config", {"patch_size": 14}, "patch_size=14 is not supported; only 16 is"),
        ("vision_config", {"num_position_embeddings": 145}, "num_position_embeddings=145 must be a square"),
        ("vision_config", {"deepstack_visual_indexes": [2, 0]}, "must rise and be below depth=4"),
        ("vision_config", {"deepstack_visual_indexes": [4]}, "must rise and be below depth=4"),
    ],
)
def test_wrong_config_of_qwen3_vl_is_an_error(
    tmp_path: Path, part: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, **QWEN3 | {part: QWEN3[part] | changes})


def test_config_of_transformers_4_says_the_same(tmp_path: Path) -> None:
    text = HF["text_config"] | {"rope_theta": 1e6, "rope_scaling": {"mrope_section": [4, 6, 6]}}
    del text["rope_parameters"]
    flat = {k: v for k, v in HF.items() if k not in ("text_config", "dtype")} | text
    (tmp_path / "config.json").write_text(json.dumps(flat | {"torch_dtype": "bfloat16"}))
    assert ModelConfig.from_hf(tmp_path) == read(tmp_path)


def test_fields_in_two_places_mean_what_transformers_reads(tmp_path: Path) -> None:
    text = HF["text_config"] | {"tie_word_embeddings": True, "num_key_value_heads": None}
    model = read(tmp_path, tie_word_embeddings=False, text_config=text, hidden_act="gelu", hidden_size=7)
    assert model.tie_word_embeddings and model.hidden_size == 128 and model.num_kv_heads == 4
    flat = {k: v for k, v in HF.items() if k != "text_config"} | HF["text_config"] | {"text_config": None}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    assert ModelConfig.from_hf(tmp_path) == read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": []}, r"model_type=\[\] is not supported; these are"),
        ({"model_type": {}}, "model_type={} is not supported; these are"),
        ({"model_type": "llama"}, "'llama' is not supported; these are: 'qwen2_5_vl' .*docs/families.md"),
        ({"dtype": "float16"}, "config.json: dtype is float16; weights must be float32 or bfloat16"),
        ({"vision_config": {"depth": 4}}, "has no field 'fullatt_block_indexes'"),
        ({"vision_config": None}, "config.json: vision_config is None, not a JSON object"),
        ({"image_token_id": 10**9}, "must be below vocab_size"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes' must be true or false"),
        ({"text_config": HF["text_config"] | {"hidden_act": "gelu"}}, "hidden_act='gelu' is not supported"),
        ({"text_config": HF["text_config"] | {"hidden_size": "128"}}, "hidden_size='128' must be a whole"),
        ({"text_config": HF["text_config"] | {"use_sliding_window": True}}, "only False is"),
        ({"text_config": HF["text_config"] | {"layer_types": 5}}, "layer_types=5 is not supported"),
        (
            {"text_config": HF["text_config"] | {"layer_types": ["full_attention", "sliding_attention"]}},
            "layer_types=.*'sliding_attention'.* is not supported",
        ),
        ({"text_config": HF["text_config"] | {"rope_parameters": YARN}}, "beta_fast='32' must be a number"),
        (
            {
                "text_config": HF["text_config"]
                | {"rope_scaling": {"rope_theta": 5, "mrope_section": [4, 6, 6]}}
            },
            "rope_scaling=.* and rope_parameters=.* differ; delete one",
        ),
    ],
)
def test_wrong_config_is_an_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, **changes)


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (ParallelConfig(tp=4), r"tp=4 must divide num_key_value_heads=2; this model allows tp = 1, 2$"),
        (ParallelConfig(pp=5), r"pp=5 x vp=1 = 5 chunks need .*num_hidden_layers=4; .* at most 4 chunks$"),
        (ParallelConfig(pp=2, vp=3), r"pp=2 x vp=3 = 6 chunks need a layer each, but num_hidden_layers=4; "),
        (ParallelConfig(layers=(3,)), r"layers=\(3,\) has 3 layers in all, but num_hidden_layers=4; "),
        (ParallelConfig(pp=2, layers=(2, 3)), r"layers=\(2, 3\) has 5 layers in all, but .*=4; change its"),
        (ParallelConfig(ep=2), r"ep=2 and parallel.etp=0 divide experts, and this model has none"),
    ],
)
def test_layout_that_does_not_fit_the_model_is_an_error(
    tmp_path: Path, parallel: ParallelConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parallel.check_model(read(tmp_path))


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (ParallelConfig(tp=2), r"tp=2 needs parallel.sp=True with experts: each rank"),
        (ParallelConfig(ep=4), r"ep=4 must divide num_experts=6; use 1 or 2$"),
        (ParallelConfig(etp=4), r"etp=4 must divide moe_intermediate_size=10; use parallel.etp=1 or 2$"),
        (ParallelConfig(ep=2, etp=1, tp=2, sp=True), None),
    ],
)
def test_layout_of_experts(tmp_path: Path, parallel: ParallelConfig, message: str | None) -> None:
    moe = MoeConfig(num_experts=6, num_chosen=2, intermediate_size=10, layers=(0, 1, 2, 3))
    model = replace(read(tmp_path), moe=moe)
    if message is None:
        parallel.check_model(model)
        return
    with pytest.raises(ValueError, match=message):
        parallel.check_model(model)


def test_fp8_is_refused_with_experts(tmp_path: Path) -> None:
    moe = MoeConfig(num_experts=6, num_chosen=2, intermediate_size=10, layers=(0, 1, 2, 3))
    with pytest.raises(
        ValueError, match=r"compute.fp8=blockwise was not tried with experts, and this model has 6"
    ):
        ComputeConfig(fp8="blockwise").check_model(replace(read(tmp_path), moe=moe), ParallelConfig())


def test_experts_divide_the_world() -> None:
    assert ParallelConfig(tp=2, sp=True, ep=4, etp=1).dp(8) == 4
    assert ParallelConfig(tp=2, sp=True, ep=4).smallest_world == 8
    with pytest.raises(
        ValueError, match=r"^6 processes cannot hold parallel.etp=1 x ep=4 x pp=1 .* multiple of 4"
    ):
        ParallelConfig(tp=2, sp=True, ep=4, etp=1).dp(6)


@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(pp=3),  # does not divide the layers
        ParallelConfig(pp=2, vp=2),
        ParallelConfig(layers=(4,)),
        ParallelConfig(tp=2, pp=2, cp=2, sp=True, layers=(1, 3)),
    ],
)
def test_layout_that_fits_the_model_is_accepted(tmp_path: Path, parallel: ParallelConfig) -> None:
    parallel.check_model(read(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vp": 0}, r"parallel.vp=0 must be at least 1"),
        ({"vp": 2}, r"parallel.vp=2 needs parallel.pp > 1: .*; use vp=1"),
        ({"tp": 1, "sp": True}, r"parallel.sp=True needs parallel.tp > 1; drop sp or raise tp"),
        ({"layers": (1, 3)}, r"layers=\(1, 3\) has 2 entries; .* each of the pp=1 x vp=1 = 1 chunks"),
        ({"pp": 2, "vp": 2, "layers": (1, 3)}, r"has 2 entries; .* each of the pp=2 x vp=2 = 4 chunks, or"),
        ({"pp": 2, "layers": (0, 4)}, r"parallel.layers=\(0, 4\): each chunk needs at least 1 layer"),
    ],
)
def test_illegal_layout_is_refused_before_anything_starts(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelConfig(**fields)


def test_data_parallelism_is_the_rest_of_the_processes() -> None:
    assert ParallelConfig(tp=2, cp=2).dp(8) == 2
    with pytest.raises(ValueError, match=r"6 processes cannot hold .* start a multiple of 4"):
        ParallelConfig(tp=2, cp=2).dp(6)


def test_batch_or_pack_too_small_for_the_layout_is_refused() -> None:
    config = SFTConfig(run="r", model="m", loader=LoaderConfig(global_batch_size=3, pack_length=128))
    config.check_processes(3)
    with pytest.raises(
        ValueError, match=r"global_batch_size=3 must be at least 4, .* raise it, or start fewer"
    ):
        config.check_processes(4)
    blocks = {"parallel": ParallelConfig(tp=2, sp=True), "compute": ComputeConfig(fp8="blockwise")}
    with pytest.raises(ValueError, match=r"pack_length=128 must hold 256 tokens"):
        SFTConfig(run="r", model="m", loader=LoaderConfig(pack_length=128), **blocks)


def test_sequences_are_padded_for_zigzag_and_sequence_parallelism() -> None:
    one, sp, cp = ParallelConfig(), ParallelConfig(tp=4, sp=True), ParallelConfig(tp=4, cp=3, sp=True)
    assert [p.sequence_multiple for p in (one, sp, cp)] == [1, 1, 6]
    assert [p.pack_multiple() for p in (one, ParallelConfig(cp=3), sp, cp)] == [1, 6, 4, 12]
    assert [p.pack_multiple(16) for p in (one, sp, cp)] == [16, 64, 192]
    with pytest.raises(ValueError, match="sp=True needs parallel.tp > 1"):
        ParallelConfig(sp=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"freeze": ("language", "vision", "projector")}, "optim.freeze=.* leaves nothing to train"),
        ({"freeze": ("vision",), "vision_lr": 1e-6}, "optim.vision_lr=1e-06 has no effect with 'vision' in"),
        ({"projector_lr": 0.0}, "optim.projector_lr=0.0 and optim.lr=5e-05 must both be above 0"),
        ({"vision_lr": 1e-6, "lr": 0.0}, "optim.vision_lr=1e-06 and optim.lr=0.0 must both be above 0"),
    ],
)
def test_useless_freezing_and_rates_are_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**fields)


def test_only_rates_that_differ_are_a_part_s_own() -> None:
    assert OptimConfig(lr=1e-5, vision_lr=1e-5, projector_lr=1e-4).own_lrs == {"projector": 1e-4}


def test_validation_of_the_last_line_is_of_the_finished_weights() -> None:
    """Weights before the last step would be measured for the same line of metrics."""
    often, seldom = ValidationConfig(shards="v", every=1), ValidationConfig(shards="v", every=3)
    assert [step for step in range(6) if often.is_due(step, 5)] == [0, 1, 2, 3, 5]
    assert [step for step in range(9) if seldom.is_due(step, 8)] == [0, 3, 6, 8]
    assert not ValidationConfig(every=1).is_due(5, 5)
