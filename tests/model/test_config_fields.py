"""Every field of config.json: what changes transformers' logits is refused by name, or changes ours in the same way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipeline.encode.config import PATCH_FORMATS
from data_pipeline.encode.images import normalise
from data_pipeline.types import Example
from megatron_omr.config import ParallelConfig
from tests.helpers.ranks import init_ranks, run_ranks

pytestmark = pytest.mark.heavy

PARTS = ("", "text_config", "vision_config")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
READ_BY_NAME = {  # what transformers or vLLM look up although no config class declares it
    "": {"quantization_config": {"quant_method": "fp8"}, "per_layer_config": {"0": {"hidden_act": "gelu"}}},
    "text_config": {
        "head_dim": 16,
        "partial_rotary_factor": 0.5,
        "attention_bias": False,
        "mlp_bias": True,
        "rope_theta": 99.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0, "mrope_section": [4, 6, 6]},
        "original_max_position_embeddings": 64,
        "dual_chunk_attention_config": {"chunk_size": 8},
        "tie_word_embeddings": True,
        "per_layer_config": {"0": {"hidden_act": "gelu"}},
        "norm_topk_prob": False,
    },
    "vision_config": {
        "head_dim": 8,
        "in_chans": 4,
        "rope_theta": 99.0,
        "rope_scaling": {"rope_type": "axial", "rope_theta": 99.0},
        "rms_norm_eps": 0.5,
    },
}
ROPES = [  # changes of text_config.rope_parameters
    {"rope_theta": 99.5},
    {"mrope_section": [4, 4, 4, 4]},
    {"mrope_interleaved": False},
    {"mrope_interleaved": True},
    {"partial_rotary_factor": 0.5},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "longrope", "factor": 2.0, "short_factor": [2.0], "long_factor": [3.0]},
    {"type": "yarn", "factor": 4.0},
    YARN,
    YARN | {"beta_fast": 8.0, "beta_slow": 0.5, "truncate": False},
    YARN | {"attention_factor": 1.5},
    YARN | {"mscale": 2.0, "mscale_all_dim": 1.0},
]


def mutations(config: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yields (part, field, value): other values of every field of transformers' classes, and of what they read."""
    from transformers import AutoConfig

    fields_of_config = {name: value for name, value in config.items() if name != "model_type"}
    whole = AutoConfig.for_model(config["model_type"], **fields_of_config)
    parts = dict(zip(PARTS, (whole, whole.text_config, whole.vision_config), strict=True))
    for part, known in parts.items():
        given = config[part] if part else config
        for field in fields(known):
            if field.name not in ("text_config", "vision_config", "rope_parameters", "dtype"):
                now = given.get(field.name, getattr(known, field.name))
                yield from ((part, field.name, value) for value in other_values(now))
        yield from ((part, name, value) for name, value in READ_BY_NAME[part].items())
    rope = config["text_config"]["rope_parameters"]
    time, height, width = rope["mrope_section"]
    changes = [*ROPES, {"mrope_section": [time + 2, height - 1, width - 1]}]
    yield from (("text_config", "rope_parameters", {**rope, "type": None} | change) for change in changes)
    tower = config["vision_config"]["rope_parameters"]
    yield "vision_config", "rope_parameters", tower | {"rope_theta": 99.0}


def other_values(value: Any) -> list[Any]:
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, value * 2]
        case float():
            return [value * 2 + 0.25]
        case str():
            return ["gelu", "swish"]
        case list() | tuple():
            return [[], list(value[:-1]) + ["sliding_attention"] if "full_attention" in value else [0, 1]]
        case _:
            return [1, True, ["sliding_attention"] * 4]


@pytest.mark.parametrize(
    ("base", "parts", "refuses", "ignores", "follows"),
    [
        (
            "tiny_hf",
            PARTS,
            {"text_config.hidden_act", "text_config.attention_dropout", "text_config.head_dim"},
            {"text_config.attention_bias", "text_config.sliding_window", "vision_config.in_chans"},
            {"vision_config.window_size"},
        ),
        (
            "tiny_qwen3",
            PARTS,
            {"text_config.hidden_act", "text_config.attention_bias", "vision_config.num_position_embeddings"},
            {"vision_config.in_chans"},
            {"vision_config.deepstack_visual_indexes"},
        ),
        (
            "tiny_moe_hf",
            ("text_config",),  # the others are read as the dense model's
            {"text_config.norm_topk_prob", "text_config.mlp_only_layers", "text_config.decoder_sparse_step"},
            {"text_config.router_aux_loss_coef", "text_config.output_router_logits"},
            {"text_config.num_experts_per_tok"},
        ),
    ],
)
def test_no_field_changes_transformers_alone(
    base: str,
    parts: tuple[str, ...],
    refuses: set[str],
    ignores: set[str],
    follows: set[str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    folder = str(request.getfixturevalue(base))
    refused, harmless, honoured, wrong = run_ranks(_compare, 1, folder, str(tmp_path), parts)[0]
    assert not wrong
    assert refuses <= refused and ignores <= harmless
    # these changed transformers' logits, and ours with them
    assert {"text_config.rms_norm_eps", "text_config.rope_parameters"} | follows <= honoured


def _compare(base: str, out: str, parts: tuple[str, ...]) -> tuple[set[str], set[str], set[str], list[str]]:
    """Returns the fields with a refused, a harmless and an honoured value; values that change transformers' alone."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers.utils import logging

    from megatron_omr.model_config import ModelConfig
    from megatron_omr.oracle import draw_example

    logging.disable_progress_bar()
    ranks, folder = init_ranks(ParallelConfig()), Path(out)
    config = json.loads((Path(base) / "config.json").read_text())
    (folder / "model.safetensors").symlink_to(Path(base) / "model.safetensors")
    plain = ModelConfig.from_hf(base)
    example = draw_example(plain, "", 2, torch.Generator().manual_seed(0))
    example.position_ids.add_(300)  # far beyond what YARN stretches
    usual = _theirs(base, example)
    refused, harmless, honoured, wrong = set(), set(), set(), []
    for part, name, value in mutations(config):
        field = f"{part}.{name}".strip(".")
        if part not in parts:
            continue
        if field == "tie_word_embeddings" and plain.tie_word_embeddings:
            continue  # the files hold no head, and transformers would draw one
        changed = config | ({part: config[part] | {name: value}} if part else {name: value})
        (folder / "config.json").write_text(json.dumps(changed))
        try:
            model = ModelConfig.from_hf(folder)
            ours = usual if model == plain else _ours(out, model, ranks, example)
        except ValueError:
            refused.add(field)
            continue
        try:
            theirs = _theirs(out, example)
        except (
            AttributeError,
            StrictDataclassError,
            TypeError,
        ):  # its configs check types; return_dict breaks it
            continue
        if not (difference := float((ours - theirs).abs().max())) < 1e-4:
            wrong.append(f"{field}={value}: logits differ by {difference}")
        (harmless if theirs.equal(usual) else honoured).add(field)
    return refused, harmless, honoured, wrong


def _ours(folder: str, model: Any, ranks: Any, example: Example) -> Tensor:
    from data_pipeline.loader.packing import merge
    from megatron_omr.convert.load import load_hf
    from megatron_omr.model.build import build_model

    chunks = build_model(model, ParallelConfig(), ranks, precision="fp32")
    load_hf(chunks, folder, model, ranks)
    with torch.no_grad():
        return chunks[0](merge([example], multiple=1, pad_token_id=0))[:, 0]


def _theirs(folder: str, example: Example) -> Tensor:
    """Returns transformers' logits [T, V] in training, where dropout counts."""
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).train()
    ids = example.input_ids[None]
    patches = next(known for known in PATCH_FORMATS if known.num_bytes == example.pixels.size(1))
    with torch.no_grad():
        return model(
            input_ids=ids,
            position_ids=example.position_ids[:, None],
            pixel_values=normalise(example.pixels, patches),
            image_grid_thw=example.image_grid_thw,
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
        ).logits[0]
