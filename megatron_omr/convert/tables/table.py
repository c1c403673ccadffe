"""Tables of parameters by name, and the rules that they make for a model.

`{}` in a pattern is the layer. Names of parameters are those of plain-torch layers; Transformer Engine fuses norms into
the linear that follows, and so do the keys of checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from megatron_omr.convert.names import stored_name
from megatron_omr.convert.ops import Op
from megatron_omr.convert.rule import Rule
from megatron_omr.model.names import FUSED_NORM_KEYS

# of each parameter: the change of shape, the names of its sizes, the dimension that is cut, the Hugging Face names
Row = tuple[str, str, int | None, tuple[str, ...]]
Table = Mapping[str, Row]


def layer_table(megatron: str, hf: str, rows: Table) -> Table:
    """Returns the rows of a layer with the beginnings that all their names have."""
    return {
        f"{megatron}.layers.{{}}.{name}": (op, sizes, dim, tuple(f"{hf}.{{}}.{tensor}" for tensor in tensors))
        for name, (op, sizes, dim, tensors) in rows.items()
    }


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the words of the table mean for a model."""

    ops: Mapping[str, Op]
    sizes: Mapping[str, int]
    old_names: bool  # in files


def fill(table: Table, terms: Terms, num_layers: int | None = None) -> Iterator[Rule]:
    """Yields the rules of a table, for each of `num_layers` layers where its rows are of a layer."""
    for layer in range(num_layers or 1):
        yield from fill_layer(table, terms, None if num_layers is None else layer, num_layers or 0)


def fill_layer(table: Table, terms: Terms, layer: int | None, num_layers: int) -> Iterator[Rule]:
    """Yields the rules of a table whose rows are of this layer, or of none.

    Args:
        num_layers: how many a checkpoint has in one tensor; 0: each has tensors of its own.
    """
    for megatron, (op, sizes, dim, hf) in table.items():
        names = tuple(name.format(layer) for name in hf)
        yield Rule(
            megatron=megatron.format(layer),
            hf=names,
            stored=tuple(map(stored_name, names)) if terms.old_names else names,
            op=terms.ops[op],
            shape=tuple(terms.sizes[size] for size in sizes.split()),
            dim=dim,
            key=_checkpoint_key(megatron if num_layers else megatron.format(layer), table),
            layer=layer if num_layers else None,
            num_layers=num_layers,
        )


def _checkpoint_key(megatron: str, table: Table) -> str:
    """Returns the name in a checkpoint: without the layer where all are one tensor, and with norms in linear layers."""
    key = megatron.replace(".layers.{}.", ".layers.")
    key = key.replace(".mlp.experts.", ".mlp.experts.experts.")
    has_experts = any(".mlp.experts." in name for name in table)  # their norm stays alone
    for separate, fused in FUSED_NORM_KEYS.items():
        if not (has_experts and separate.startswith("pre_mlp")):
            key = re.sub(rf"(\.layers\.(?:\d+\.)?){re.escape(separate)}", rf"\1{fused}", key)
    return key
