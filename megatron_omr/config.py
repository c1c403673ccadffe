"""Configs of model, layout, optimizer, checkpoints and supervised fine-tuning (standard library only)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from data_pipeline.config import check_at_least
from data_pipeline.encode.config import ImageConfig
from data_pipeline.loader.config import LoaderConfig
from megatron_omr.dtypes import Precision, precision_of


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

    @classmethod
    def from_hf(cls, vision: dict[str, Any]) -> VisionConfig:
        """Reads a config.json's `vision_config`; raises KeyError with the name of a missing field."""
        values = {"in_channels": vision.get("in_chans", 3)} | vision  # some releases say in_chans
        values["fullatt_block_indexes"] = tuple(vision["fullatt_block_indexes"])
        return cls(**{field.name: values[field.name] for field in fields(cls)})


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
    rope_theta: float
    mrope_section: tuple[int, ...]
    max_position_embeddings: int
    tie_word_embeddings: bool
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    precision: Precision  # of the weights on disk
    vision: VisionConfig

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
            ValueError: not a Qwen2.5-VL folder, or a field is missing.
        """
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise ValueError(f"{path} does not exist; give a Hugging Face folder of a Qwen2.5-VL model")
        hf = json.loads(path.read_text())
        if hf.get("model_type") != "qwen2_5_vl":
            raise ValueError(
                f"{path}: model_type={hf.get('model_type')!r}, but only 'qwen2_5_vl' is supported"
            )
        text = hf.get("text_config", hf)  # transformers 4 kept the language model's fields on top
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        named = (part.get(key) for part in (hf, text) for key in ("dtype", "torch_dtype"))
        precision = precision_of(next(filter(None, named), "float32"), of=f"{path}: dtype")
        try:
            return cls(
                vocab_size=text["vocab_size"],
                hidden_size=text["hidden_size"],
                intermediate_size=text["intermediate_size"],
                num_layers=text["num_hidden_layers"],
                num_heads=text["num_attention_heads"],
                num_kv_heads=text["num_key_value_heads"],
                rms_norm_eps=text["rms_norm_eps"],
                rope_theta=rope.get("rope_theta") or text["rope_theta"],
                mrope_section=tuple(rope["mrope_section"]),
                max_position_embeddings=text["max_position_embeddings"],
                tie_word_embeddings=hf.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
                image_token_id=hf["image_token_id"],
                video_token_id=hf["video_token_id"],
                vision_start_token_id=hf["vision_start_token_id"],
                vision_end_token_id=hf["vision_end_token_id"],
                precision=precision,
                vision=VisionConfig.from_hf(hf["vision_config"]),
            )
        except KeyError as missing:
            raise ValueError(
                f"{path} has no field {missing}; is it a complete Qwen2.5-VL config?"
            ) from missing


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Degrees of parallelism; the remaining factor of the number of processes is data parallelism."""

    tp: int = 1
    """Tensor parallelism: heads and hidden units of language model and vision tower."""
    pp: int = 1
    """Pipeline parallelism: layers; the vision tower is on the first stage."""
    cp: int = 1
    """Context parallelism: tokens of long sequences."""
    sp: bool = False
    """Sequence parallelism of norms and residuals inside a tensor-parallel group (needs tp > 1)."""

    def __post_init__(self) -> None:
        check_at_least(self, "parallel.", tp=1, pp=1, cp=1)
        if self.sp and self.tp == 1:
            raise ValueError("parallel.sp=True needs parallel.tp > 1; drop sp or raise tp")

    @property
    def model_parallel_size(self) -> int:
        return self.tp * self.pp * self.cp

    @property
    def sequence_multiple(self) -> int:
        """Each packed sequence is padded to a multiple of this: 2 zigzag chunks a CP rank, tp rows for SP."""
        return (2 * self.cp if self.cp > 1 else 1) * (self.tp if self.sp else 1)

    def dp(self, world_size: int) -> int:
        """Returns the data-parallel degree of `world_size` processes."""
        if world_size % self.model_parallel_size:
            raise ValueError(
                f"{world_size} processes cannot hold parallel.tp={self.tp} x pp={self.pp} x cp={self.cp} = "
                f"{self.model_parallel_size}; start a multiple of {self.model_parallel_size}"
            )
        return world_size // self.model_parallel_size

    def check_model(self, model: ModelConfig) -> None:
        """Raises ValueError where this layout cannot hold `model`; names the field and the allowed values."""
        heads, groups, vision = model.num_heads, model.num_kv_heads, model.vision
        limits = {
            "num_key_value_heads": groups,
            "num_attention_heads": heads,
            "intermediate_size": model.intermediate_size,
            "vocab_size": model.vocab_size,
            "vision_config.num_heads": vision.num_heads,
            "vision_config.intermediate_size": vision.intermediate_size,
        }
        for field_name, value in limits.items():
            if value % self.tp:
                allowed = [t for t in (1, 2, 4, 8, 16) if all(v % t == 0 for v in limits.values())]
                raise ValueError(
                    f"parallel.tp={self.tp} must divide {field_name}={value}; "
                    f"this model allows tp = {', '.join(map(str, allowed))}"
                )
        if model.num_layers % self.pp:
            allowed = [p for p in range(1, model.num_layers + 1) if model.num_layers % p == 0]
            raise ValueError(
                f"parallel.pp={self.pp} must divide num_hidden_layers={model.num_layers}; "
                f"use one of {', '.join(map(str, allowed))}"
            )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule. Defaults are the published SFT recipe."""

    lr: float = 5e-5
    min_lr: float = 0.0
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    warmup_steps: int = 430
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    max_bad_steps: int = 10
    """Steps with a NaN or infinite gradient are skipped; more than this many in a row stop the run."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"optim.min_lr={self.min_lr} must lie between 0 and optim.lr={self.lr}")
        check_at_least(self, "optim.", warmup_steps=0, clip_grad=0, max_bad_steps=0)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Megatron's distributed checkpoints under RUN/checkpoints."""

    every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 3
    """Newest checkpoints kept."""

    def __post_init__(self) -> None:
        check_at_least(self, "checkpoint.", every=1, keep=1)


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Metrics always go to RUN/metrics.jsonl."""

    tensorboard: bool = True
    wandb: str = ""
    """Project name; empty keeps wandb off."""
    every: int = 1
    """Steps between console lines."""

    def __post_init__(self) -> None:
        check_at_least(self, "log.", every=1)


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Supervised fine-tuning: shards -> packed batches -> Megatron -> checkpoints -> Hugging Face folder."""

    run: str
    """Folder of this run: config, metrics, checkpoints and, at the end, `hf/`. The same folder resumes."""
    model: str
    """Hugging Face folder to start from."""
    steps: int = 4_300
    """Optimizer steps."""
    seed: int = 42
    precision: Precision = "bf16"
    processes: int = 1
    """Processes started on this machine; a cluster's launcher starts its own."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        check_at_least(self, steps=1, processes=1)


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """One direction of the conversion between a Hugging Face folder and a distributed checkpoint."""

    source: str
    """Hugging Face folder (to-megatron) or checkpoint folder (to-hf)."""
    out: str
    """Folder to write."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """The layout that converts; as many processes are started as it needs."""


@dataclass(frozen=True, kw_only=True)
class ParityConfig:
    """Comparison of this package's model with transformers' in fp32, on the same weights and inputs."""

    model: str
    """Hugging Face folder."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """The layout of our model."""
    processes: int = 0
    """Processes to start; 0 means as many as the layout needs, a multiple of that adds data parallelism."""
    json: bool = False
    """Print one JSON object instead of a table."""
    seed: int = 42
    """Seeds the images and questions that are compared."""
    max_logit_diff: float = 1e-4
    """Largest absolute difference of logits and per-token logprobs that passes."""
    max_grad_norm_diff: float = 1e-5
    """Largest relative difference of loss and gradient norm that passes."""
