"""One tensor of a Hugging Face checkpoint, as it is known before its data."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from megatron_omr.dtypes import Precision, torch_dtype


@dataclass(frozen=True, kw_only=True)
class HfTensor:
    """Name, shape and dtype of a tensor."""

    name: str  # as transformers' modules spell it
    shape: tuple[int, ...]
    precision: Precision

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * torch_dtype(self.precision).itemsize
