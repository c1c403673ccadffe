"""Configs of the planner: the cluster, and what it assumes where nothing was measured (standard library only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from data_pipeline.config import check_at_least

GpuName = Literal["h100", "h200", "h800", "a100", "a800", "b200"]


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The machines of a run."""

    gpu: GpuName = "h100"
    """Kind of GPU: h100, h800, a100 and a800 have 80 GB, h200 141 GB, b200 192 GB."""
    nodes: int = 1
    """Machines."""
    gpus_per_node: int = 8
    """GPUs of a machine, connected by NVLink."""
    network_gbytes: float = 50.0
    """GB/s that a GPU sends to other machines: 50 is 400 Gbit/s for each."""

    def __post_init__(self) -> None:
        check_at_least(self, "cluster.", nodes=1, gpus_per_node=1)
        if self.network_gbytes <= 0:
            raise ValueError(f"cluster.network_gbytes={self.network_gbytes} must be above 0, e.g. 50")

    @property
    def num_gpus(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, kw_only=True)
class AssumeConfig:
    """What a plan takes for granted. None of the efficiencies was measured with this project."""

    response_tokens: float = 675
    """Mean response of an SFT sample, as published for the recipe's corpus (median 180, p95 3,318, max 16,483)."""
    response_std: float = 1_478
    """Its standard deviation: attention costs the square of lengths."""
    rollout_tokens: float = 3_000
    """Mean response in RL; the recipe's runs show 2,000 to 4,000."""
    rollout_std: float = 3_000
    """Its standard deviation."""
    question_tokens: int = 97
    """Text of a question with the system prompt."""
    image_pixels: int = 384 * 384
    """Pixels of an image: a token for each 28 x 28."""
    images: float = 1.0
    """Images of a sample."""
    video_frames: int = 0
    """Frames of a sample's video, beside its images, and of image_pixels as well."""
    max_image_share: float = 0.5
    """Largest share of a pack's tokens that are images, for the memory; at least the largest image is counted."""
    reserve_gib: float = 6.0
    """GiB a GPU for CUDA, NCCL, workspaces, and what is lost between blocks."""
    language_efficiency: float = 0.60
    """Share of the peak FLOP/s in the language model's layers and head."""
    attention_efficiency: float = 0.40
    """The same in its attention over pairs of tokens."""
    vision_efficiency: float = 0.30
    """The same in the vision tower."""
    fp8_speedup: float = 1.3
    """Speed of the language model's FP8 layers over BF16, attention left out."""
    link_efficiency: float = 0.7
    """Share of the bandwidth of NVLink and network."""
    hbm_efficiency: float = 0.7
    """Share of the bandwidth of a GPU's memory, in the optimizer and while engines decode."""
    overlapped: float = 0.8
    """Share of the reduction of gradients and the gathering of weights that is hidden with parallel.overlap."""
    engine_gib: float = 6.0
    """GiB of a GPU that an engine takes beside weights, keys and values."""
    all_reduce_us: float = 20.0
    """Microseconds of an all-reduce among the GPUs of an engine with engine.tp, two in each layer for each token."""
    sync_gbytes: float = 1.0
    """GB/s of weights from trainer to engines: copies to the host and their checksums."""

    @property
    def pictures(self) -> float:
        """Images of a sample, and pairs of its video's frames: a pair costs what an image does."""
        return self.images + math.ceil(self.video_frames / 2)

    def __post_init__(self) -> None:
        for name in ("language", "attention", "vision", "link", "hbm"):
            value = getattr(self, f"{name}_efficiency")
            if not 0 < value <= 1:
                raise ValueError(f"assume.{name}_efficiency={value} must be above 0 and at most 1")
        for name in ("max_image_share", "overlapped"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"assume.{name}={getattr(self, name)} must lie between 0 and 1")
        check_at_least(self, "assume.", response_tokens=1, response_std=0, rollout_tokens=1, rollout_std=0)
        check_at_least(
            self,
            "assume.",
            question_tokens=0,
            image_pixels=784,
            images=0,
            video_frames=0,
            reserve_gib=0,
            engine_gib=0,
            all_reduce_us=0,
        )
        for name in ("fp8_speedup", "sync_gbytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"assume.{name}={getattr(self, name)} must be above 0")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Engines that only generate: an evaluation, or teachers of `omr data distill`."""

    shape: str = "Qwen2.5-VL-7B-Instruct"
    """Published shape of the model, in BF16."""
    questions: int = 1_000
    """Questions to answer."""
    n: int = 1
    """Responses to each; their mean length is assume.rollout_tokens."""
    max_tokens: int = 49_152
    """Longest response: generation takes at least as long as one of this length."""
    num_engines: int = 8
    """Engines that share the questions."""
    tp: int = 1
    """GPUs of an engine."""
    max_model_len: int = 4_096 + 49_152
    """Most tokens of a question with its response."""
    max_num_seqs: int = 1_024
    """Most responses that an engine decodes at once."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory that an engine takes."""

    def __post_init__(self) -> None:
        check_at_least(self, "", questions=1, n=1, max_tokens=1, num_engines=1, tp=1, max_num_seqs=1)
        check_at_least(self, "", max_model_len=self.max_tokens)
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization={self.gpu_memory_utilization} must be above 0 and at most 1"
            )
