"""Fills this rank's parameters from the safetensors of a Hugging Face folder, one tensor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from megatron_omr.convert.hf_folder import HfTensors
from megatron_omr.convert.mapping import (
    EMBEDDING,
    OUTPUT_LAYER,
    Rule,
    build_rules,
    collect_parameters,
    partition_dim,
)
from megatron_omr.convert.ops import cut, uncut
from megatron_omr.model_config import ModelConfig
from megatron_omr.parallel import Ranks


@torch.no_grad()
def load_hf(chunks: Sequence[nn.Module], folder: str | Path, model: ModelConfig, ranks: Ranks) -> None:
    """Copies the weights of `folder` into `chunks`, cut for this rank and cast to the parameters' dtype.

    Reads either spelling of the names, from one file or an index of many.

    Raises:
        ValueError: a tensor is missing, unexpected, or has another shape than `model` says; or the model is tied,
            and the folder holds another output layer.
    """
    table = build_rules(model)
    source = HfTensors(Path(folder))
    source.check_names([name for rule in table for name in rule.hf])
    by_name = {rule.megatron: rule for rule in table}
    if model.tie_word_embeddings:  # the last pipeline stage holds a copy under the name of the output layer
        by_name[OUTPUT_LAYER] = by_name[EMBEDDING]
        source.check_tied(*by_name[EMBEDDING].hf)
    for name, parameter in collect_parameters(chunks).items():
        _fill(parameter, by_name[name], source, ranks)


def _fill(parameter: nn.Parameter, rule: Rule, source: HfTensors, ranks: Ranks) -> None:
    dim = partition_dim(parameter)
    tensors = [source.read(name) for name in rule.hf]
    shard = torch.empty_like(parameter, device="meta")
    wanted = rule.op.to_hf(uncut([shard] * ranks.tp_size, dim, rule.op.num_pieces))
    for name, tensor, meta in zip(rule.hf, tensors, wanted, strict=True):
        if tensor.shape != meta.shape:
            raise ValueError(
                f"{source.folder}: {name} has shape {list(tensor.shape)}, but config.json makes it "
                f"{list(meta.shape)}; weights and config belong to different models"
            )
    parameter.copy_(cut(rule.op.to_megatron(tensors), dim, ranks.tp_rank, ranks.tp_size))
