"""A vLLM engine: reads prompts by reference, marks rollouts with the version of the weights that wrote them.

`Engine` is a plain class: evaluation and tests use it in their own process, rl/placement makes it a Ray
actor. vLLM is imported when an engine starts, after the environment it reads at import is set.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.errors import BadSample
from data_pipeline.imports import collection_paused
from data_pipeline.shards.format import read_sample
from megatron_omr import cpu
from megatron_omr.dtypes import HF_DTYPES
from rl.config import EngineConfig, EvalConfig, RLConfig, SamplingConfig
from rl.prompts.stream import load_prompt_limits
from rl.types import Prompt, Responses, Rollout
from rl.weight_sync.expected import read_expected_shapes
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
        self._encoder = ChatEncoder(load_prompt_limits(config))
        self._llm = _start_vllm(config.engine, config.model, exact=config.sampling.temperature in (0.0, 1.0))

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, step_seed: int
    ) -> list[Responses]:
        """Returns `sampling.n` rollouts of each prompt, in order. They do not depend on the other prompts.

        A prompt that the limits refuse, or whose images cannot be decoded, is returned with its fault.

        Raises:
            RuntimeError: the last weight update failed, so there are no weights to generate with.
            ValueError: `sampling.temperature` is not the one that the engine was started for.
        """
        if self.version is None:
            raise RuntimeError(
                "this engine's last weight update failed; give it a complete one before asking it"
            )
        started_for = self._config.sampling.temperature
        if sampling.temperature not in (0.0, started_for):
            raise ValueError(
                f"sampling.temperature={sampling.temperature}, but the engine was started for "
                f"{started_for}; start it with the temperature of sampling, or ask greedily (0)"
            )
        requests: dict[int, dict[str, Any]] = {}
        found: dict[int, Responses] = {}
        for number, prompt in enumerate(prompts):
            try:
                requests[number] = self._request(prompt)
            except BadSample as error:
                found[number] = Responses(fault=error.reason, detail=error.args[1])
        if requests:
            params = [self._params(prompts[number], sampling, step_seed) for number in requests]
            outputs = self._llm.generate(list(requests.values()), params, use_tqdm=False)
            for number, output in zip(requests, outputs, strict=True):
                found[number] = Responses(rollouts=self._rollouts(output, self.version))
        return [found[number] for number in range(len(prompts))]

    def is_ready(self) -> bool:
        """Returns True: an actor answers once it has started."""
        return True

    def join_transfer(self, place: Mapping[str, Any]) -> None:
        """Opens the trainer's end of a transfer, a SharedPlace or CollectivePlace as a dict, for updates to come.

        Raises:
            WeightMismatch: the trainer's tensors are not those of this model; nothing has changed.
            WeightError: the other end cannot be reached.
        """
        check_complete(read_layout(place["layout"]), read_expected_shapes(Path(self._config.model)))
        self._llm.collective_rpc("init_weight_transfer_engine", args=({"place": dict(place)},))

    def update_weights(self, version: int) -> None:
        """Loads the weights of `version` as they arrive, and drops what was computed with the old ones.

        Raises:
            WeightError: not all arrived, or some were corrupted. From then on the engine refuses to generate until an
                update succeeds.
            RuntimeError: the same, in a process of a tensor-parallel engine, which must then be replaced: replies of
                its other processes were left unread.
        """
        self.version = None
        self._llm.collective_rpc("start_weight_update")
        self._llm.collective_rpc("update_weights", args=({"version": version},))
        self._llm.collective_rpc("finish_weight_update")
        self.reset_caches()
        self.version = version

    def reset_caches(self) -> None:
        """Drops keys and values, processed images, and the embeddings that vLLM keeps for equal images."""
        if not self._llm.reset_prefix_cache():
            raise RuntimeError(
                "vLLM kept its prefix cache because requests are running; update weights between calls"
            )
        self._llm.llm_engine.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()

    def close(self) -> None:
        """Ends the engine and leaves vLLM's process group, for a process that goes on with something else."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        token_ids, images = self._encoder.engine_prompt(
            read_sample(prompt.shards or self._config.shards, prompt.ref)
        )
        request: dict[str, Any] = {"prompt_token_ids": list(token_ids)}
        if images:
            request["multi_modal_data"] = {"image": [Image.fromarray(image) for image in images]}
        return request

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

    def _rollouts(self, output: RequestOutput, version: int) -> tuple[Rollout, ...]:
        ordered = sorted(output.outputs, key=lambda completion: completion.index)
        return tuple(self._rollout(completion, version) for completion in ordered)

    def _rollout(self, completion: CompletionOutput, version: int) -> Rollout:
        ids, sampled = completion.token_ids, cast("list[dict[int, Logprob]] | None", completion.logprobs)
        assert sampled is not None and completion.finish_reason is not None, "asked for in _params"
        return Rollout(
            token_ids=np.array(ids, np.int32),
            logprobs=np.array(
                [step[token].logprob for step, token in zip(sampled, ids, strict=True)], np.float32
            ),
            response=self._encoder.decode(ids),
            finish_reason=completion.finish_reason,
            versions=((version, len(ids)),),
        )


def request_seed(seed: int, step_seed: int, prompt_id: str) -> int:
    """Returns a seed below 2**31 for one prompt at one step; vLLM adds the number of the response to it."""
    digest = hashlib.sha256(f"{seed}/{step_seed}/{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _start_vllm(config: EngineConfig, model_folder: str, *, exact: bool) -> Any:
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

    register()
    way = "collective" if config.weight_transfer == "collective" else "shared_memory"
    return LLM(
        model_folder,
        dtype=HF_DTYPES[config.precision],
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        limit_mm_per_prompt={"image": config.max_images, "video": 0},
        tensor_parallel_size=config.tp,
        distributed_executor_backend="mp" if config.tp > 1 else None,  # processes of this actor, on its node
        use_tqdm_on_load=False,
        mm_processor_cache_gb=0,  # prompts of one step rarely share images
        logprobs_mode="raw_logprobs" if exact else "processed_logprobs",
        weight_transfer_config=WeightTransferConfig(backend=BACKENDS[way]),
        **_hardware_settings(config),
    )


def _hardware_settings(config: EngineConfig) -> dict[str, Any]:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return {"gpu_memory_utilization": config.gpu_memory_utilization}
    return {
        "kv_cache_memory_bytes": int(config.cpu_kv_cache_gib * 2**30),
        "enforce_eager": True,
        "skip_mm_profiling": True,  # it would run the vision tower on the largest image
        # vLLM rewinds the generator of a seeded request whose prompt it cuts, which CPU generators cannot do
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(2048, config.max_model_len),
        # only whole blocks are shared by the responses to one prompt: 128, the default, exceeds short prompts
        "block_size": 32,
    }
