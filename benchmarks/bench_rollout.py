"""An engine that is fed request by request against the same engine asked in batches, on long-tailed lengths.

One engine, in this process; the same requests, seeds and answers both ways, in turn. A batch fills the engine's slots
once and ends with its longest answer; fed, the rollout manager gives the engine the next prompt as slots free up. Every
length is forced (at least and at most so many tokens) and drawn from a log-normal distribution. With `siblings` answers
to a prompt, each prompt's have one length. Tokens are of a model with random weights: the times are those of vLLM's
steps at this size, and the ratio is what idle slots cost.
"""

from __future__ import annotations

import math
import random
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

from benchmarks.environment import write_result
from data_pipeline.encode.config import ImageConfig
from data_pipeline.encode.limits import ModelLimits
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples, digit_texts
from megatron_omr.tiny import create_tiny_model
from rl.config import EngineConfig, EvalConfig, RLConfig, SamplingConfig
from rl.prompts.stream import read_prompts
from rl.rollout.calls import EngineCalls, Request
from rl.rollout.engine import Engine
from rl.rollout.manager import RolloutManager
from rl.rollout.server import EngineServer
from rl.types import Prompt, Responses

SLOTS, RESPONSES, ROUNDS = 16, 160, 3
MEDIAN, P95, LONGEST = 22, 220, 400
"""Tokens of the answers; published runs of reasoning models have a 95th percentile of ten times the median."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    tokens: int
    batches: float  # seconds, median
    fed: float
    ratio: float  # batches / fed, median of the rounds


class ForcedEngine(Engine):
    """Ends no answer before its longest length."""

    def _params(self, prompt: Prompt, sampling: SamplingConfig, step_seed: int):
        params = super()._params(prompt, sampling, step_seed)
        params.min_tokens = sampling.max_tokens
        return params


def main() -> dict[str, object]:
    """Measures, prints and writes benchmarks/results/rollout.json; returns its content."""
    with tempfile.TemporaryDirectory() as folder:
        server, prompts = start_engine(Path(folder))
        calls = EngineCalls(
            start=lambda: server,
            stop=lambda engine: None,
            submit=lambda engine, requests: engine.submit(requests),
            poll=lambda seconds: [(server, server.collect())],
            update=lambda engines, version: [None] * len(engines),
        )
        with closing(RolloutManager(calls, server_config())) as manager:
            found = {f"siblings={n}": measure(server, manager, draw_requests(prompts, n)) for n in (1, 4)}
            server.call(lambda engine: engine.close())
    for name, timing in found.items():
        print(
            f"{name}: {timing.tokens} tokens, batches {timing.batches:.1f} s, fed {timing.fed:.1f} s, "
            f"{timing.ratio:.2f} times as fast",
            flush=True,
        )
    lengths = {"median": MEDIAN, "p95": P95, "longest": LONGEST}
    result: dict[str, object] = {"slots": SLOTS, "responses": RESPONSES, "lengths": lengths}
    result |= {name: asdict(timing) for name, timing in found.items()}
    write_result("rollout", result)
    return result


def server_config() -> EngineConfig:
    return EngineConfig(precision="fp32", max_model_len=768, max_num_seqs=SLOTS, cpu_kv_cache_gib=0.5)


def start_engine(folder: Path) -> tuple[EngineServer, list[Prompt]]:
    create_tiny_model(folder / "model", digit_texts())
    write_shards(digit_samples("test", RESPONSES, 0), folder / "shards")
    config = EvalConfig(
        model=str(folder / "model"),
        shards=str(folder / "shards"),
        out="",
        engine=server_config(),
        sampling=SamplingConfig(temperature=1.0),
    )
    limits = ModelLimits.from_hf(folder / "model", ImageConfig())
    return EngineServer(config, build), [prompt for prompt, _ in read_prompts(config.shards, limits)]


def build(config: RLConfig | EvalConfig) -> Engine:
    return ForcedEngine(config)


def draw_requests(prompts: Sequence[Prompt], n: int) -> list[Request]:
    """Returns RESPONSES / n requests of n answers, each with its length."""
    rng, spread = random.Random(0), math.log(P95 / MEDIAN) / 1.645
    lengths = [min(LONGEST, max(1, round(MEDIAN * math.exp(rng.gauss(0, spread))))) for _ in prompts]
    return [
        Request(prompt=prompt, sampling=SamplingConfig(n=n, max_tokens=length), seed=0)
        for prompt, length in zip(prompts[: RESPONSES // n], lengths, strict=False)
    ]


def measure(server: EngineServer, manager: RolloutManager, requests: Sequence[Request]) -> Timing:
    batches, fed = [], []
    for number in range(ROUNDS + 1):
        start = perf_counter()
        one = ask_in_batches(server, requests)
        middle = perf_counter()
        futures = manager.submit(requests)
        manager.wait(futures)
        other = [future.result() for future in futures]
        end = perf_counter()
        assert tokens(one) == tokens(other), "the answers differ"
        if number:  # the first round is slower
            batches.append(middle - start)
            fed.append(end - middle)
    return Timing(
        tokens=sum(len(rollout.token_ids) for found in one for rollout in found.rollouts),
        batches=statistics.median(batches),
        fed=statistics.median(fed),
        ratio=statistics.median([b / f for b, f in zip(batches, fed, strict=True)]),
    )


def ask_in_batches(server: EngineServer, requests: Sequence[Request]) -> list[Responses]:
    """Returns the responses; the engine gets as many prompts as fill its slots, then the next when all are done."""
    size = SLOTS // requests[0].sampling.n
    found: dict[int, Responses] = {}
    for start in range(0, len(requests), size):
        numbers = range(start, min(start + size, len(requests)))
        found |= server.call(lambda engine, numbers=numbers: answer(engine, numbers, requests))
    return [found[number] for number in range(len(requests))]


def answer(engine: Engine, numbers: Sequence[int], requests: Sequence[Request]) -> dict[int, Responses]:
    for number in numbers:
        assert engine.add(number, requests[number]) is None
    found: dict[int, Responses] = {}
    while engine.is_busy:
        found.update(engine.step())
    return found


def tokens(found: Sequence[Responses]) -> list[list[list[int]]]:
    return [[rollout.token_ids.tolist() for rollout in responses.rollouts] for responses in found]


if __name__ == "__main__":
    main()
