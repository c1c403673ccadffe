"""Fills this rank's parameters from the safetensors of a Hugging Face folder, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from megatron_omr.convert.hf_folder import HfTensors
from megatron_omr.convert.mapping import build_rules
from megatron_omr.convert.parameters import collect_parameters, split_expert
from megatron_omr.convert.rule import Rule
from megatron_omr.convert.source import check_tensors, read_part
from megatron_omr.convert.tables.language import EMBEDDING, OUTPUT_LAYER
from megatron_omr.model_config import ModelConfig
from megatron_omr.parallel import Ranks


@torch.no_grad()
def load_hf(chunks: Sequence[nn.Module], folder: str | Path, model: ModelConfig, ranks: Ranks) -> None:
    """Copies the weights of `folder` into `chunks`, cut for this rank and cast to the parameters' dtype.

    Reads either spelling of the names, from one file or an index of many.

    Raises:
        ValueError: tensors are missing, unexpected, or have another shape than `model` says; or the model is tied,
            and the folder holds another output layer.
    """
    table = build_rules(model)
    by_name = {rule.megatron: rule for rule in table}
    if model.tie_word_embeddings:  # the last pipeline stage holds a copy under the name of the output layer
        by_name[OUTPUT_LAYER] = by_name[EMBEDDING]
    with HfTensors(Path(folder)) as source:
        check_tensors(source, table)
        for name, parameter in collect_parameters(chunks).items():
            rule, expert = split_expert(name)
            parameter.copy_(_read_own(source, by_name[rule], expert, parameter.dtype, ranks))


def _read_own(source: HfTensors, rule: Rule, expert: int | None, dtype: torch.dtype, ranks: Ranks) -> Tensor:
    """Returns this rank's part of a parameter, its part of each piece stacked."""
    if expert is None:
        parts = rule.cut(ranks.tp_size)[ranks.tp_rank]
    else:
        whole = rule.cut(ranks.etp_size)[ranks.etp_rank]
        parts = [((expert, *offset[1:]), (1, *sizes[1:])) for offset, sizes in whole]
    tensors = [torch.empty(sizes, dtype=dtype) for _, sizes in parts]
    for part, tensor in zip(parts, tensors, strict=True):
        read_part(source, rule, part, tensor)
    tensors = tensors if expert is None else [tensor.squeeze(0) for tensor in tensors]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
