"""The parameters of live model chunks, by the names of the table, and how tensor parallelism cuts them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import nn

from megatron_omr.model.names import FUSED_NORM_KEYS


def collect_parameters(chunks: Sequence[nn.Module]) -> dict[str, nn.Parameter]:
    """Returns this rank's parameters by canonical name."""
    named = {}
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            named[canonical_name(name, chunk)] = parameter
    return named


def canonical_name(name: str, chunk: nn.Module) -> str:
    """Returns a parameter's name with its global layer number and without fused norms."""
    match = re.fullmatch(r"(.*\.layers\.)(\d+)\.(.*)", name)
    if match is None:
        return name
    prefix, index, rest = match.groups()
    layer = chunk.get_submodule(f"{prefix}{index}")
    assert isinstance(layer, TransformerLayer)
    number = layer.layer_number - 1  # global, from 0
    for separate, fused in FUSED_NORM_KEYS.items():
        rest = rest.replace(fused, separate)
    return f"{prefix}{number}.{rest}"


def partition_dim(parameter: nn.Parameter) -> int | None:
    """Returns the dimension cut over tensor parallelism, None where every rank holds the whole."""
    marked = "tensor_model_parallel" in parameter.__dict__ and parameter.tensor_model_parallel
    return parameter.partition_dim if marked else None
