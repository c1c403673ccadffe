"""Our AdamW equals torch's."""

from __future__ import annotations

import pytest
import torch

from megatron_omr.fallbacks.adam import GroupStepAdam


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_equals_torch(decay: float) -> None:
    torch.manual_seed(0)
    start = [torch.randn(4, 3), torch.randn(5)]
    options = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay)
    ours, theirs = ([p.clone().requires_grad_() for p in start] for _ in range(2))
    optimizers = GroupStepAdam(ours, **options), torch.optim.AdamW(theirs, **options)
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    group = optimizers[0].state_dict()["param_groups"][0]
    assert group["step"] == 5
    assert set(optimizers[0].state[ours[0]]) == {"exp_avg", "exp_avg_sq"}


def test_adam_can_take_l2_instead_of_decay() -> None:
    ours, theirs = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    ours.grad, theirs.grad = torch.ones(3), torch.ones(3)
    GroupStepAdam([ours], lr=0.1, weight_decay=0.5, adam_w_mode=False).step()
    torch.optim.Adam([theirs], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(ours, theirs)
