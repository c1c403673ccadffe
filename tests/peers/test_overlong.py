"""Our penalty of length equals that of verl's DAPO reward manager."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.protocol import DataProto
from verl.workers.reward_manager.dapo import DAPORewardManager

from rl.rewards.functions import overlong
from tests.helpers.rewards import make_input

MAX_TOKENS, PROMPT = 20, 2


def ask_verl(lengths: list[int], buffer: int) -> list[float]:
    """Returns the rewards of verl's manager for right answers (1) of these lengths."""
    columns = max(*lengths, MAX_TOKENS)
    mask_BL = (torch.arange(columns) < torch.tensor(lengths)[:, None]).long()
    ids = {"prompts": torch.zeros(len(lengths), PROMPT).long(), "responses": torch.zeros_like(mask_BL)}
    rows = ids | {"attention_mask": torch.cat([torch.ones_like(ids["prompts"]), mask_BL], dim=1)}
    names = {"reward_model": {"ground_truth": "7"}, "data_source": "digits"}
    manager = DAPORewardManager(
        tokenizer=SimpleNamespace(decode=lambda ids, **_: "7", eos_token="<eos>"),
        num_examine=0,
        compute_score=lambda **_: 1.0,
        max_resp_len=MAX_TOKENS,
        overlong_buffer_cfg=OmegaConf.create(
            {"enable": True, "len": buffer, "penalty_factor": 1.0, "log": False}
        ),
    )
    data = DataProto.from_single_dict(
        rows | {name: np.array([value] * len(lengths), dtype=object) for name, value in names.items()}
    )
    return manager(data).sum(1).tolist()


@pytest.mark.parametrize("buffer", [1, 4, 8, 19])
def test_equals_verls_at_every_length(buffer):
    lengths = list(range(1, MAX_TOKENS + 1))
    ours = [overlong(make_input(response_len=n, max_tokens=MAX_TOKENS), buffer=buffer) for n in lengths]
    assert [1 + penalty for penalty in ours] == pytest.approx(ask_verl(lengths, buffer), rel=1e-6, abs=1e-6)
    assert ours[-1] == -1.0 and ours[0] == 0.0


def test_beyond_the_limit_verls_falls_on_and_ours_stays_at_the_papers_minus_1():
    """No engine writes so much: both are told the same limit."""
    assert ask_verl([22], 4) == pytest.approx([1 - 6 / 4])
    assert overlong(make_input(response_len=22, max_tokens=MAX_TOKENS), buffer=4) == -1.0
