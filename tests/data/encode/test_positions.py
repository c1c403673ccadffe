"""M-RoPE positions equal transformers' for random mixes of text and images."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.encode.positions import mrope_position_ids

TEXT, START, END = 100, 3, 4
IMAGE = 5

grids = st.tuples(st.just(1), st.integers(1, 6), st.integers(1, 6)).map(lambda g: (1, 2 * g[1], 2 * g[2]))
pieces = st.lists(st.one_of(st.integers(1, 9), grids), min_size=1, max_size=7)  # text lengths and images


@cache
def hf_model(folder: Path):
    from transformers import AutoConfig, Qwen2_5_VLModel

    with torch.device("meta"):
        return Qwen2_5_VLModel(AutoConfig.from_pretrained(folder))


def build(pieces: list) -> tuple[torch.Tensor, torch.Tensor]:
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, int):
            ids += [TEXT] * piece
        else:
            ids += [START, *[IMAGE] * (piece[1] * piece[2] // 4), END]
    images = [piece for piece in pieces if not isinstance(piece, int)]
    return torch.tensor(ids), torch.tensor(images, dtype=torch.int64).reshape(-1, 3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=pieces)
def test_equal_to_transformers(tiny_hf, pieces):
    ids, grid = build(pieces)
    kinds = (ids == IMAGE).int()[None]
    wanted, _ = hf_model(tiny_hf).get_rope_index(ids[None], kinds, image_grid_thw=grid)
    got = mrope_position_ids(ids, grid, image_token_id=IMAGE, spatial_merge_size=2)
    assert torch.equal(got, wanted[:, 0])


def test_positions_of_a_known_case():
    ids = torch.tensor([TEXT, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, TEXT])
    got = mrope_position_ids(ids, torch.tensor([[1, 4, 6]]), image_token_id=IMAGE, spatial_merge_size=2)
    assert got.tolist() == [[0, 1, 1, 1, 1, 1, 1, 4], [0, 1, 1, 1, 2, 2, 2, 4], [0, 1, 2, 3, 1, 2, 3, 4]]


def test_images_may_follow_each_other():
    ids = torch.tensor([IMAGE] * 5 + [TEXT])
    got = mrope_position_ids(
        ids, torch.tensor([[1, 4, 4], [1, 2, 2]]), image_token_id=IMAGE, spatial_merge_size=2
    )
    assert got[0].tolist() == [0, 0, 0, 0, 2, 3]


@pytest.mark.parametrize("ids", [[TEXT, IMAGE, IMAGE], [IMAGE, IMAGE, TEXT, IMAGE, IMAGE]])
def test_image_tokens_that_do_not_match_the_grids_are_refused(ids):
    with pytest.raises(ValueError, match="image"):
        mrope_position_ids(
            torch.tensor(ids), torch.tensor([[1, 4, 4]]), image_token_id=IMAGE, spatial_merge_size=2
        )
