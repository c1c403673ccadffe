"""Configs of layout, optimizer, checkpoints and supervised fine-tuning (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, get_args

from data_pipeline.config import check_at_least
from data_pipeline.encode.config import ImageConfig
from data_pipeline.loader.config import LoaderConfig
from megatron_omr.dtypes import Precision
from megatron_omr.layout.config import ParallelConfig
from megatron_omr.model_config import ModelConfig, Part

FP8_TOKENS: dict[str, int] = {"off": 1, "tensorwise": 16, "blockwise": 16, "mxfp8": 32}
"""Widths of layers, and tokens of a rank, over which products sum, must be multiples of this."""


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How the layers compute: by which kernels, in which formats, and what they compute twice to keep less.

    No weight, checkpoint or export depends on it.
    """

    backend: Literal["auto", "local", "te"] = "auto"
    """Layers of Transformer Engine (te), or of torch and Megatron-Core (local). auto: te on a GPU, where it must then
    work, except in fp32; elsewhere local."""
    window_attention: Literal["auto", "local", "te"] = "auto"
    """Attention of the vision tower: Transformer Engine's, torch's (local), or torch's where the tower has windows and
    else the backend's (auto). For the windows of 64 patches of images of 448 x 448 pixels torch's made a step of 3B on
    an H200 1.18 times as fast at 8,192 tokens, and of 8 of its layers 1.9 times at 24,576."""
    fp8: Literal["off", "tensorwise", "blockwise", "mxfp8"] = "off"
    """Recipe for the linear layers of the language model's decoder; tower, projector and output layer stay in BF16.
    tensorwise: Ada and newer. blockwise: Hopper and newer. mxfp8: Blackwell. Without a GPU it is emulated."""
    fp8_bf16_layers: int = 1
    """First and last layers of the decoder that stay in BF16 under fp8, so many at each end."""
    wgrad_fusion: Literal["auto", "on", "off"] = "auto"
    """Adds weight gradients to their buffer in the product that makes them; needs a compiled module of apex, which auto
    looks for."""
    fp32_head: bool = False
    """Multiply the last hidden states by the output layer in float32, where the model is in bf16. Takes memory for
    logits twice as large and for a copy of the layer's weights. In RL with engine.fp32_head, as one alone is worse."""
    recompute: Literal["none", "mlp", "full"] = "none"
    """What the language model's layers compute again in the backward pass: nothing, their MLPs, or all."""
    recompute_vision: Literal["none", "full"] = "none"
    """The same for the layers of the vision tower."""

    def __post_init__(self) -> None:
        check_at_least(self, "compute.", fp8_bf16_layers=0)

    def alignment(self, parallel: ParallelConfig) -> int:
        """Returns what the tokens of each rank must be a multiple of for the FP8 recipe; see pack_multiple."""
        gathers_blocks = self.fp8 == "blockwise" and parallel.sp
        return 128 if gathers_blocks else FP8_TOKENS[self.fp8]

    def check_model(self, model: ModelConfig, parallel: ParallelConfig) -> None:
        """Raises ValueError where the FP8 recipe cannot hold the layers of `model` in this layout."""
        if self.fp8 == "off":
            return
        if model.moe is not None:
            raise ValueError(
                f"compute.fp8={self.fp8} was not tried with experts, and this model has {model.moe.num_experts} of "
                "them; use compute.fp8=off"
            )
        most = min((model.num_layers - 1) // 2, model.num_layers // parallel.pp)
        if self.fp8_bf16_layers > most:
            raise ValueError(
                f"compute.fp8_bf16_layers={self.fp8_bf16_layers} must be at most {most}: {model.num_layers} layers on "
                f"parallel.pp={parallel.pp} stages need one in FP8 between those at the ends"
            )
        for name, width in self._widths(model, parallel).items():
            # the hidden size alone is gathered over the ranks of SP, in whole blocks
            multiple = self.alignment(parallel) if name == "hidden_size" else FP8_TOKENS[self.fp8]
            if width % multiple:
                raise ValueError(
                    f"compute.fp8={self.fp8} needs layers whose widths are multiples of {multiple}, and {name} is "
                    f"{width} with parallel.tp={parallel.tp}; use a smaller tp, or compute.fp8={self._narrower()}"
                )

    def _narrower(self) -> str:
        return "tensorwise" if self.fp8 != "tensorwise" else "off"

    @staticmethod
    def _widths(model: ModelConfig, parallel: ParallelConfig) -> dict[str, int]:
        """Returns inner and outer sizes of the decoder's linear layers on one rank."""
        heads, groups = model.num_heads // parallel.tp, model.num_kv_heads // parallel.tp
        return {
            "hidden_size": model.hidden_size,
            "intermediate_size / tp": model.intermediate_size // parallel.tp,
            "num_attention_heads * head_dim / tp": heads * model.head_dim,
            "the width of queries, keys and values / tp": (heads + 2 * groups) * model.head_dim,
        }


def resolve_backend(
    compute: ComputeConfig, *, device: str, te_problem: str, precision: Precision, cp: int
) -> Literal["local", "te"]:
    """Returns the backend for this device and precision.

    Args:
        te_problem: why Transformer Engine cannot be used; "" if it can.

    Raises:
        ValueError: `compute` asks for Transformer Engine where it does not work, or for FP8 on a GPU without it.
    """
    # Transformer Engine multiplies float32 as TF32, with three digits
    by_default = compute.backend == "auto" and device == "cuda" and precision != "fp32"
    wants_te = compute.backend == "te" or by_default
    if wants_te and te_problem:
        raise ValueError(
            f"compute.backend={compute.backend} needs Transformer Engine here, and it cannot be used: {te_problem}; "
            "install it (`omr doctor` says how), or set compute.backend=local"
        )
    if wants_te and precision == "fp32" and cp > 1:
        raise ValueError(
            f"compute.backend=te has no attention in fp32 for parallel.cp={cp}; use compute.backend=auto or local"
        )
    if compute.fp8 != "off" and device == "cuda" and not wants_te:
        raise ValueError(
            f"compute.fp8={compute.fp8} runs in Transformer Engine's layers, and this run has local ones "
            f"(compute.backend={compute.backend}, precision={precision}); use compute.backend=auto with "
            "precision=bf16, or compute.fp8=off"
        )
    return "te" if wants_te else "local"


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
    expert_balance: float = 0.0
    """Coefficient of an auxiliary loss that spreads tokens evenly over experts; 0.001 in Qwen3-VL's config.json."""
    freeze: tuple[Part, ...] = ()
    """Parts that keep their weights; they take no memory for gradients and optimizer."""
    vision_lr: float | None = None
    """The vision tower's learning rate, with the same schedule; None is `lr`."""
    projector_lr: float | None = None
    """The projector's learning rate, with the same schedule; None is `lr`."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"optim.min_lr={self.min_lr} must lie between 0 and optim.lr={self.lr}")
        check_at_least(self, "optim.", warmup_steps=0, clip_grad=0, max_bad_steps=0, expert_balance=0)
        if set(self.freeze) == set(get_args(Part)):
            raise ValueError(f"optim.freeze={self.freeze} leaves nothing to train; name two parts at most")
        for part, lr in self.own_lrs.items():
            if not (lr > 0 and self.lr > 0):
                raise ValueError(
                    f"optim.{part}_lr={lr} and optim.lr={self.lr} must both be above 0; "
                    f"optim.freeze keeps a part's weights"
                )
            if part in self.freeze:
                raise ValueError(
                    f"optim.{part}_lr={lr} has no effect with {part!r} in optim.freeze={self.freeze}; drop one"
                )

    @property
    def own_lrs(self) -> dict[Part, float]:
        """The learning rates that differ from `lr`, by part."""
        lrs: dict[Part, float | None] = {"vision": self.vision_lr, "projector": self.projector_lr}
        return {part: lr for part, lr in lrs.items() if lr not in (None, self.lr)}


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Loss on samples that are not trained on, while SFT runs. It changes nothing of the training."""

    shards: str = ""
    """Held-out shards, or a mixture: a folder, or an address; nothing is measured without it."""
    every: int = 100
    """Steps from one measurement to the next. The first is before the first step, the last after the last."""
    limit: int = 0
    """Most samples, always the same: the first in the order of loader.seed; 0 takes all."""

    def __post_init__(self) -> None:
        check_at_least(self, "validation.", every=1, limit=0)

    def is_due(self, step: int, steps: int) -> bool:
        """Returns True if the weights after `step` of a run's `steps` are to be measured.

        Those after the last step are, and stand in its line of metrics; so those before it are not.
        """
        return bool(self.shards) and step != steps - 1 and (step % self.every == 0 or step == steps)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Megatron's distributed checkpoints under RUN/checkpoints."""

    every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 3
    """Newest checkpoints kept."""
    background: bool = True
    """Train on while a checkpoint is written, which takes up to as much more host memory as a rank writes."""

    def __post_init__(self) -> None:
        check_at_least(self, "checkpoint.", every=1, keep=1)


@dataclass(frozen=True, kw_only=True)
class FaultConfig:
    """When a run is ended whose ranks have stopped or wait for each other; the rank that is the cause is named."""

    beat: float = 5.0
    """Seconds between two signs of life of a rank, in RUN/heartbeats."""
    silence: float = 60.0
    """Seconds without one after which a rank is named and all ranks end."""
    timeout: float = 1_800.0
    """Seconds that a step may take. Ranks may wait for each other a `silence` longer, in any operation: first the one
    that is waited for is named."""

    def __post_init__(self) -> None:
        check_at_least(self, "fault.", beat=0.1, silence=3 * self.beat, timeout=self.silence)

    @property
    def collective_timeout(self) -> timedelta:
        """The longest wait in an operation of several ranks."""
        return timedelta(seconds=self.timeout + self.silence)


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
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    fault: FaultConfig = field(default_factory=FaultConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        check_at_least(self, steps=1, processes=1)
        multiple = self.parallel.pack_multiple(self.compute.alignment(self.parallel))
        if self.loader.pack_length < multiple:
            raise ValueError(
                f"loader.pack_length={self.loader.pack_length} must hold {multiple} tokens: packs are padded to "
                "a multiple of that in this layout; raise it, or lower parallel.tp or parallel.cp"
            )

    def check_processes(self, processes: int) -> None:
        """Raises ValueError where `processes` do not divide into replicas with a sample each."""
        dp, samples = self.parallel.dp(processes), self.loader.global_batch_size
        if samples < dp:
            raise ValueError(
                f"loader.global_batch_size={samples} must be at least {dp}, a sample for each of the replicas that "
                f"{processes} processes make; raise it, or start fewer"
            )


@dataclass(frozen=True, kw_only=True)
class ParityConfig:
    """Comparison of this package's model with transformers' in fp32, on the same weights and inputs."""

    model: str
    """Hugging Face folder."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """The layout of our model."""
    compute: ComputeConfig = field(default_factory=lambda: ComputeConfig(backend="local"))
    """Its layers. Transformer Engine multiplies fp32 in TF32, whose rounding is far above the limits."""
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
