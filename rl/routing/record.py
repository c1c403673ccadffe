"""Records the experts that vLLM chooses for the tokens of a request: of its prompt with images, and of each response.

vLLM returns them with a response or, where it cannot, they are taken from its routers (rollout/device.py chooses). Both
keep of each token the experts with which it was computed first: where weights are updated under half-done responses,
those of the weights that sampled them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rl.types import Rollout

if TYPE_CHECKING:
    from vllm import RequestOutput

Experts = NDArray[np.uint8 | np.uint16]  # [tokens, language layers, experts of a token]


TakeExperts = Callable[["RequestOutput", Sequence[str]], Sequence[Experts | None]]
"""Returns the experts of the responses of a finished request, which vLLM has by these names."""


def add_routing(
    rollouts: Sequence[Rollout], experts: Sequence[Experts | None], prompt_tokens: int
) -> tuple[Rollout, ...]:
    """Returns the rollouts with the experts of their tokens, but of the last, which was not computed any more.

    Raises:
        RuntimeError: vLLM recorded none, or of other tokens: the trainer would choose its own without a word.
    """
    for rollout, own in zip(rollouts, experts, strict=True):
        wanted = prompt_tokens + len(rollout.token_ids) - 1
        if own is None or len(own) != wanted:
            raise RuntimeError(
                f"vLLM recorded the experts of {0 if own is None else len(own)} tokens, wanted {wanted}: this version "
                "does not return routed experts as rl/routing reads them; set algorithm.router_replay=off"
            )
    return tuple(replace(r, routed_experts=own) for r, own in zip(rollouts, experts, strict=True))


def take_returned(output: RequestOutput, names: Sequence[str]) -> list[Experts | None]:
    """Returns the experts that vLLM returns with the responses, where it was started to do so."""
    return [c.routed_experts for c in sorted(output.outputs, key=lambda completion: completion.index)]


def start_recording(llm: Any) -> TakeExperts:
    """Begins to record in the workers of an engine; returns the function that takes what they recorded."""
    llm.collective_rpc(_start)
    # all ranks of an engine choose the same
    return lambda output, names: llm.collective_rpc(_take, args=(list(names),))[0]


def _start(worker: Any) -> None:
    """Runs in a worker of vLLM."""
    worker.omr_routing = RoutingRecord(worker.model_runner)


def _take(worker: Any, names: Sequence[str]) -> list[Experts]:
    """Runs in a worker of vLLM."""
    return [worker.omr_routing.take(name) for name in names]


class RoutingRecord:
    """What the routers of a worker chose for the tokens of each request, until it is taken."""

    def __init__(self, runner: Any) -> None:
        """Listens to the routers of a model runner, and to its steps."""
        from vllm.model_executor.layers.fused_moe.layer import MoERunner

        model = runner.model_config
        self._num_layers = model.get_total_num_hidden_layers()
        self._dtype = np.uint8 if model.get_num_experts() <= 256 else np.uint16
        self._step: dict[int, Tensor] = {}  # by layer, [tokens of the step, K]
        self._parts: dict[str, list[Experts]] = {}
        for module in runner.model.modules():
            if isinstance(module, MoERunner):
                module.router.set_capture_fn(partial(self._step.__setitem__, module.layer_id))
        execute = runner.execute_model

        def execute_and_keep(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            output = execute(scheduled, *args, **kwargs)
            if scheduled.total_num_scheduled_tokens:
                self._keep(runner.input_batch, scheduled.num_scheduled_tokens)
            return output

        runner.execute_model = execute_and_keep

    def take(self, name: str) -> Experts:
        """Returns the experts of a request, and forgets them."""
        return np.concatenate(self._parts.pop(name))

    def _keep(self, batch: Any, counts: dict[str, int]) -> None:
        """Cuts what the last step chose by request; `counts` are its tokens, which lie one after the other."""
        total, experts_of_token = sum(counts.values()), next(iter(self._step.values())).size(1)
        step = np.zeros((total, self._num_layers, experts_of_token), self._dtype)
        for layer, chosen in self._step.items():
            step[:, layer] = chosen[:total].numpy()
        end = 0
        for number, name in enumerate(batch.req_ids):
            start, end = end, end + counts[name]
            parts = self._parts.setdefault(name, [])
            # tokens are computed again after a weight update, or where vLLM had no room for the request
            known = sum(map(len, parts)) - int(batch.num_computed_tokens_cpu[number])
            parts.append(step[start:end][max(known, 0) :])
