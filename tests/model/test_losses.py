"""The two means of the SFT loss: over all tokens, and over packs of each pack's mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from data_pipeline.loader.packing import build_blank, merge
from data_pipeline.types import Example
from megatron_omr.train.losses import SFT_LOSSES
from tests.data.loader.test_packing import make_example


def test_means_by_hand() -> None:
    """Two packs of 1 and 3 learned tokens, whose losses are 4 and 1, 2, 3, and a blank one."""
    masks = ([0, 0, 1], [0, 1, 1, 1])
    packs = [merge([learn(n, mask)], multiple=4, pad_token_id=0) for n, mask in enumerate(masks)]
    packs.append(build_blank(multiple=4, pad_token_id=0))
    losses = ([9.0, 4.0, 9.0, 9.0], [1.0, 2.0, 3.0, 9.0], [9.0] * 4)
    means = {}
    for name, loss in SFT_LOSSES.items():
        logprobs = [(-torch.tensor(values)).requires_grad_() for values in losses]
        outputs = [loss(x, torch.zeros(4), pack) for x, pack in zip(logprobs, packs, strict=True)]
        total, count = sum(o.loss_sum for o in outputs), sum(o.count for o in outputs)
        means[name] = float((total / count).detach())
        assert count == {"tokens": 4, "packs": 2}[name]
        total.backward()
        weight = 1.0 if name == "tokens" else 1 / 3
        for x, want in zip(logprobs, ([0, -1, 0, 0], [-weight] * 3 + [0], [0] * 4), strict=True):
            assert x.grad is not None and x.grad.tolist() == pytest.approx(want)
    assert means == {"tokens": pytest.approx(10 / 4), "packs": pytest.approx((4 + 2) / 2)}


def learn(number: int, mask: list[int]) -> Example:
    return replace(make_example(number, len(mask)), loss_mask=torch.tensor(mask, dtype=torch.float32))
