"""Lets Megatron's router and all-to-all dispatcher of experts run without CUDA and Transformer Engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SPLITS = ("input_splits", "output_splits", "output_splits_tp")
"""Tokens that a rank sends and receives, which the collectives want as numbers of the host."""


def patch_experts() -> None:
    """Replaces what needs CUDA: the dispatcher's stream and its copies to the host, and the router's fused product."""
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    moe_utils.te_general_gemm = None  # bound only where Transformer Engine is; None means torch's product
    dispatcher = token_dispatcher.MoEAlltoAllTokenDispatcher
    dispatcher.cuda_dtoh_stream = object()  # else the constructor makes one
    dispatcher._maybe_dtoh_and_synchronize = _take_splits


def _take_splits(self: Any, point: str, tokens_per_expert: Tensor | None = None) -> Tensor | None:
    """Turns the split sizes into numpy arrays where the original copies them to the host."""
    if not self.drop_and_pad and point == self.cuda_dtoh_point:
        for name in _SPLITS:
            if torch.is_tensor(splits := getattr(self, name)):
                setattr(self, name, splits.numpy())
    return tokens_per_expert
