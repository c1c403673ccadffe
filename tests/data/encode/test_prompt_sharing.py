"""A root and a branch together are the whole example; packs record which root each branch continues."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.encode.positions import mrope_position_ids
from data_pipeline.encode.prompt_sharing import respond, share_prompt
from data_pipeline.loader.packing import merge, pack
from data_pipeline.types import Example

IMAGE = 9


def make_prompt(before: int, image: tuple[int, int] | None, after: int) -> Example:
    """A prompt of text, an image of `rows` x `columns` merged patches, and text."""
    rows, cols = image or (0, 0)
    ids = torch.cat([torch.full((before,), 1), torch.full((rows * cols,), IMAGE), torch.full((after,), 2)])
    grids = torch.tensor([[1, 2 * rows, 2 * cols]] if image else [], dtype=torch.int64).reshape(-1, 3)
    return Example(
        id="prompt",
        input_ids=ids,
        loss_mask=torch.zeros(len(ids)),
        position_ids=mrope_position_ids(ids, grids, image_token_id=IMAGE, spatial_merge_size=2),
        pixels=torch.randint(256, (4 * rows * cols, 588)).to(torch.uint8),
        image_grid_thw=grids,
    )


response_lists = st.lists(st.lists(st.integers(20, 99), min_size=1, max_size=6), min_size=1, max_size=5)


@settings(deadline=None)
@given(
    before=st.integers(1, 9),
    image=st.one_of(st.none(), st.tuples(st.integers(1, 3), st.integers(1, 3))),
    after=st.integers(0, 9),
    responses=response_lists,
    multiple=st.sampled_from([1, 2, 4]),
)
def test_root_and_branch_together_equal_the_whole_example(before, image, after, responses, multiple):
    prompt = make_prompt(before, image, after)
    named = {str(i): ids for i, ids in enumerate(responses)}
    tree = share_prompt(prompt, named, image_token_id=IMAGE, multiple=multiple)
    if tree is None:
        cut = (len(prompt) - 1) // multiple * multiple
        assert cut == 0 or IMAGE in prompt.input_ids[cut:]
        return
    assert len(tree.root) % multiple == 0 and not tree.root.loss_mask.any()
    for branch, (name, ids) in zip(tree.branches, named.items(), strict=True):
        whole = respond(prompt, ids, id=name)
        text = torch.cat([prompt.input_ids, torch.tensor(ids)])
        wanted = mrope_position_ids(text, prompt.image_grid_thw, image_token_id=IMAGE, spatial_merge_size=2)
        assert torch.equal(whole.position_ids, wanted)
        assert branch.id == whole.id == name
        for field in ("input_ids", "loss_mask", "position_ids"):
            parts = [getattr(tree.root, field), getattr(branch, field)]
            assert torch.equal(torch.cat(parts, dim=-1), getattr(whole, field)), field
        assert torch.equal(tree.root.pixels, whole.pixels) and not len(branch.pixels)
        assert branch.input_ids[branch.loss_mask == 1].tolist() == ids
        assert branch.loss_mask[0] == 0, "the token before the first of the response predicts it"


def test_a_pack_records_the_parent_of_each_branch():
    two = share_prompt(make_prompt(4, (1, 2), 3), {"a": [20], "b": [21, 22]}, image_token_id=IMAGE)
    one = share_prompt(make_prompt(5, None, 3), {"c": [23]}, image_token_id=IMAGE)
    assert two is not None and one is not None
    plain = respond(make_prompt(3, None, 2), [24], id="d")
    batch = merge([two, plain, one], pad_token_id=0)
    assert batch.ids == ("", "a", "b", "d", "", "c")
    assert batch.parents is not None and batch.parents.tolist() == [-1, 0, 0, -1, -1, 4]
    lengths = [len(e) for e in (*two.examples, plain, *one.examples)]
    assert batch.cu_seqlens.diff().tolist() == lengths
    assert batch.prefix_lens().tolist() == [0, lengths[0], lengths[0], 0, 0, lengths[4]]
    assert merge([plain], pad_token_id=0).parents is None
    assert (sum(lengths[:3]), lengths[3], sum(lengths[4:])) == (13, 6, 9)
    packs = pack([two, plain, one], pack_length=15, pad_token_id=0)
    assert [batch.ids for batch in packs] == [("", "a", "b"), ("d", "", "c")]


def test_a_root_that_needs_padding_is_refused():
    tree = share_prompt(make_prompt(4, None, 2), {"a": [20]}, image_token_id=IMAGE)
    assert tree is not None and len(tree.root) == 5
    with pytest.raises(ValueError, match="root of 'a' has 5 tokens, no multiple of 2"):
        merge([tree], multiple=2, pad_token_id=0)
