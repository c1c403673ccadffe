"""Chooses the experts of each token, as Qwen3-MoE does.

Legend: t this rank's tokens, K experts of a token, E experts, L language layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_omr import cpu


@dataclass(kw_only=True)
class Routing:
    """What the routers of a model are told about the tokens of a micro-batch. It goes through all layers unchanged.

    Recomputation passes the same object again, in whatever order the schedule runs micro-batches.
    """

    is_real: Tensor  # [t] bool, False of padding
    recorded: Tensor | None = None  # [t, L, K] int16, an engine's choice; -1 of tokens that have none


class Router(TopKRouter):
    """Softmax over the logits of the K best experts, in float32. `routing_of_batch` is set before each call."""

    routing_of_batch: Routing
    balance = 0.0
    """What each token adds to the loss for the auxiliary one is multiplied by this."""
    replays = True
    """Take the experts of an engine's record; otherwise it is only compared."""

    def __init__(self, config: TransformerConfig, pg_collection: Any = None, **_: Any) -> None:
        super().__init__(config=config, pg_collection=pg_collection)
        experts = config.num_moe_experts
        assert experts is not None
        weight = torch.empty(experts, config.hidden_size, dtype=config.params_dtype, device=cpu.device())
        self.weight = nn.Parameter(weight)  # the parent's is on the host
        self.weight.sequence_parallel = config.sequence_parallel
        # since the last call of take_counts: tokens of each expert; the auxiliary loss times tokens, and these tokens;
        # tokens for which the router would have chosen other experts than the engine did, and those with its choice
        self.load, self.balance_sum, self.differing = (
            torch.zeros(number, dtype=torch.float64, device=cpu.device()) for number in (experts, 2, 2)
        )

    def routing(self, logits: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Returns the weights of all experts [t, E], 0 of those that are not chosen, and which are chosen [t, E]."""
        batch = self.routing_of_batch
        logits = logits.view(-1, logits.size(-1))
        chosen = logits.topk(self.topk, dim=1).indices
        if batch.recorded is not None:
            assert self.layer_number is not None
            chosen = self._compare(chosen, batch.recorded[:, self.layer_number - 1].long(), batch.is_real)
        weights_K = logits.gather(1, chosen).softmax(1, dtype=torch.float32).type_as(logits)
        weights = torch.zeros_like(logits).scatter(1, chosen, weights_K)
        is_chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, chosen, True)
        if torch.is_grad_enabled():  # once of each token, also with recomputation
            real = is_chosen & batch.is_real[:, None]
            self.load += real.sum(0)
            if self.balance:
                weights = self._balance(weights, logits, real, batch)
        return weights, is_chosen

    def take_counts(self) -> Tensor:
        """Returns, and forgets, what was counted: [E + 4], in the order above."""
        counted = (self.load, self.balance_sum, self.differing)
        counts = torch.cat(counted)
        for each in counted:
            each.zero_()
        return counts

    def _compare(self, own: Tensor, recorded: Tensor, is_real: Tensor) -> Tensor:
        """Returns the experts to take [t, K], of the router's own choice and the engine's; counts where they differ."""
        has_record = recorded[:, :1] >= 0
        if torch.is_grad_enabled():
            compared = has_record.squeeze(1) & is_real
            differs = (own.sort(1).values != recorded.sort(1).values).any(1)
            self.differing += torch.stack([(differs & compared).sum(), compared.sum()])
        return recorded.where(has_record, own) if self.replays else own

    def _balance(self, weights: Tensor, logits: Tensor, real: Tensor, batch: Routing) -> Tensor:
        """Adds the gradient of the auxiliary loss of the micro-batch: E sum_e share of tokens x mean probability.

        The sum is over the ranks that hold parts of the same micro-batch (TP under SP, and CP), so that the layout
        changes nothing. As transformers' load_balancing_loss_func of one layer, divided by K.
        """
        counts = torch.cat([real.sum(0), batch.is_real.sum()[None]]).to(torch.float32)
        dist.all_reduce(counts, group=self.tp_cp_group)
        tokens_E, num_tokens = counts[:-1], counts[-1].clamp(min=1)
        probabilities = logits.softmax(1, dtype=torch.float32) * batch.is_real[:, None]
        share_E = tokens_E / num_tokens / self.topk
        # over tokens: the mean times their number
        loss_sum = logits.size(1) * (share_E * probabilities.sum(0)).sum()
        self.balance_sum += torch.stack([loss_sum.detach(), batch.is_real.sum()])
        return MoEAuxLossAutoScaler.apply(weights, loss_sum * self.balance)
