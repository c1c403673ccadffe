"""Loading the weights of Hugging Face folders into live models."""

from __future__ import annotations

import pytest
import torch

from megatron_omr.config import ParallelConfig
from megatron_omr.model_config import ModelConfig
from tests.helpers.ranks import init_ranks, run_ranks

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("fixture", ["tiny_hf", "tiny_tied_hf"])
def test_loading_leaves_no_weight_as_it_was_built(fixture: str, request: pytest.FixtureRequest) -> None:
    """build_model() draws none."""
    folder = str(request.getfixturevalue(fixture))
    assert run_ranks(_names_left, 2, folder, ParallelConfig(pp=2)) == [[], []]


def _names_left(folder: str, parallel: ParallelConfig) -> list[str]:
    from megatron_omr.convert.load import load_hf
    from megatron_omr.model.build import build_model

    ranks, model = init_ranks(parallel), ModelConfig.from_hf(folder)
    before = torch.get_rng_state()
    chunks = build_model(model, parallel, ranks, precision="fp32")
    if ranks.pp_rank == 1:  # torch's own layer of the tower, on the first stage, draws its few weights
        assert torch.get_rng_state().equal(before)
    parameters = dict(chunks[0].named_parameters())
    for parameter in parameters.values():
        parameter.data.fill_(float("nan"))
    load_hf(chunks, folder, model, ranks)
    return [name for name, parameter in parameters.items() if parameter.isnan().any()]
