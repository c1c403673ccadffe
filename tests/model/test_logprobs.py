"""Logprobs, split over the vocabulary or over tokens, equal a plain log-softmax, and so do gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from data_pipeline.types import PackedBatch
from megatron_omr.config import ParallelConfig
from tests.helpers.memory import peak_bytes
from tests.helpers.ranks import init_ranks, run_ranks

LENGTHS, VOCABULARY = (8, 4, 12), 16

# fp32 sums in another order differ by 1e-6 of values up to 20; any mistake changes the first digits
assert_close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)


@pytest.mark.heavy
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


@pytest.mark.heavy
def test_very_large_logits_stay_finite() -> None:
    (logprobs, entropy, *_) = run_ranks(_token_logprobs, 1, ParallelConfig(), 1e-4)[0]
    assert torch.tensor([logprobs, entropy]).isfinite().all()


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_chunks_equal_a_plain_log_softmax_in_bounded_memory(dtype: torch.dtype) -> None:
    gaps, extra_chunks = run_ranks(_many_chunks, 1, dtype)[0]
    # seen: 2e-6, and for gradients in bfloat16 one rounding, on both sides
    assert gaps["logprobs"] < 1e-4 and gaps["entropy"] < 1e-4
    assert gaps["grad"] < (1e-4 if dtype == torch.float32 else 2e-2)
    # beside the logits' gradient: seen two chunks of logits, where a plain log-softmax takes 6 to 18
    assert 0 < extra_chunks < 3


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
        real_lens=torch.tensor(LENGTHS),
        pixels=torch.zeros(0, 1),
        image_grid_thw=torch.zeros(0, 3, dtype=torch.int64),
    )


def _many_chunks(dtype: torch.dtype) -> tuple[dict[str, float], float]:
    """Returns the largest differences from a plain log-softmax, and the memory beside the gradient in chunks."""
    from megatron_omr import cpu
    from megatron_omr.train.logprobs import token_logprobs

    ranks, generator = init_ranks(ParallelConfig()), torch.Generator().manual_seed(7)
    logits = (3 * torch.randn(1101, 4096, generator=generator)).to(dtype).requires_grad_()  # 4.3 chunks
    labels = torch.randint(4096, (1101,), generator=generator)
    batch = replace(make_batch(), labels=labels, cu_seqlens=torch.tensor([0, 1101]).int())
    weights = torch.randn(1101, generator=generator)
    ours: list[Tensor] = []

    def forward_and_backward() -> None:
        logprobs, entropy = token_logprobs(logits[:, None], batch, ranks, temperature=0.7, with_entropy=True)
        (logprobs * weights).sum().backward()
        ours.extend((logprobs.detach(), entropy))

    extra = peak_bytes(forward_and_backward) - logits.nbytes
    plain = logits.detach().clone().requires_grad_()
    log_softmax = (plain.float() / 0.7).log_softmax(dim=1)
    picked = log_softmax.gather(1, labels[:, None]).squeeze(1)
    (picked * weights).sum().backward()
    assert logits.grad is not None and plain.grad is not None and logits.grad.dtype == dtype
    pairs = {
        "logprobs": (ours[0], picked),
        "entropy": (ours[1], -(log_softmax.exp() * log_softmax).sum(dim=1)),
        "grad": (logits.grad, plain.grad),
    }
    gaps = {name: (a.float() - b.float()).abs().max().item() for name, (a, b) in pairs.items()}
    return gaps, extra / cpu.logits_chunk_bytes()


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
