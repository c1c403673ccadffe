"""The layout: how a model is spread over processes, and what of it a model allows (standard library only)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from data_pipeline.config import check_at_least
from megatron_omr.families.expert_layout import check_expert_layout
from megatron_omr.model_config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Degrees of parallelism; the remaining factor of the number of processes is data parallelism."""

    tp: int = 1
    """Tensor parallelism: heads and hidden units of language model and vision tower."""
    pp: int = 1
    """Pipeline parallelism: layers; the vision tower is on the first stage."""
    vp: int = 1
    """Virtual pipeline: chunks of layers a stage, computed in turn; a smaller bubble, more messages (needs pp > 1)."""
    layers: tuple[int, ...] = ()
    """Language layers of each of the pp x vp chunks, from the first layer on; empty splits them by FLOPs."""
    cp: int = 1
    """Context parallelism: tokens of long sequences."""
    ep: int = 1
    """Expert parallelism: whole experts, over ranks that tp, cp and data parallelism divide other work over."""
    etp: int = 0
    """Tensor parallelism inside each expert; 0 is as tp. With ep, 1 is usually faster."""
    sp: bool = False
    """Sequence parallelism of norms and residuals inside a tensor-parallel group (needs tp > 1)."""
    overlap: bool = False
    """Reduce gradients while the backward pass runs, and gather weights while the next forward pass does; the results
    are the same. For GPUs: over gloo, cores that communicate do not compute."""

    def __post_init__(self) -> None:
        check_at_least(self, "parallel.", tp=1, pp=1, vp=1, cp=1, ep=1, etp=0)
        if self.sp and self.tp == 1:
            raise ValueError("parallel.sp=True needs parallel.tp > 1; drop sp or raise tp")
        if self.vp > 1 and self.pp == 1:
            raise ValueError(f"parallel.vp={self.vp} needs parallel.pp > 1: chunks are of a stage; use vp=1")
        if self.layers and len(self.layers) != self.num_chunks:
            raise ValueError(
                f"parallel.layers={self.layers} has {len(self.layers)} entries; it needs one for each of the "
                f"pp={self.pp} x vp={self.vp} = {self.num_chunks} chunks, or none"
            )
        if any(number < 1 for number in self.layers):
            raise ValueError(f"parallel.layers={self.layers}: each chunk needs at least 1 layer")

    @property
    def num_chunks(self) -> int:
        """Chunks of layers in the whole pipeline; number c is on stage c % pp."""
        return self.pp * self.vp

    @property
    def model_parallel_size(self) -> int:
        return self.tp * self.pp * self.cp

    @property
    def expert_tp(self) -> int:
        return self.etp or self.tp

    @property
    def smallest_world(self) -> int:
        """The fewest processes that hold the layout; all worlds are multiples of it."""
        return math.lcm(self.model_parallel_size, self.expert_tp * self.ep * self.pp)

    @property
    def sequence_multiple(self) -> int:
        """Each packed sequence is padded to a multiple of this: 2 zigzag chunks a CP rank."""
        return 2 * self.cp if self.cp > 1 else 1

    def pack_multiple(self, alignment: int = 1) -> int:
        """Returns the multiple that a whole pack is padded to, at its tail.

        Each CP rank's tokens are split over the TP ranks under SP; each part is then a multiple of `alignment`.
        """
        return math.lcm(self.sequence_multiple, self.cp * (self.tp if self.sp else 1) * alignment)

    def dp(self, world_size: int, *, name: str = "processes") -> int:
        """Returns the data-parallel degree of `world_size` processes, which an error calls by `name`."""
        if world_size % self.model_parallel_size:
            raise ValueError(
                f"{world_size} {name} cannot hold parallel.tp={self.tp} x pp={self.pp} x cp={self.cp} = "
                f"{self.model_parallel_size}; start a multiple of {self.smallest_world}"
            )
        if world_size % self.smallest_world:
            raise ValueError(
                f"{world_size} {name} cannot hold parallel.etp={self.expert_tp} x ep={self.ep} x pp={self.pp} of the "
                f"experts; start a multiple of {self.smallest_world}, or lower parallel.ep or parallel.etp"
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
        }
        for field_name, value in limits.items():
            if value % self.tp:
                allowed = [t for t in (1, 2, 4, 8, 16) if all(v % t == 0 for v in limits.values())]
                raise ValueError(
                    f"parallel.tp={self.tp} must divide {field_name}={value}; "
                    f"this model allows tp = {', '.join(map(str, allowed))}"
                )
        self._check_chunks(model)

    def _check_chunks(self, model: ModelConfig) -> None:
        if self.num_chunks > model.num_layers:
            raise ValueError(
                f"parallel.pp={self.pp} x vp={self.vp} = {self.num_chunks} chunks need a layer each, but "
                f"num_hidden_layers={model.num_layers}; lower pp or vp to at most {model.num_layers} chunks"
            )
        levels, most = model.vision.num_levels, model.num_layers - model.vision.num_levels + 1
        if levels and self.num_chunks > most:
            raise ValueError(
                f"parallel.pp={self.pp} x vp={self.vp} = {self.num_chunks} chunks: the first needs the {levels} layers "
                f"that take features of the vision tower, the others one each, and num_hidden_layers="
                f"{model.num_layers}; lower pp or vp to at most {most} chunks"
            )
        if self.layers and self.layers[0] < levels:
            raise ValueError(
                f"parallel.layers={self.layers}: the first chunk has the vision tower, whose features the first "
                f"{levels} layers take; give it {levels} at least, or leave layers empty to split by FLOPs"
            )
        if self.layers and sum(self.layers) != model.num_layers:
            raise ValueError(
                f"parallel.layers={self.layers} has {sum(self.layers)} layers in all, but "
                f"num_hidden_layers={model.num_layers}; change its entries, or leave it empty to split by FLOPs"
            )
        check_expert_layout(model.moe, tp=self.tp, sp=self.sp, ep=self.ep, etp=self.etp)
