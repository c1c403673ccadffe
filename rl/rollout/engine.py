"""A vLLM engine: reads prompts by reference, and knows which weights sampled each token of a response.

`Engine` is a plain class: evaluation and tests ask it in their own process, rollout/server.py feeds it in a thread.
vLLM is imported when an engine starts, after the environment it reads at import is set.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.errors import BadSample
from data_pipeline.imports import collection_paused
from data_pipeline.shards.format import read_sample
from megatron_omr import cpu
from megatron_omr.dtypes import HF_DTYPES
from rl.config import EngineConfig, EvalConfig, RLConfig, SamplingConfig
from rl.prompts.stream import load_prompt_limits
from rl.rollout.calls import Report, Request
from rl.rollout.device import Tag, fall_asleep, hardware_settings, record_routing, wake_up
from rl.rollout.spans import Cut, count_spans
from rl.routing.record import add_routing
from rl.types import Prompt, Responses, Rollout
from rl.weight_sync.digest import digest_worker, join_ranks
from rl.weight_sync.expected import read_expected_shapes
from rl.weight_sync.inputs import check_inputs, describe_inputs
from rl.weight_sync.layout import check_complete, read_layout

if TYPE_CHECKING:
    from vllm import CompletionOutput, RequestOutput, SamplingParams
    from vllm.logprobs import Logprob

ENGINE_ENV = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core runs in the actor itself
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",  # of tensor parallelism; vLLM insists on it inside an actor
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # trainer and engine share the cores
    "HF_HUB_OFFLINE": "1",
}

COUNT_SECONDS = 0.2
"""Between two counts of the tokens for reports, which take 0.1 ms and more, about one step in a hundred."""

BAN = -100.0  # vLLM's strongest logit bias: e**-100 of the odds


class Engine:
    """One vLLM engine with the weights of `config.model` (version 0) until the first update.

    Logprobs are those of the trainer's `log_softmax(logits / temperature)`, for the sampled tokens. At
    temperature 1 they are exactly that: vLLM takes them before it applies the ban. At another temperature
    vLLM can only give them after the ban, so they are too high by -log(1 - probability of the banned tokens),
    which is close to 0 for a trained model.
    """

    def __init__(self, config: RLConfig | EvalConfig) -> None:
        """Starts vLLM (7-10 s on a CPU) for the temperature of `config.sampling`.

        `config.seed`, step, prompt and number of the response decide every draw.
        """
        self.version: int | None = 0
        self._config = config
        records_routing = isinstance(config, RLConfig) and config.algorithm.records_routing
        self._encoder = ChatEncoder(load_prompt_limits(config))
        self._llm = _start_vllm(
            config.engine,
            config.model,
            exact=config.sampling.temperature in (0.0, 1.0),
            sleeps=isinstance(config, RLConfig) and config.rollout.placement == "colocated",
            records_routing=records_routing,
        )
        self._take_experts = record_routing(self._llm) if records_routing else None
        self._open: dict[str, _Open] = {}  # by vLLM's name of the request
        self._taken = self._tokens = self._ended_tokens = 0
        self._counted_at = -COUNT_SECONDS

    @property
    def is_busy(self) -> bool:
        """True while responses are generated."""
        return bool(self._open)

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, step_seed: int
    ) -> list[Responses]:
        """Returns `sampling.n` rollouts of each prompt, in order. They do not depend on the other prompts.

        A prompt that the limits refuse, or whose images cannot be decoded, is returned with its fault.

        Raises:
            RuntimeError: the last weight update failed, so there are no weights to generate with.
            ValueError: `sampling.temperature` is not the one that the engine was started for.
        """
        found = dict(
            self.answer(Request(prompt=prompt, sampling=sampling, seed=step_seed) for prompt in prompts)
        )
        return [found[number] for number in range(len(prompts))]

    def answer(self, requests: Iterable[Request]) -> Iterator[tuple[int, Responses]]:
        """Yields the numbers of requests and their responses as they finish; takes the next as slots get free.

        Raises:
            RuntimeError, ValueError: as generate().
        """
        numbered = enumerate(requests)
        following = next(numbered, None)
        while following or self.is_busy:
            while following and sum(self._scheduler.get_request_counts()) < self._config.engine.max_num_seqs:
                fault = self.add(*following)
                if fault:
                    yield following[0], fault
                following = next(numbered, None)
            yield from self.step()

    def add(self, number: int, request: Request) -> Responses | None:
        """Begins to generate; step() returns the responses with the number. Returns the fault of a prompt that has one.

        Raises:
            RuntimeError, ValueError: as generate().
        """
        if self.version is None:
            raise RuntimeError(
                "this engine's last weight update failed; give it a complete one before asking it"
            )
        started_for, sampling = self._config.sampling.temperature, request.sampling
        if sampling.temperature not in (0.0, started_for):
            raise ValueError(
                f"sampling.temperature={sampling.temperature}, but the engine was started for "
                f"{started_for}; start it with the temperature of sampling, or ask greedily (0)"
            )
        self._taken += sampling.n
        try:
            asked = self._request(request.prompt)
        except BadSample as error:
            return Responses(fault=error.reason, detail=error.args[1])
        params = self._params(request.prompt, sampling, request.seed)
        (name,) = self._llm.enqueue([asked], [params], use_tqdm=False)
        self._open[name.rpartition("-")[0]] = _Open(number=number, name=name, n=sampling.n)
        return None

    def step(self) -> list[tuple[int, Responses]]:
        """Samples a token of each response that has a slot; returns the prompts whose responses are all finished."""
        assert self.version is not None, "add() refuses to begin, and an update that failed must be repeated"
        found: list[tuple[int, Responses]] = []
        for output in self._llm.llm_engine.step() if self._open else ():
            if output.finished:
                asked = self._open.pop(output.request_id)
                rollouts = self._rollouts(output, asked.cuts)
                if self._take_experts:
                    experts = self._take_experts(output, asked.names)
                    rollouts = add_routing(rollouts, experts, len(output.prompt_token_ids or ()))
                self._ended_tokens += sum(len(rollout.token_ids) for rollout in rollouts)
                found.append((asked.number, Responses(rollouts=rollouts)))
        return found

    def report(self) -> Report:
        """Returns what it has done so far, without what has finished; counts tokens anew every COUNT_SECONDS."""
        running, waiting = self._scheduler.get_request_counts()
        now = time.monotonic()
        if now - self._counted_at > COUNT_SECONDS:
            self._counted_at = now
            for asked in self._open.values():
                asked.counts |= self._count(asked)
            self._tokens = self._ended_tokens + sum(sum(a.counts.values()) for a in self._open.values())
        return Report(
            taken=self._taken, running=running, waiting=waiting, tokens=self._tokens, version=self.version
        )

    def join_transfer(self, place: Mapping[str, Any]) -> None:
        """Opens the trainer's end of a transfer, a SharedPlace or CollectivePlace as a dict, for updates to come.

        Args:
            place: may also have `inputs`, what describe_inputs returned to the trainer.

        Raises:
            WeightMismatch: the trainer's tensors are not those of this model, or it makes other prompts; nothing has
                changed.
            WeightError: the other end cannot be reached.
        """
        place = dict(place)
        if inputs := place.pop("inputs", None):
            check_inputs(inputs, describe_inputs(self._config, self._encoder.limits))
        check_complete(read_layout(place["layout"]), read_expected_shapes(Path(self._config.model)))
        self._llm.collective_rpc("init_weight_transfer_engine", args=({"place": place},))

    def update_weights(self, version: int) -> None:
        """Loads the weights of `version` as they arrive, and drops what was computed with the old ones.

        Responses that are half done go on: vLLM reads their prompts and tokens anew, with the new weights.

        Raises:
            WeightError: not all arrived, or some were corrupted. From then on the engine refuses to generate until an
                update succeeds.
            RuntimeError: the same, in a process of a tensor-parallel engine, which must then be replaced: replies of
                its other processes were left unread.
        """
        if self.version is not None:
            for asked in self._open.values():
                asked.cuts.append((self.version, self._count(asked)))
        self.version = None
        self._llm.collective_rpc("start_weight_update")
        self._llm.collective_rpc("update_weights", args=({"version": version},))
        self._llm.collective_rpc("finish_weight_update")
        self.reset_caches()
        self.version = version

    def digest_tensors(self) -> dict[str, str]:
        """Returns a digest of each tensor of vLLM's model, by vLLM's name."""
        return join_ranks(self._llm.collective_rpc(digest_worker))

    def reset_caches(self) -> None:
        """Drops keys and values, processed images, and the embeddings that vLLM keeps for equal images.

        Responses that are half done lose their slots, and are the next to get some.
        """
        if not self._llm.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("vLLM kept its prefix cache, which holds what older weights computed")
        self._llm.llm_engine.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()

    def sleep(self) -> None:
        """Leaves its device to the trainer; the weights stay, in host memory. Nothing may be asked before wake_up.

        Raises:
            RuntimeError: responses are being generated.
        """
        if self.is_busy:
            raise RuntimeError(
                "this engine generates, and would lose its keys and values; wait until it is idle"
            )
        self.reset_caches()
        fall_asleep(self._llm)

    def wake_up(self, tag: Tag) -> None:
        """Takes memory of its device again: first for the "weights", which can then be updated, then the "kv_cache"."""
        wake_up(self._llm, tag)

    def close(self) -> None:
        """Ends the engine and leaves vLLM's process group, for a process that goes on with something else."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        asked = self._encoder.engine_prompt(read_sample(prompt.shards or self._config.shards, prompt.ref))
        return {"prompt_token_ids": asked.ids} | ({"multi_modal_data": asked.media} if asked.media else {})

    def _params(self, prompt: Prompt, sampling: SamplingConfig, step_seed: int) -> SamplingParams:
        from vllm import SamplingParams

        return SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=request_seed(self._config.seed, step_seed, prompt.ref.id),
            logprobs=0,  # of the sampled token only
            logit_bias=dict.fromkeys(self._encoder.banned_token_ids, BAN),
            detokenize=False,  # done here, by the tokenizer that everything else uses
        )

    @property
    def _scheduler(self) -> Any:
        return self._llm.llm_engine.engine_core.engine_core.scheduler

    def _count(self, asked: _Open) -> dict[int, int]:
        """Returns the tokens of a prompt's responses that are not finished, by their number."""
        found = {number: self._scheduler.requests.get(name) for number, name in enumerate(asked.names)}
        return {
            number: response.num_output_tokens for number, response in found.items() if response is not None
        }

    def _rollouts(self, output: RequestOutput, cuts: Sequence[Cut]) -> tuple[Rollout, ...]:
        ordered = sorted(output.outputs, key=lambda completion: completion.index)
        return tuple(self._rollout(completion, cuts) for completion in ordered)

    def _rollout(self, completion: CompletionOutput, cuts: Sequence[Cut]) -> Rollout:
        ids, sampled = completion.token_ids, cast("list[dict[int, Logprob]] | None", completion.logprobs)
        assert sampled is not None and completion.finish_reason is not None, "asked for in _params"
        assert self.version is not None, "it has just made a step"
        return Rollout(
            token_ids=np.array(ids, np.int32),
            logprobs=np.array(
                [step[token].logprob for step, token in zip(sampled, ids, strict=True)], np.float32
            ),
            response=self._encoder.decode(ids),
            finish_reason=completion.finish_reason,
            versions=count_spans(completion.index, len(ids), cuts, self.version),
        )


@dataclass(eq=False)
class _Open:
    """A request of vLLM that is not finished."""

    number: int
    name: str
    n: int
    cuts: list[Cut] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)  # tokens of each response, when last counted

    @property
    def names(self) -> list[str]:
        """vLLM's names of the responses."""
        return [self.name] if self.n == 1 else [f"{number}_{self.name}" for number in range(self.n)]


def request_seed(seed: int, step_seed: int, prompt_id: str) -> int:
    """Returns a seed below 2**31 for one prompt at one step; vLLM adds the number of the response to it."""
    digest = hashlib.sha256(f"{seed}/{step_seed}/{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _start_vllm(
    config: EngineConfig, model_folder: str, *, exact: bool, sleeps: bool, records_routing: bool
) -> Any:
    for name, value in ENGINE_ENV.items():
        os.environ.setdefault(name, value)
    if cpu.device() == "cpu":
        # vLLM would compile one function, for 15 s: the rank of each sampled token, which nobody reads
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")  # about its own code
    with collection_paused():
        from vllm import LLM
        from vllm.config import WeightTransferConfig

        from rl.weight_sync.receiver import BACKENDS, register

    _keep_images()
    register()
    head = {"head_dtype": "float32"} if config.fp32_head else {}
    way = "collective" if config.weight_transfer == "collective" else "shared_memory"
    llm = LLM(
        model_folder,
        hf_overrides=head,
        dtype=HF_DTYPES[config.precision],
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        limit_mm_per_prompt={"image": config.max_images, "video": config.max_videos},
        # frames have their final size, and the limits of the folder's video processor are others than ours
        mm_processor_kwargs={"do_resize": False} if config.max_videos else None,
        tensor_parallel_size=config.tp,
        distributed_executor_backend="mp" if config.tp > 1 else None,  # processes of this actor, on its node
        use_tqdm_on_load=False,
        mm_processor_cache_gb=0,  # prompts of one step rarely share images
        # else vLLM delivers, after an update, tokens that the old weights sampled: of requests that it had preempted
        # itself, for lack of blocks, with a step in flight; they would count as the new weights'
        async_scheduling=False,
        logprobs_mode="raw_logprobs" if exact else "processed_logprobs",
        weight_transfer_config=WeightTransferConfig(backend=BACKENDS[way]),
        **hardware_settings(config, sleeps=sleeps, records_routing=records_routing),
    )
    if config.fp32_head:
        _check_head(llm)
    return llm


def _check_head(llm: Any) -> None:
    """Raises ValueError where vLLM does not know, or ignores, the precision that was asked for the output head."""
    import torch
    from vllm import __version__

    if llm.llm_engine.model_config.head_dtype != torch.float32:
        raise ValueError(
            f"engine.fp32_head=True: vLLM {__version__} computes the output head of this model in its own precision; "
            "install one that can do otherwise, such as 0.32, or set engine.fp32_head=False"
        )


def _keep_images() -> None:
    """Patches vLLM 0.32, which takes the images from requests that find their prompt's keys and values in the cache.

    It needs them to read the prompt anew after an update, and died. Older versions have no such function.
    """
    from vllm.v1.core.sched import output

    setattr(output, "strip_covered_mm_data", lambda features, *_, **__: features)  # noqa: B010
