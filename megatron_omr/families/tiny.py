"""Sizes of a small model of any family, and its config.json and preprocessor_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.config import check_at_least
from megatron_omr.families.choose import FAMILIES

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Sizes of a small model; the defaults are the demo's, 1.1 million parameters as a Qwen2.5-VL."""

    family: Literal["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"] = "qwen2_5_vl"
    """Its family, as config.json's `model_type` names it."""
    hidden_size: int = 128
    """Width of the language model."""
    intermediate_size: int = 256
    """Width of its feed-forward layers."""
    num_layers: int = 4
    """Its layers."""
    num_heads: int = 4
    """Attention heads."""
    head_dim: int = 0
    """Channels of a head, a multiple of 8; 0 is hidden_size / num_heads, which Qwen2.5-VL always has."""
    num_kv_heads: int = 2
    """Heads of keys and values; tensor parallelism can divide the model by this at most."""
    vision_depth: int = 4
    """Layers of the vision tower."""
    vision_hidden_size: int = 64
    """Width of the vision tower."""
    vision_intermediate_size: int = 128
    """Width of its feed-forward layers."""
    vision_num_heads: int = 4
    """Its attention heads of vision_hidden_size / vision_num_heads channels, a multiple of 4."""
    num_position_embeddings: int = 144
    """Learned positions of the vision tower, a square. Not of Qwen2.5-VL."""
    deepstack_visual_indexes: tuple[int, ...] = (0, 2)
    """Layers of the vision tower whose outputs the first language layers get, too. Not of Qwen2.5-VL."""
    num_experts: int = 8
    """Experts of each language layer of a mixture of experts."""
    num_experts_per_tok: int = 2
    """Experts of each token."""
    moe_intermediate_size: int = 96
    """Width of an expert."""
    mlp_only_layers: tuple[int, ...] = ()
    """Language layers without experts."""
    vocab_size: int = 512
    """Most tokens of the tokenizer: 256 bytes, Qwen's special tokens, and pieces that are frequent in the texts."""
    rope_theta: float = 10.0
    """The real models' 1e6 suits thousands of tokens; with this, positions next to each other in an image differ."""
    max_position_embeddings: int = 2_048
    """Most tokens of a prompt and its response."""
    initializer_range: float = 0.06
    """Three times wider than the real models' 0.02: narrow layers keep their signal, and learning starts at once."""
    tied: bool = False
    """Use the weights of the input embeddings for the output, too."""

    def __post_init__(self) -> None:
        check_at_least(self, num_layers=1, num_heads=1, num_kv_heads=1, vision_depth=1, vision_num_heads=1)
        check_at_least(self, vocab_size=256 + len(SPECIAL_TOKENS), max_position_embeddings=1)
        if self.head_dim and self.family == "qwen2_5_vl":
            raise ValueError(
                f"head_dim={self.head_dim} is of Qwen3-VL; a Qwen2.5-VL's heads have hidden_size / num_heads channels"
            )
        multiples = {
            "num_heads": ("num_kv_heads", self.num_kv_heads),
            "vision_hidden_size": ("4 x vision_num_heads", 4 * self.vision_num_heads),
            **(
                {"head_dim": ("8", 8)}
                if self.head_dim
                else {"hidden_size": ("8 x num_heads", 8 * self.num_heads)}
            ),
        }
        for name, (of, multiple) in multiples.items():
            value = getattr(self, name)
            if value < 1 or value % multiple:
                near = max(1, round(value / multiple)) * multiple
                raise ValueError(f"{name}={value} must be a multiple of {of} = {multiple}, e.g. {near}")

    @property
    def channels_of_head(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads


TINY_BASES = {
    "tiny_qwen2_5_vl": TinyConfig(),
    "tiny_qwen3_vl": TinyConfig(family="qwen3_vl", head_dim=48),
    "tiny_qwen3_vl_moe": TinyConfig(family="qwen3_vl_moe", head_dim=48, deepstack_visual_indexes=(0, 1)),
}
"""Small models of each family, by name: the bases of `omr demo`."""


def build_hf_config(config: TinyConfig, ids: dict[str, int], vocab_size: int) -> dict[str, Any]:
    """Returns the fields of config.json, where `ids` are those of SPECIAL_TOKENS."""
    text, vision = _text_fields(config, vocab_size), _vision_fields(config)
    special = {"bos": "<|endoftext|>", "eos": "<|im_end|>", "pad": "<|endoftext|>"}
    text |= {f"{name}_token_id": ids[token] for name, token in special.items()}
    text |= {"tie_word_embeddings": config.tied, "initializer_range": config.initializer_range}
    match config.family:
        case "qwen2_5_vl":
            vision |= {
                "window_size": 112,
                "fullatt_block_indexes": [config.vision_depth - 1],
                "tokens_per_second": 2,
            }
        case "qwen3_vl" | "qwen3_vl_moe":
            text["head_dim"] = config.channels_of_head
            vision |= {
                "num_position_embeddings": config.num_position_embeddings,
                "deepstack_visual_indexes": list(config.deepstack_visual_indexes),
            }
    if config.family == "qwen3_vl_moe":
        text |= {
            "num_experts": config.num_experts,
            "num_experts_per_tok": config.num_experts_per_tok,
            "moe_intermediate_size": config.moe_intermediate_size,
            "mlp_only_layers": list(config.mlp_only_layers),
            "norm_topk_prob": True,  # vLLM reads it
        }
    return dict(
        tie_word_embeddings=config.tied,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        text_config=text,
        vision_config=vision,
    )


def _text_fields(config: TinyConfig, vocab_size: int) -> dict[str, Any]:
    half, interleaved = config.channels_of_head // 2, FAMILIES[config.family].interleaved_rope
    # the real models split 64 half dimensions 16 : 24 : 24, or 24 : 20 : 20
    side = half * 20 // 64 if interleaved else half * 3 // 8
    rope = {
        "rope_type": "default",
        "mrope_section": [half - 2 * side, side, side],
        "rope_theta": config.rope_theta,
    }
    return dict(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=1e-6,
        rope_theta=config.rope_theta,
        rope_scaling=rope | ({"mrope_interleaved": True} if interleaved else {"type": "mrope"}),
    )


def _vision_fields(config: TinyConfig) -> dict[str, Any]:
    patches = FAMILIES[config.family].patches
    return dict(
        depth=config.vision_depth,
        hidden_size=config.vision_hidden_size,
        intermediate_size=config.vision_intermediate_size,
        num_heads=config.vision_num_heads,
        in_chans=3,
        out_hidden_size=config.hidden_size,
        patch_size=patches.side,
        spatial_merge_size=patches.merge,
        temporal_patch_size=patches.frames,
        initializer_range=config.initializer_range,
    )


def build_video_preprocessor(family: str) -> dict[str, Any]:
    """Returns the fields of video_preprocessor_config.json, which published folders of Qwen2.5-VL do not have."""
    if not FAMILIES[family].patches.timestamps:
        return {}
    of_images = ("image_processor_type", "min_pixels", "max_pixels")
    return {name: value for name, value in build_preprocessor(family).items() if name not in of_images} | {
        "video_processor_type": "Qwen3VLVideoProcessor",
        "size": {"shortest_edge": 4_096, "longest_edge": 25_165_824},  # of all frames together
    }


def build_preprocessor(family: str) -> dict[str, Any]:
    """Returns the fields of preprocessor_config.json."""
    patches = FAMILIES[family].patches
    smallest, largest = 28**2, 2048**2
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor" if family == "qwen2_5_vl" else "Qwen3VLProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(patches.mean),
        "image_std": list(patches.std),
        "min_pixels": smallest,
        "max_pixels": largest,
        "size": {"shortest_edge": smallest, "longest_edge": largest},
        "merge_size": patches.merge,
        "patch_size": patches.side,
        "temporal_patch_size": patches.frames,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
