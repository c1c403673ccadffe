"""Logprobs, split over the vocabulary or over tokens, equal a plain log-softmax, and so do gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from data_pipeline.types import PackedBatch
from megatron_omr.config import ParallelConfig
from tests.helpers.ranks import init_ranks, run_ranks

pytestmark = pytest.mark.heavy

LENGTHS, VOCABULARY = (8, 4, 12), 16

# fp32 sums in another order differ by 1e-6 of values up to 20; any mistake changes the first digits
assert_close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("parallel", "processes"),
    [(ParallelConfig(), 1), (ParallelConfig(tp=2), 2), (ParallelConfig(cp=2), 2)],
    ids=["one", "tp2", "cp2"],
)
def test_logprobs_entropy_and_gradient(parallel: ParallelConfig, processes: int, temperature: float) -> None:
    logits, weights = inputs()
    log_softmax = (logits / temperature).log_softmax(dim=1)
    logprobs = log_softmax.gather(1, make_batch().labels[:, None]).squeeze(1)
    entropy = -(log_softmax.exp() * log_softmax).sum(dim=1)
    (logprobs * weights).sum().backward()
    results = run_ranks(_token_logprobs, processes, parallel, temperature)
    for got_logprobs, got_entropy, untouched, _ in results:
        assert_close(torch.tensor(got_logprobs), logprobs.detach())
        assert_close(torch.tensor(got_entropy), entropy.detach())
        assert untouched
    # every rank has the gradient of its own part of the logits: together they are the whole
    assert_close(torch.tensor([r[3] for r in results]).sum(dim=0), logits.grad)


def test_very_large_logits_stay_finite() -> None:
    (logprobs, entropy, *_) = run_ranks(_token_logprobs, 1, ParallelConfig(), 1e-4)[0]
    assert torch.tensor([logprobs, entropy]).isfinite().all()


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(sum(LENGTHS), VOCABULARY, generator=generator)
    return logits.requires_grad_(), torch.randn(sum(LENGTHS), generator=generator)


def make_batch() -> PackedBatch:
    num_tokens = sum(LENGTHS)
    ids = torch.randint(VOCABULARY, (num_tokens,), generator=torch.Generator().manual_seed(6))
    return PackedBatch(
        ids=tuple(map(str, LENGTHS)),
        input_ids=ids,
        labels=ids.roll(-1),
        loss_mask=torch.ones(num_tokens),
        position_ids=torch.zeros(3, num_tokens, dtype=torch.int64),
        cu_seqlens=torch.tensor([0, *LENGTHS]).cumsum(0).int(),
        pixels=torch.zeros(0, 1),
        image_grid_thw=torch.zeros(0, 3, dtype=torch.int64),
    )


def _token_logprobs(parallel: ParallelConfig, temperature: float):
    from megatron_omr.parallel import zigzag_order
    from megatron_omr.train.logprobs import token_logprobs

    ranks, batch = init_ranks(parallel), make_batch()
    logits, weights = inputs()
    tokens = zigzag_order(batch.cu_seqlens, ranks.cp_size)[ranks.cp_rank]
    part = logits[tokens].chunk(ranks.tp_size, dim=1)[ranks.tp_rank].unsqueeze(1)
    before = part.detach().clone()
    logprobs, entropy = token_logprobs(part, batch, ranks, temperature=temperature, with_entropy=True)
    (logprobs * weights).sum().backward()
    untouched = torch.equal(part.detach(), before)
    return logprobs.tolist(), entropy.tolist(), untouched, logits.grad.tolist()
