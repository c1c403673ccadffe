"""Reads the config.json of a model of any family in `families/` (standard library only).

Each field that changes what transformers computes is either read into ModelConfig or refused by name unless it has
the one value that this package computes. The others cannot change the function: they concern initialisation or
generation, or transformers does not read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from data_pipeline.files import parse_json
from megatron_omr.dtypes import Precision, precision_of
from megatron_omr.families.choose import FAMILIES, find_family
from megatron_omr.families.family import Family
from megatron_omr.families.fields import (
    Fixed,
    check_fixed,
    read_flag,
    read_number,
    read_numbers,
    read_object,
)
from megatron_omr.families.shapes import MoeConfig, VisionConfig

Part = Literal["vision", "projector", "language"]
"""Parts of the model: the vision tower, the projector behind it (the mergers), and the language model."""

_FIXED_TOP: Fixed = {"quantization_config": (None,), "per_layer_config": (None,)}
_FIXED_TEXT: Fixed = {
    "hidden_act": ("silu", "swish"),  # two names of one function
    "attention_dropout": (0, None),
    "dual_chunk_attention_config": (None,),  # of vLLM
    "partial_rotary_factor": (1, None),
    "original_max_position_embeddings": (None,),  # beside the rope parameters, whose own it would replace
    "quantization_config": (None,),
    "per_layer_config": (None,),
}
_FIXED_ROPE: Fixed = {"partial_rotary_factor": (1, None)}
_ROPE_FIELDS = {"type", "rope_type", "rope_theta", "mrope_section", "mrope_interleaved", *_FIXED_ROPE}


@dataclass(frozen=True, kw_only=True)
class YarnConfig:
    """YaRN's stretching of the rotary frequencies, as transformers reads it."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = True


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary positions of the language model."""

    theta: float
    mrope_section: tuple[int, ...]  # half dimensions of time, height and width
    interleaved: bool = False  # they take turns, else each has its dimensions in one piece
    yarn: YarnConfig | None = None

    @classmethod
    def from_hf(cls, text: Mapping[str, Any], family: Family) -> RopeConfig:
        """Reads `rope_parameters` of transformers 5 or `rope_scaling` of 4, with `rope_theta` in or beside it.

        Raises:
            KeyError: the missing field.
            ValueError: the kind or a field is not supported, or the two are there and differ.
        """
        names = [name for name in ("rope_scaling", "rope_parameters") if text.get(name)]
        found = {cls._read(name, text, family) for name in names}
        if len(found) > 1:
            values = " and ".join(f"{name}={text[name]}" for name in names)
            raise ValueError(f"{values} differ; delete one of them")
        if not found:
            raise KeyError("rope_parameters")
        return found.pop()

    @classmethod
    def _read(cls, name: str, text: Mapping[str, Any], family: Family) -> RopeConfig:
        rope = {"rope_theta": text.get("rope_theta")} | read_object(text, name)
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "mrope", "yarn"):
            raise ValueError(f"{name}.rope_type={kind!r} is not supported; only 'default' and 'yarn' are")
        stretched = {field.name for field in fields(YarnConfig)} if kind == "yarn" else set()
        for field, value in rope.items():
            if value is not None and field not in _ROPE_FIELDS | stretched:
                raise ValueError(f"{name}.{field}={value!r} is not supported with rope_type={kind!r}")
        check_fixed(rope, {**_FIXED_ROPE, **family.fixed_rope}, f"{name}.")
        yarn = None
        if stretched:
            given: dict[str, Any] = {
                "original_max_position_embeddings": text["max_position_embeddings"]
            } | rope
            read_number(given, "factor", kind=float)
            read_number(given, "original_max_position_embeddings")
            for field in stretched - {"truncate"} & given.keys():
                if given[field] is not None:
                    read_number(given, field, kind=float, least=0)
            yarn = YarnConfig(**{field: given[field] for field in stretched & given.keys()})
        theta = read_number(rope, "rope_theta", kind=float)
        section = read_numbers(rope, "mrope_section")
        return cls(theta=theta, mrope_section=section, interleaved=family.interleaved_rope, yarn=yarn)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model, read from a Hugging Face `config.json`: any size, tied or untied."""

    family_name: str  # a key of FAMILIES
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool
    qk_norm: bool  # an RMS norm of each head's queries, and one of its keys
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    precision: Precision  # of the weights on disk
    vision: VisionConfig
    moe: MoeConfig | None = None

    def __post_init__(self) -> None:
        heads, groups = self.num_heads, self.num_kv_heads
        if heads % groups:
            raise ValueError(
                f"num_attention_heads={heads} must be a multiple of num_key_value_heads={groups}"
            )
        if (highest := max(self.vision_token_ids)) >= self.vocab_size:
            raise ValueError(
                f"image and video token ids reach {highest}; they must be below vocab_size={self.vocab_size}"
            )
        section = self.rope.mrope_section
        if len(section) != 3 or 2 * sum(section) != self.head_dim:
            raise ValueError(
                f"mrope_section={list(section)} must be three numbers with the sum {self.head_dim // 2}, half a head"
            )
        if self.vision.out_hidden_size != self.hidden_size:
            raise ValueError(
                f"vision_config.out_hidden_size={self.vision.out_hidden_size} must be hidden_size={self.hidden_size}"
            )
        if self.vision.num_levels > self.num_layers:
            raise ValueError(
                f"vision_config.deepstack_visual_indexes has {self.vision.num_levels} entries, each for a language "
                f"layer, and num_hidden_layers={self.num_layers}"
            )

    @property
    def family(self) -> Family:
        return FAMILIES[self.family_name]

    @property
    def vision_token_ids(self) -> tuple[int, ...]:
        """Tokens that only a prompt may hold; rollouts must never sample them."""
        return (
            self.image_token_id,
            self.video_token_id,
            self.vision_start_token_id,
            self.vision_end_token_id,
        )

    @classmethod
    def from_hf(cls, folder: str | Path) -> ModelConfig:
        """Reads `folder`/config.json as transformers 4 or 5 wrote it.

        Raises:
            ValueError: no folder of a supported family, a field is missing, or one changes the model in a way that is
                not supported; the message names file and field.
        """
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise ValueError(f"{path} does not exist; give a Hugging Face folder of a model")
        try:
            return cls._from_fields(read_object({"the file": parse_json(path.read_bytes())}, "the file"))
        except KeyError as missing:
            raise ValueError(f"{path} has no field {missing}; is it a complete config?") from missing
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _from_fields(cls, hf: Mapping[str, Any]) -> ModelConfig:
        check_fixed(hf, _FIXED_TOP)
        family = find_family(hf.get("model_type"))
        # transformers 4 kept the language model's fields on top; where they are in both places, only the inner count
        text = hf if hf.get("text_config") is None else read_object(hf, "text_config")
        _check_text(text, family)
        groups = "num_attention_heads" if text["num_key_value_heads"] is None else "num_key_value_heads"
        tying = (hf, text) if family.text_ties else (hf,)
        named = (part.get(key) for part in (hf, text) for key in ("dtype", "torch_dtype"))
        return cls(
            family_name=family.model_type,
            vocab_size=read_number(text, "vocab_size"),
            hidden_size=read_number(text, "hidden_size"),
            intermediate_size=read_number(text, "intermediate_size"),
            num_layers=read_number(text, "num_hidden_layers"),
            num_heads=read_number(text, "num_attention_heads"),
            num_kv_heads=read_number(text, groups),
            rms_norm_eps=read_number(text, "rms_norm_eps", kind=float, least=0),
            rope=RopeConfig.from_hf(text, family),
            max_position_embeddings=read_number(text, "max_position_embeddings"),
            tie_word_embeddings=any(read_flag(part, "tie_word_embeddings") for part in tying),
            image_token_id=read_number(hf, "image_token_id", least=0),
            video_token_id=read_number(hf, "video_token_id", least=0),
            vision_start_token_id=read_number(hf, "vision_start_token_id", least=0),
            vision_end_token_id=read_number(hf, "vision_end_token_id", least=0),
            precision=precision_of(next(filter(None, named), "float32"), of="dtype"),
            vision=family.read_vision(read_object(hf, "vision_config")),
            **family.read_text(text),
        )


def _check_text(text: Mapping[str, Any], family: Family) -> None:
    check_fixed(text, {**_FIXED_TEXT, **family.fixed_text})
    kinds = text.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise ValueError(f"layer_types={kinds!r} is not supported; only 'full_attention' for each layer is")
