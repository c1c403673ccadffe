"""The dtypes of weights, in one table: as recipes, Hugging Face configs and torch name them.

Imports torch only when asked for one of its dtypes, so that configs can use the names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16"]

HF_DTYPES: dict[Precision, Literal["float32", "bfloat16"]] = {"fp32": "float32", "bf16": "bfloat16"}
"""The name in Hugging Face configs, which is also torch's."""


def torch_dtype(precision: Precision) -> torch.dtype:
    """Returns torch's dtype of a precision."""
    import torch

    return getattr(torch, HF_DTYPES[precision])


def precision_of(dtype: torch.dtype | str, *, of: str) -> Precision:
    """Returns the precision of a torch dtype or of a name in a Hugging Face config; `of` names it in the error.

    Raises:
        ValueError: weights cannot have this dtype.
    """
    name = str(dtype).removeprefix("torch.")
    for precision, hf_name in HF_DTYPES.items():
        if hf_name == name:
            return precision
    raise ValueError(f"{of} is {dtype}; weights must be {' or '.join(HF_DTYPES.values())}")
