"""The table of dtypes."""

from __future__ import annotations

import pytest
import torch

from megatron_omr.dtypes import HF_DTYPES, precision_of, torch_dtype


def test_every_precision_has_one_torch_dtype_and_one_name() -> None:
    assert {p: torch_dtype(p) for p in HF_DTYPES} == {"fp32": torch.float32, "bf16": torch.bfloat16}
    for precision, name in HF_DTYPES.items():
        assert precision_of(name, of="x") == precision_of(torch_dtype(precision), of="x") == precision


@pytest.mark.parametrize("dtype", [torch.int64, "float16"])
def test_other_dtype_is_an_error(dtype: torch.dtype | str) -> None:
    with pytest.raises(ValueError, match=f"norm.weight is {dtype}; weights must be float32 or bfloat16"):
        precision_of(dtype, of="norm.weight")
