"""The parameters of live model chunks, by the names of the table, and how tensor parallelism cuts them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from megatron.core.transformer.moe.moe_layer import MoELayer
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


def collect_stacks(chunks: Sequence[nn.Module]) -> dict[str, list[nn.Parameter]]:
    """Returns this rank's parameters by the names of the table: those of its experts in order, each other one alone."""
    stacks: defaultdict[str, dict[int, nn.Parameter]] = defaultdict(dict)
    for name, parameter in collect_parameters(chunks).items():
        rule, expert = split_expert(name)
        stacks[rule][expert or 0] = parameter
    return {name: [stack[expert] for expert in sorted(stack)] for name, stack in stacks.items()}


def split_expert(name: str) -> tuple[str, int | None]:
    """Returns the name in the table of a parameter's canonical name, and its expert, None where it is of none."""
    match = re.fullmatch(r"(.*\.experts)\.(\d+)(\..*)", name)
    return (f"{match[1]}{match[3]}", int(match[2])) if match else (name, None)


def canonical_name(name: str, chunk: nn.Module) -> str:
    """Returns a parameter's name with its global layer number and expert, and without fused norms."""
    match = re.fullmatch(r"(.*\.layers\.)(\d+)\.(.*)", name)
    if match is None:
        return name
    prefix, index, rest = match.groups()
    layer = chunk.get_submodule(f"{prefix}{index}")
    assert isinstance(layer, TransformerLayer)
    number = layer.layer_number - 1  # global, from 0
    for separate, fused in FUSED_NORM_KEYS.items():
        rest = rest.replace(fused, separate)
    if isinstance(layer.mlp, MoELayer):
        rest = _with_expert(rest, layer.mlp.local_expert_indices)
    return f"{prefix}{number}.{rest}"


def _with_expert(rest: str, experts: Sequence[int]) -> str:
    """Returns the name of an expert's parameter with its global number: of experts one by one, or grouped ones."""
    one_by_one = re.fullmatch(r"mlp\.experts\.local_experts\.(\d+)\.(.*)", rest)
    if one_by_one:
        return f"mlp.experts.{experts[int(one_by_one[1])]}.{one_by_one[2]}"
    grouped = re.fullmatch(r"mlp\.experts\.(.*\.weight)(\d+)", rest)
    return f"mlp.experts.{experts[int(grouped[2])]}.{grouped[1]}" if grouped else rest


def partition_dim(parameter: nn.Parameter) -> int | None:
    """Returns the dimension cut over tensor parallelism, None where every rank holds the whole."""
    marked = "tensor_model_parallel" in parameter.__dict__ and parameter.tensor_model_parallel
    return parameter.partition_dim if marked else None
