"""The experts of a layer, and how what concerns the tokens of a micro-batch gets to their router."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from megatron.core.tensor_parallel import checkpoint
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor, nn

from megatron_omr.model.moe.router import Router, Routing


class Experts(MoELayer):
    """Megatron's layer, which computes again with the routing of the same micro-batch, whichever ran since."""

    routing_of_batch: Routing

    def __init__(self, config: Any, submodules: MoESubmodules, pg_collection: Any = None, **_: Any) -> None:
        super().__init__(config=config, submodules=submodules, pg_collection=pg_collection)
        self.is_computed_again = "mlp" in (config.recompute_modules or ())

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        routing = self.routing_of_batch

        def run(hidden: Tensor) -> Tensor:
            self.router.routing_of_batch = routing
            return super(Experts, self).forward(hidden)[0]

        return (checkpoint(run, False, hidden_states) if self.is_computed_again else run(hidden_states)), None


def experts_spec(column_linear: Any, row_linear: Any, grouped: Any | None) -> Any:
    """Returns the spec of a layer's experts: one after the other, or in one grouped product.

    Args:
        grouped: module and submodules of the grouped experts; None where there is no such product.
    """
    module, inner = grouped or (
        SequentialMLP,
        MLPSubmodules(linear_fc1=column_linear, linear_fc2=row_linear),
    )
    submodules = MoESubmodules(experts=ModuleSpec(module=module, submodules=inner), router=Router)
    # no ModuleSpec: of those Megatron knows its own classes alone, and warns of others
    return SimpleNamespace(module=Experts, submodules=submodules)


def connect_routers(decoder: Any) -> None:
    """Makes each layer with experts hand them the routing that is in the batch's PackedSequences."""
    for layer in decoder.layers:
        if isinstance(layer.mlp, Experts):
            layer.register_forward_pre_hook(_hand_routing, with_kwargs=True)


def _hand_routing(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    layer.mlp.routing_of_batch = kwargs["packed_seq_params"].routing


def routers(chunks: Sequence[nn.Module]) -> Iterator[Router]:
    """Yields the routers of this rank's model chunks, in the order of their layers."""
    for chunk in chunks:
        yield from (module for module in chunk.modules() if isinstance(module, Router))


def mark_experts(chunks: Sequence[nn.Module]) -> None:
    """Marks the experts' parameters for gradient buffers and an optimizer of their own, over the expert groups.

    Before DDP wraps the chunks. Megatron does so with expert parallelism alone: with etp below tp it would then leave
    gradients unsummed, and a checkpoint's optimizer would depend on ep.
    """
    modules = (module for chunk in chunks for module in chunk.modules())
    for layer in (module for module in modules if isinstance(module, Experts)):
        for parameter in layer.experts.parameters():
            setattr(parameter, "allreduce", False)  # noqa: B010
