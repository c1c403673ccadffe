"""Splits a prompt and its responses so that a model computes the prompt once (pure).

The *root* is the prompt, with its images, without its last few tokens. A *branch* is those tokens and one response.
Each branch attends to the whole root and to itself, exactly as with its own copy of the prompt. The prompt's last
token belongs to the branch because it predicts the response's first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from data_pipeline.types import Example, Tree


def respond(prompt: Example, response: Sequence[int] | np.ndarray, *, id: str) -> Example:
    """Returns the prompt followed by a response, of which every token is to be learned; the prompt's mask stays."""
    return _continue(prompt, 0, response, id)


def share_prompt(
    prompt: Example,
    responses: Mapping[str, Sequence[int] | np.ndarray],
    *,
    image_token_id: int,
    video_token_id: int = -1,
    multiple: int = 1,
) -> Tree | None:
    """Returns the responses (by their ids) as branches of one tree.

    Args:
        multiple: the root's length becomes a multiple of it, so that no pads come between root and branch.

    Returns:
        None where the prompt cannot be cut: it is too short, or an image or a video is among its last `multiple`
        tokens.
    """
    cut = (len(prompt) - 1) // multiple * multiple
    if cut == 0 or bool(
        torch.isin(prompt.input_ids[cut:], torch.tensor([image_token_id, video_token_id])).any()
    ):
        return None
    ids, positions = prompt.input_ids[:cut], prompt.position_ids[:, :cut]
    root = replace(prompt, id="", input_ids=ids, loss_mask=torch.zeros(cut), position_ids=positions)
    return Tree(root=root, branches=tuple(_continue(prompt, cut, ids, id) for id, ids in responses.items()))


def _continue(prompt: Example, cut: int, response: Sequence[int] | np.ndarray, id: str) -> Example:
    """Returns the prompt from token `cut` on, then the response, whose positions continue after the largest."""
    count = len(response)
    input_ids = np.concatenate([prompt.input_ids.numpy()[cut:], response], dtype=np.int64)
    loss_mask = np.concatenate([prompt.loss_mask.numpy()[cut:], np.ones(count, np.float32)])
    positions = prompt.position_ids.numpy()
    following = np.arange(count) + (positions.max() + 1)
    images = slice(None) if cut == 0 else slice(0)
    return Example(
        id=id,
        input_ids=torch.from_numpy(input_ids),
        loss_mask=torch.from_numpy(loss_mask),
        position_ids=torch.from_numpy(np.concatenate([positions[:, cut:], [following] * 3], axis=1)),
        pixels=prompt.pixels[images],
        image_grid_thw=prompt.image_grid_thw[images],
        frames=None if prompt.frames is None else prompt.frames[images],
    )
