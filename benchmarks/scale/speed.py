"""How fast a modelled engine is, and how long responses are: assumptions with their sources, nothing measured here.

Speed is that of `omr plan` for Qwen2.5-VL-7B in BF16 on one H100: a decoding step reads the weights once and the keys
and values of every running response, at 70 % of the memory's data-sheet bandwidth; a prompt costs its FLOPs at 60 % of
the peak. Without context that is 6.6 ms a step, with 256 responses of 3,255 tokens 27 ms (9,500 tokens/s). To compare:
NVIDIA publishes 4.6 ms between two tokens at concurrency 1 and 16.1 ms (12,965 tokens/s) at 250 for Llama-3.1-8B
(docs.nvidia.com/nim/benchmarking/llm/1.0.0/performance, NIM 1.8.0, short prompts and answers).

Lengths are log-normal: median 2,038, which with a standard deviation of log length of 0.845 gives the mean (2,910) and
the 95th percentile (8,207) that MMFineReason (arXiv 2601.21821) publishes of its solutions, so within the 2,000 to
4,000 tokens of the recipe's RL curves; cut at the recipe's 28,696 tokens. How alike the lengths of one prompt's
responses are is published nowhere: half of the variance is assumed to lie between prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_omr.plan.config import AssumeConfig
from megatron_omr.plan.engines import cache_bytes
from megatron_omr.plan.gpus import GPUS
from megatron_omr.plan.shapes import published_shape

MODEL, GPU = "Qwen2.5-VL-7B-Instruct", "h100"
PARAMETERS = 7.6e9  # of the language model
BF16 = 2  # bytes
PROMPT_TOKENS = 285
"""Of a question with its image, as `omr plan` assumes."""
MEDIAN, DEVIATION, LONGEST = 2_038, 0.845, 28_696
BETWEEN_PROMPTS = 0.5
"""Share of the variance of log length that lies between prompts."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds that an engine takes."""

    alone: float  # a decoding step, for the weights
    context: float  # added to a step by each token of context of each running response
    prefill: float  # a token of a prompt, or of a response that is computed again


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """The distribution of response lengths."""

    median: float = MEDIAN
    deviation: float = DEVIATION
    """Standard deviation of the logarithm."""
    longest: int = LONGEST
    between_prompts: float = BETWEEN_PROMPTS

    def draw(self, seed: int, n: int) -> NDArray[np.int64]:
        """Returns the lengths of one prompt's `n` responses, in tokens; equal seeds give equal lengths."""
        normal = np.random.default_rng(seed).standard_normal(n + 1)
        own, common = 1 - self.between_prompts, self.between_prompts
        logs = self.deviation * (own**0.5 * normal[1:] + common**0.5 * normal[0])
        return np.clip(np.rint(self.median * np.exp(logs)), 1, self.longest).astype(np.int64)


def published_speed() -> Speed:
    """Returns the speed of the module's docstring."""
    assume, gpu = AssumeConfig(), GPUS[GPU]
    bandwidth = gpu.hbm * assume.hbm_efficiency
    return Speed(
        alone=BF16 * PARAMETERS / bandwidth,
        context=cache_bytes(published_shape(MODEL), BF16, tp=1) / bandwidth,
        prefill=2 * PARAMETERS / (gpu.peak * assume.language_efficiency),
    )
