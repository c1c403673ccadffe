"""The config of `omr parity --engine` (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_pipeline.config import check_at_least
from data_pipeline.encode.config import ImageConfig
from megatron_omr.config import ParityConfig
from megatron_omr.dtypes import Precision
from rl.config import EngineConfig, RLConfig, SamplingConfig


@dataclass(frozen=True, kw_only=True)
class EngineParityConfig:
    """What `omr parity --engine` compares."""

    shards: str = ""
    """Shards whose prompts are asked: a folder, or an address; without them questions about drawn images are."""
    prompts: int = 16
    """Prompts asked, in the order of the shards."""
    n: int = 2
    """Responses to each."""
    max_tokens: int = 64
    """Longest response, in tokens."""
    precision: Precision = "bf16"
    """The trainer's."""
    max_mismatch: float = 0.1
    """Largest mean |logprob difference| that passes, as in RL."""
    engine: EngineConfig = field(
        default_factory=lambda: EngineConfig(max_model_len=4_096, max_num_seqs=32, max_images=2)
    )
    image: ImageConfig = field(default_factory=ImageConfig)

    def __post_init__(self) -> None:
        check_at_least(self, "vllm.", prompts=1, n=1, max_tokens=1, max_mismatch=0)

    def build_run(self, parity: ParityConfig) -> RLConfig:
        """Returns the config of a run of RL that would ask and score these prompts."""
        multiple = parity.parallel.pack_multiple(parity.compute.alignment(parity.parallel))
        return RLConfig(
            run="",
            model=parity.model,
            shards=self.shards,
            seed=parity.seed,
            precision=self.precision,
            pack_length=-(-self.engine.max_model_len // multiple) * multiple,
            engine=self.engine,
            sampling=SamplingConfig(n=self.n, max_tokens=self.max_tokens),
            image=self.image,
            parallel=parity.parallel,
            compute=parity.compute,
        )
