"""Fills this rank's parameters from the safetensors of a Hugging Face folder, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from megatron_omr.config import ModelConfig
from megatron_omr.convert.mapping import (
    EMBEDDING,
    OUTPUT_LAYER,
    Rule,
    local_parameters,
    partition_dim,
    rules,
    stored_name,
)
from megatron_omr.convert.ops import cut, uncut
from megatron_omr.parallel import Ranks


@torch.no_grad()
def load_hf(chunks: Sequence[nn.Module], folder: str | Path, model: ModelConfig, ranks: Ranks) -> None:
    """Copy the weights of `folder` into `chunks`, cut for this rank and cast to the parameters' dtype.

    Reads published names and those of transformers 5's modules, from one file or an index of many.

    Raises:
        ValueError: a tensor is missing, unexpected, or has another shape than `model` says.
    """
    table = rules(model)
    source = _Source(Path(folder))
    source.check_names([name for rule in table for name in rule.hf])
    by_name = {rule.megatron: rule for rule in table}
    if model.tie_word_embeddings:  # the last pipeline stage holds a copy under the name of the output layer
        by_name[OUTPUT_LAYER] = by_name[EMBEDDING]
    for name, parameter in local_parameters(chunks).items():
        _fill(parameter, by_name[name], source, ranks)


def _fill(parameter: nn.Parameter, rule: Rule, source: _Source, ranks: Ranks) -> None:
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


class _Source:
    """Tensors of a folder by name, read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            self._file_of: dict[str, str] = json.loads(index.read_text())["weight_map"]
        elif (folder / "model.safetensors").is_file():
            with safe_open(folder / "model.safetensors", framework="pt") as file:
                self._file_of = dict.fromkeys(file.keys(), "model.safetensors")
        else:
            raise ValueError(
                f"{folder} has neither model.safetensors nor model.safetensors.index.json; "
                f"give a Hugging Face folder with safetensors"
            )

    def check_names(self, wanted: list[str]) -> None:
        found = {name for new in wanted for name in (new, stored_name(new)) if name in self._file_of}
        missing = [name for name in wanted if not {name, stored_name(name)} & found]
        if missing:
            raise ValueError(f"{self.folder} lacks {_some(missing)}; have {_some(sorted(self._file_of))}")
        # files of tied models may repeat the embedding as lm_head; old ones stored rotary frequencies
        ignored = {"lm_head.weight"}
        unexpected = [n for n in self._file_of if n not in found | ignored and not n.endswith("inv_freq")]
        if unexpected:
            raise ValueError(
                f"{self.folder} has {_some(sorted(unexpected))}, which this model does not have; "
                f"check config.json (layers, tied embeddings, biases)"
            )

    def read(self, name: str) -> Tensor:
        stored = name if name in self._file_of else stored_name(name)
        with safe_open(self.folder / self._file_of[stored], framework="pt") as file:
            return file.get_tensor(stored)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
