"""Estimates memory and time of engines that generate, from bytes, FLOPs and stated efficiencies. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_omr.dtypes import Precision
from megatron_omr.flops import language_layers_flops
from megatron_omr.model_config import ModelConfig
from megatron_omr.plan.config import AssumeConfig
from megatron_omr.plan.gpus import GIB, Gpu
from megatron_omr.plan.weights import Chunk, list_parameters


@dataclass(frozen=True, kw_only=True)
class EngineTask:
    """What engines generate: in RL the responses of a step."""

    model: ModelConfig
    precision: Precision
    num_engines: int
    tp: int  # GPUs of an engine
    utilization: float  # of a GPU's memory
    max_model_len: int
    max_num_seqs: int
    rollouts: float
    prompt_tokens: float
    response_tokens: float
    longest: float  # tokens of the longest response
    takes_turns: bool = False  # on the trainer's GPUs

    @property
    def element(self) -> int:
        """Bytes of a weight."""
        return 4 if self.precision == "fp32" else 2

    @property
    def num_gpus(self) -> int:
        """GPUs beside the trainer's."""
        return 0 if self.takes_turns else self.num_engines * self.tp


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """Bytes of each GPU of an engine."""

    weights: float
    working: float
    cache: float  # keys and values
    tokens: float  # that the caches of its GPUs hold
    sent: float  # bytes of the whole model, which the trainer sends
    lacks: float = 0.0  # where it takes turns with the trainer, for what that leaves on the GPU

    @property
    def total(self) -> float:
        return self.weights + self.working + self.cache


def plan_engine(engine: EngineTask, gpu: Gpu, assume: AssumeConfig) -> EngineMemory:
    """Returns how an engine divides its share of each GPU; a cache below 0 means that the weights do not fit.

    Raises:
        ValueError: vLLM cannot divide the model by engine.tp.
    """
    _check_engine(engine.model, engine.tp)
    sent, weights = (_weight_bytes(engine, tp) for tp in (1, engine.tp))
    working = assume.engine_gib * GIB
    cache = engine.utilization * gpu.memory_gib * GIB - weights - working
    tokens = cache / cache_bytes(engine.model, engine.element, tp=engine.tp)
    left = (1 - engine.utilization) * gpu.memory_gib - assume.reserve_gib
    return EngineMemory(
        weights=weights,
        working=working,
        cache=cache,
        tokens=tokens,
        sent=sent,
        lacks=max(0.0, -left * GIB) * engine.takes_turns,
    )


def _weight_bytes(engine: EngineTask, tp: int) -> float:
    """Returns the bytes of the whole model on one of `tp` GPUs, each with a key-value head at least."""
    model = replace(engine.model, num_kv_heads=max(engine.model.num_kv_heads, tp))
    whole = Chunk(num_layers=model.num_layers, first=True, last=True)
    return engine.element * sum(p.size for p in list_parameters(model, whole, tp=tp, pp=1))


def _check_engine(model: ModelConfig, tp: int) -> None:
    """Raises ValueError where vLLM cannot divide the model; key-value heads it repeats where they are fewer."""
    limits = {
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": max(model.num_kv_heads, tp),
        "intermediate_size": model.intermediate_size,
        "vision_config.num_heads": model.vision.num_heads,
        "vision_config.intermediate_size": model.vision.intermediate_size,
    }
    for name, value in limits.items():
        if value % tp:
            raise ValueError(f"engine.tp={tp} must divide {name}={value}; use a smaller one")


def find_engine_problem(engine: EngineTask, memory: EngineMemory) -> str:
    """Returns why vLLM would not start an engine; empty where it would."""
    if memory.lacks:
        return f"what the trainer leaves on its GPU needs {memory.lacks / GIB:.1f} GiB more"
    if memory.cache <= 0:
        return f"the weights leave {memory.cache / GIB:.1f} GiB for keys and values"
    if memory.tokens < engine.max_model_len:
        return (
            f"keys and values of {memory.tokens:,.0f} tokens do not hold one response of "
            f"engine.max_model_len={engine.max_model_len:,}"
        )
    return ""


def cache_bytes(model: ModelConfig, element: int, *, tp: int) -> float:
    """Returns the bytes of one token's keys and values on one of the `tp` GPUs of an engine."""
    return 2 * model.num_layers * max(model.num_kv_heads // tp, 1) * model.head_dim * element


def time_generation(engine: EngineTask, gpu: Gpu, assume: AssumeConfig) -> float:
    """Returns the seconds in which the engines read the prompts and decode the responses, all in equal parts.

    Each token reads the weights once for all responses that are decoded together, or takes as long as their products,
    and reads each response's keys and values. It cannot end before the longest response does, decoded alone.
    """
    memory = plan_engine(engine, gpu, assume)
    model, tp = engine.model, engine.tp
    each = engine.rollouts / engine.num_engines
    context = engine.prompt_tokens + engine.response_tokens / 2
    room = memory.tokens / (engine.prompt_tokens + engine.response_tokens)
    held = max(1.0, min(engine.max_num_seqs, each, room))
    bandwidth = gpu.hbm * assume.hbm_efficiency
    read = memory.weights / bandwidth
    talk = 2 * model.num_layers * assume.all_reduce_us * 1e-6 * (tp > 1)
    layers = language_layers_flops(model, [1]) / (tp * gpu.peak * assume.language_efficiency)
    head = 2 * model.hidden_size * model.vocab_size / (tp * gpu.peak * assume.language_efficiency)
    products = max(read, held * (layers + head))
    attention = held * context * cache_bytes(model, engine.element, tp=tp) / bandwidth
    all_at_once = each * engine.response_tokens / held * (products + talk + attention)
    prefill = each * engine.prompt_tokens * layers
    return prefill + max(all_at_once, engine.longest * (read + talk))
