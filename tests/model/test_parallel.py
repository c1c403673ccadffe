"""The zigzag of context parallelism."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.ranks import run_ranks

pytestmark = pytest.mark.heavy


def test_zigzag_gives_each_rank_a_head_and_a_tail() -> None:
    run_ranks(_check_zigzag, 1)


def _check_zigzag() -> None:
    from megatron_omr.parallel import zigzag_order

    cu_seqlens = torch.tensor([0, 4, 12], dtype=torch.int32)
    assert zigzag_order(cu_seqlens, 2).tolist() == [[0, 3, 4, 5, 10, 11], [1, 2, 6, 7, 8, 9]]
    assert zigzag_order(cu_seqlens, 1).tolist() == [list(range(12))]
    with pytest.raises(ValueError, match="multiples of 8"):
        zigzag_order(cu_seqlens, 4)
