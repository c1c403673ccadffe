"""Rotary positions as Transformer Engine's kernel takes them: a stand-in with its contract, against torch's steps.

The kernel itself needs a GPU. What can be wrong without one is what it gets: a row of angles for each token of the
pack, in float32, without sequence boundaries, which would restart the positions, and without YaRN's factor.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_omr.config import ParallelConfig
from tests.helpers.ranks import init_ranks, run_ranks

pytestmark = pytest.mark.heavy

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.fixture(scope="module")
def yarn_hf(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("yarn") / "model"
    shutil.copytree(tiny_hf, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_parameters"] |= YARN
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("model", ["tiny_hf", "yarn_hf"])
@pytest.mark.parametrize("cp", [1, 2])
def test_fused_positions_equal_torch_in_steps(model: str, cp: int, request: pytest.FixtureRequest) -> None:
    for difference, calls in run_ranks(
        _compare, cp, str(request.getfixturevalue(model)), ParallelConfig(cp=cp)
    ):
        assert difference < 1e-4  # of logits up to 5
        assert calls == 2 * (4 + 4)  # queries and keys of both decoders' layers


def _compare(folder: str, parallel: ParallelConfig) -> tuple[float, int]:
    """Returns the largest difference of logits with and without the kernel's stand-in, and how often it was called."""
    from megatron.core.models.common.embeddings import rope_utils

    from data_pipeline.loader.packing import merge
    from megatron_omr.convert.load import load_hf
    from megatron_omr.model import build
    from megatron_omr.model.spec import choose_backend
    from megatron_omr.model_config import ModelConfig
    from megatron_omr.oracle import draw_packs

    ranks, model, local = init_ranks(parallel), ModelConfig.from_hf(folder), choose_backend()
    pack = merge(draw_packs(model, 1)[0], multiple=parallel.sequence_multiple, pad_token_id=0)
    calls = []

    def kernel(x: Tensor, angles: Tensor, interleaved: bool) -> Tensor:
        assert angles.dtype == torch.float32 and angles.is_contiguous() and not interleaved
        assert x.dim() == 4 and angles.shape == (x.size(0), 1, 1, x.size(3))
        calls.append(x.shape)
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    rope_utils.fused_apply_rotary_pos_emb = kernel
    logits = []
    for fuses_rotary in (False, True):
        build.choose_backend = lambda *args, fuses=fuses_rotary, **kwargs: replace(local, fuses_rotary=fuses)
        chunks: Any = build.build_model(model, parallel, ranks, precision="fp32")
        load_hf(chunks, folder, model, ranks)
        with torch.no_grad():
            logits.append(chunks[0](pack))
    return float((logits[0] - logits[1]).abs().max()), len(calls)
