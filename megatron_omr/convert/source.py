"""Reads Megatron's parameters out of a Hugging Face folder, in parts, after all of its tensors have been checked."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from megatron_omr.convert.hf_folder import HfTensors
from megatron_omr.convert.ops import select_rows
from megatron_omr.convert.rule import Rectangle, Rule
from megatron_omr.convert.tables.language import EMBEDDING, OUTPUT_LAYER
from megatron_omr.convert.tensor_file import DTYPES, TensorPlace, as_bytes

HEAD = "lm_head.weight"
_COMPARED_BYTES = 2**24


def check_tensors(source: HfTensors, rules: Sequence[Rule]) -> None:
    """Checks that the folder has the tensors of the table, and no others.

    Raises:
        ValueError: it lists all that are missing, unknown or misshapen; or the model is tied, and the folder holds
            another output layer.
    """
    wanted = {name: shape for rule in rules for name, shape in zip(rule.hf, rule.hf_shapes(), strict=True)}
    wanted |= {rule.hf[0]: rule.shape for rule in rules if rule.is_of_experts and is_as_modules(source, rule)}
    stored = {name: own for rule in rules for name, own in zip(rule.hf, rule.stored, strict=True)}
    places, is_tied = source.places, all(rule.megatron != OUTPUT_LAYER for rule in rules)
    # files of tied models may repeat the embedding as lm_head; old ones stored rotary frequencies
    ignored = {HEAD} if is_tied else set()
    unknown = [
        place.name
        for name, place in places.items()
        if name not in wanted and name not in ignored and not name.endswith("inv_freq")
    ]
    wrong = {
        "lacks": _group(stored[name] for name in wanted if name not in places),
        "has these, which the model does not": _group(unknown),
        "has other shapes": _group(_misshapen(places, wanted)),
        "has dtypes that weights cannot have": _group(
            f"{places[name].name} in {places[name].dtype}"
            for name in wanted
            if name in places and places[name].dtype not in DTYPES
        ),
    }
    if faults := [f"it {what}: {'; '.join(names)}" for what, names in wrong.items() if names]:
        raise ValueError(
            f"{source.folder} does not hold the model of its config.json: {'; '.join(faults)}. {_hint(places, wanted)}"
        )
    if is_tied and HEAD in places:
        _check_tied(source, next(rule.hf[0] for rule in rules if rule.megatron == EMBEDDING))


def _misshapen(places: Mapping[str, TensorPlace], wanted: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name, shape in wanted.items():
        place = places.get(name)
        if place is not None and place.shape != shape:
            yield f"{place.name} is {list(place.shape)} and should be {list(shape)}"


def _hint(places: Mapping[str, TensorPlace], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """Returns a sentence about the likely cause."""
    embedding = next(name for name in wanted if name.endswith("embed_tokens.weight"))
    rows, vocabulary = places[embedding].shape[0] if embedding in places else 0, wanted[embedding][0]
    if rows and rows != vocabulary:
        return (
            f"The embedding has {rows} rows, and config.json says vocab_size={vocabulary}; the rows count, also those "
            f"that no token uses: set vocab_size={rows}"
        )
    if HEAD in wanted and HEAD not in places:
        return "Is its output layer the embedding? Then set tie_word_embeddings=true"
    return "Check config.json (layers, sizes, tied embeddings), or fetch the weights that belong to it"


def _group(names: Iterable[str]) -> list[str]:
    """Returns the names; those that differ in a layer's number alone are one, with how many they are."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[re.sub(r"\.\d+\.", ".*.", name)].append(name)
    return [
        same[0] if len(same) == 1 else f"{pattern} ({len(same)} of them)" for pattern, same in groups.items()
    ]


def _check_tied(source: HfTensors, embedding: str) -> None:
    """Raises ValueError if the folder holds an output layer of its own, other than `embedding`."""
    own, other = source.places[HEAD], source.places[embedding]
    alike = own.shape == other.shape and own.dtype == other.dtype
    if alike:
        rows, width = own.shape[0], math.prod(own.shape[1:])
        step = max(1, _COMPARED_BYTES // (width * DTYPES[own.dtype].itemsize))
        a, b = (torch.empty(min(step, rows), width, dtype=DTYPES[own.dtype]) for _ in range(2))
        for first in range(0, rows, step):
            count = min(step, rows - first)
            source.read_rows(HEAD, first, a[:count])
            source.read_rows(embedding, first, b[:count])
            alike = alike and as_bytes(a[:count]) == as_bytes(b[:count])  # also NaN
    if not alike:
        raise ValueError(
            f"{source.folder}/config.json says tie_word_embeddings=true, but {HEAD} differs from {embedding}; "
            f"set it to false, or delete {HEAD}"
        )


def read_part(source: HfTensors, rule: Rule, part: Rectangle, out: Tensor) -> None:
    """Fills `out`, contiguous and on the CPU, with a part of a parameter, cast to its dtype.

    Raises:
        ValueError: a file of the folder is damaged.
    """
    if rule.is_of_experts:
        _read_experts(source, rule, part, out)
        return
    (first, *columns), (count, *widths) = part
    start, width = (columns or [0])[0], math.prod(widths)
    rows = out.view(count, width)
    for place, segment in select_rows(rule.segments(), first, count):
        target = rows.narrow(0, place, segment.count)
        if segment.tensor is None:
            target.zero_()
            continue
        name = rule.hf[segment.tensor]
        hf_width, dtype = math.prod(source.places[name].shape[1:]), DTYPES[source.places[name].dtype]
        if width == hf_width and dtype == out.dtype:
            source.read_rows(name, segment.first, target)
            continue
        read = torch.empty(segment.count, hf_width, dtype=dtype)
        source.read_rows(name, segment.first, read)
        kept = max(0, min(width, hf_width - start))  # zeros follow
        target[:, :kept].copy_(read[:, start : start + kept])
        target[:, kept:].zero_()


def is_as_modules(source: HfTensors, rule: Rule) -> bool:
    """Returns whether a layer's experts lie as in transformers' modules, [E, out, in], and not as in published files.

    transformers 5 saves them so. Either tensor alone may be square; both never are, so both decide.
    """
    layer, _, own = rule.hf[0].rpartition(".")
    number, rows, columns = rule.shape
    inner, hidden = (rows // 2, columns) if own == "gate_up_proj" else (columns, rows)
    wanted = {"gate_up_proj": (number, 2 * inner, hidden), "down_proj": (number, hidden, inner)}
    places = {name: source.places.get(f"{layer}.{name}") for name in wanted}
    return all(place is not None and place.shape == wanted[name] for name, place in places.items())


def _read_experts(source: HfTensors, rule: Rule, part: Rectangle, out: Tensor) -> None:
    """Fills `out` with a part of the matrices of some experts, reading one expert at a time."""
    (name,), ((first, row, column), sizes) = rule.hf, part
    place, is_turned = source.places[rule.hf[0]], not is_as_modules(source, rule)
    read = torch.empty(1, *place.shape[1:], dtype=DTYPES[place.dtype])
    for expert, target in enumerate(out.view(sizes), first):
        source.read_rows(name, expert, read)
        matrix = read[0].T if is_turned else read[0]
        target.copy_(matrix[row : row + sizes[1], column : column + sizes[2]])
