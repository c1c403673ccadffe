"""Reads the config.json of a Qwen2.5-VL (standard library only).

Each field that changes what transformers computes is either read into ModelConfig or refused by name unless it has
the one value that this package computes. The others cannot change the function: they concern initialisation,
generation or video, or transformers does not read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from data_pipeline.files import parse_json
from megatron_omr.dtypes import Precision, precision_of

Part = Literal["vision", "projector", "language"]
"""Parts of the model: the vision tower, the projector behind it (the merger), and the language model."""

_SILU = ("silu", "swish")  # two names of one function
_NO = (False, None)
_VISION_THETA = 10_000
_WIDTH_MULTIPLE = 128  # of the tower's MLP: divides by any tp, and leaves rows that GPUs multiply fast
_FIXED_TOP: dict[str, tuple[Any, ...]] = {"quantization_config": (None,), "per_layer_config": (None,)}
_FIXED_TEXT: dict[str, tuple[Any, ...]] = {
    "hidden_act": _SILU,
    "attention_dropout": (0, None),
    "use_sliding_window": _NO,
    "dual_chunk_attention_config": (None,),  # of vLLM
    "partial_rotary_factor": (1, None),
    "original_max_position_embeddings": (None,),  # beside the rope parameters, whose own it would replace
    "quantization_config": (None,),
    "per_layer_config": (None,),
}
_FIXED_VISION: dict[str, tuple[Any, ...]] = {
    "hidden_act": _SILU,
    "in_channels": (3,),  # these four: images are cut into such patches before any model is known
    "patch_size": (14,),
    "temporal_patch_size": (2,),
    "spatial_merge_size": (2,),
    "rope_theta": (_VISION_THETA,),
    "rope_scaling": (None,),
    "quantization_config": (None,),
    "per_layer_config": (None,),
}
_FIXED_ROPE: dict[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (1, None),
    "mrope_interleaved": _NO,  # of Qwen3-VL
}
_ROPE_FIELDS = {"type", "rope_type", "rope_theta", "mrope_section", *_FIXED_ROPE}
_FIXED_VISION_ROPE: dict[str, tuple[Any, ...]] = {
    "rope_type": ("axial", "default"),
    "rope_theta": (_VISION_THETA,),
}


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower, under the names of Hugging Face's `vision_config`."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    patch_size: int
    temporal_patch_size: int
    in_channels: int
    spatial_merge_size: int
    window_size: int  # pixels
    fullatt_block_indexes: tuple[int, ...]
    out_hidden_size: int

    def __post_init__(self) -> None:
        side, head_dim = self.patch_size * self.spatial_merge_size, self.hidden_size / self.num_heads
        if head_dim % 4:
            raise ValueError(
                f"vision_config: hidden_size={self.hidden_size} / num_heads={self.num_heads} must be a multiple of 4"
            )
        if self.window_size < side:
            raise ValueError(f"vision_config.window_size={self.window_size} must be at least {side} pixels")

    @property
    def padded_intermediate_size(self) -> int:
        """The width of the MLPs with the zeros behind it: 3,456 for 3,420, which does not divide by 8.

        It depends on the model alone, so that checkpoints fit every layout.
        """
        return -(-self.intermediate_size // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE

    @classmethod
    def from_hf(cls, vision: Mapping[str, Any]) -> VisionConfig:
        """Reads a config.json's `vision_config`.

        Raises:
            KeyError: the missing field.
            ValueError: a field has a value that is not supported.
        """
        layers = _numbers(vision, "fullatt_block_indexes")
        # transformers' class has three channels, whatever older files call in_chans
        values = {"in_channels": 3} | dict(vision)
        sizes = {field.name: _number(values, field.name) for field in fields(cls) if field.type == "int"}
        head_dim = {"head_dim": (None, sizes["hidden_size"] // sizes["num_heads"])}
        _check_fixed(vision, _FIXED_VISION | head_dim, "vision_config.")
        rope = _object(vision, "rope_parameters") if vision.get("rope_parameters") else {}
        _check_fixed(rope, _FIXED_VISION_ROPE, "vision_config.rope_parameters.")
        return cls(fullatt_block_indexes=layers, **sizes)


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
    yarn: YarnConfig | None = None

    @classmethod
    def from_hf(cls, text: Mapping[str, Any]) -> RopeConfig:
        """Reads `rope_parameters` of transformers 5 or `rope_scaling` of 4, with `rope_theta` in or beside it.

        Raises:
            KeyError: the missing field.
            ValueError: the kind or a field is not supported, or the two are there and differ.
        """
        names = [name for name in ("rope_scaling", "rope_parameters") if text.get(name)]
        found = {cls._read(name, text) for name in names}
        if len(found) > 1:
            values = " and ".join(f"{name}={text[name]}" for name in names)
            raise ValueError(f"{values} differ; delete one of them")
        if not found:
            raise KeyError("rope_parameters")
        return found.pop()

    @classmethod
    def _read(cls, name: str, text: Mapping[str, Any]) -> RopeConfig:
        rope = {"rope_theta": text.get("rope_theta")} | _object(text, name)
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "mrope", "yarn"):
            raise ValueError(f"{name}.rope_type={kind!r} is not supported; only 'default' and 'yarn' are")
        stretched = {field.name for field in fields(YarnConfig)} if kind == "yarn" else set()
        for field, value in rope.items():
            if value is not None and field not in _ROPE_FIELDS | stretched:
                raise ValueError(f"{name}.{field}={value!r} is not supported with rope_type={kind!r}")
        _check_fixed(rope, _FIXED_ROPE, f"{name}.")
        yarn = None
        if stretched:
            given: dict[str, Any] = {
                "original_max_position_embeddings": text["max_position_embeddings"]
            } | rope
            _number(given, "factor", kind=float)
            _number(given, "original_max_position_embeddings")
            for field in stretched - {"truncate"} & given.keys():
                if given[field] is not None:
                    _number(given, field, kind=float, least=0)
            yarn = YarnConfig(**{field: given[field] for field in stretched & given.keys()})
        theta = _number(rope, "rope_theta", kind=float)
        return cls(theta=theta, mrope_section=_numbers(rope, "mrope_section"), yarn=yarn)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Qwen2.5-VL, read from a Hugging Face `config.json`: any size, tied or untied."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
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

    def __post_init__(self) -> None:
        heads, groups = self.num_heads, self.num_kv_heads
        if self.hidden_size % heads or heads % groups:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={heads}, "
                f"and that of num_key_value_heads={groups}"
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

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

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
            ValueError: not a Qwen2.5-VL folder, a field is missing, or one changes the model in a way that is not
                supported; the message names file and field.
        """
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise ValueError(f"{path} does not exist; give a Hugging Face folder of a Qwen2.5-VL model")
        try:
            return cls._from_fields(_object({"the file": parse_json(path.read_bytes())}, "the file"))
        except KeyError as missing:
            raise ValueError(
                f"{path} has no field {missing}; is it a complete Qwen2.5-VL config?"
            ) from missing
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _from_fields(cls, hf: Mapping[str, Any]) -> ModelConfig:
        _check_fixed(hf, {"model_type": ("qwen2_5_vl",)} | _FIXED_TOP, "")
        # transformers 4 kept the language model's fields on top; where they are in both places, only these count
        text = hf if hf.get("text_config") is None else _object(hf, "text_config")
        _check_text(text)
        groups = "num_attention_heads" if text["num_key_value_heads"] is None else "num_key_value_heads"
        named = (part.get(key) for part in (hf, text) for key in ("dtype", "torch_dtype"))
        return cls(
            vocab_size=_number(text, "vocab_size"),
            hidden_size=_number(text, "hidden_size"),
            intermediate_size=_number(text, "intermediate_size"),
            num_layers=_number(text, "num_hidden_layers"),
            num_heads=_number(text, "num_attention_heads"),
            num_kv_heads=_number(text, groups),
            rms_norm_eps=_number(text, "rms_norm_eps", kind=float, least=0),
            rope=RopeConfig.from_hf(text),
            max_position_embeddings=_number(text, "max_position_embeddings"),
            tie_word_embeddings=any(_flag(part, "tie_word_embeddings") for part in (hf, text)),
            image_token_id=_number(hf, "image_token_id", least=0),
            video_token_id=_number(hf, "video_token_id", least=0),
            vision_start_token_id=_number(hf, "vision_start_token_id", least=0),
            vision_end_token_id=_number(hf, "vision_end_token_id", least=0),
            precision=precision_of(next(filter(None, named), "float32"), of="dtype"),
            vision=VisionConfig.from_hf(_object(hf, "vision_config")),
        )


def _check_text(text: Mapping[str, Any]) -> None:
    heads = _number(text, "hidden_size") // _number(text, "num_attention_heads")
    _check_fixed(text, _FIXED_TEXT | {"head_dim": (None, heads)}, "")
    kinds = text.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise ValueError(f"layer_types={kinds!r} is not supported; only 'full_attention' for each layer is")


def _check_fixed(part: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]], prefix: str) -> None:
    """Raises ValueError for a field that is there with another than its supported values."""
    for name, allowed in fixed.items():
        if name in part and part[name] not in allowed:
            raise ValueError(f"{prefix}{name}={part[name]!r} is not supported; only {allowed[0]!r} is")


def _flag(part: Mapping[str, Any], name: str) -> bool:
    """Returns a field that is true or false, false where it is missing; raises ValueError for anything else."""
    value = part.get(name)
    if value not in (True, False, None):
        raise ValueError(f"{name}={value!r} must be true or false")
    return bool(value)


def _object(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns a field that holds fields. Raises as _number()."""
    if not isinstance(part[name], dict):
        raise ValueError(f"{name} is {part[name]!r}, not a JSON object")
    return part[name]


def _number(
    part: Mapping[str, Any], name: str, *, kind: type[int] | type[float] = int, least: int = 1
) -> Any:
    """Returns a field; raises KeyError where it is missing, ValueError where it is no such number."""
    value = part[name]
    allowed = (int,) if kind is int else (int, float)
    if type(value) not in allowed or value < least:
        noun = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name}={value!r} must be {noun} of at least {least}")
    return value


def _numbers(part: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Returns a field that is a list of whole numbers. Raises as _number()."""
    value = part[name]
    if not isinstance(value, list) or any(type(x) is not int or x < 0 for x in value):
        raise ValueError(f"{name}={value!r} must be a list of whole numbers")
    return tuple(value)
