"""Random samples with the lengths of the SFT recipe: most are short, a few are long."""

from __future__ import annotations

import torch

from data_pipeline.encode.positions import mrope_position_ids
from data_pipeline.types import Example
from megatron_omr.model_config import ModelConfig

MEDIAN, SPREAD = 180.0, 1.63
"""Of a log-normal distribution: median 180 tokens and mean 680, as the recipe's."""


def draw_samples(
    model: ModelConfig, *, num_tokens: int, longest: int, image_side: int, seed: int = 0
) -> list[Example]:
    """Returns samples of `num_tokens` tokens in all, each with one square image, or of text alone.

    Args:
        longest: tokens of the longest text.
        image_side: merged patches along each side of the image, 28 pixels each; 0 for no images.
    """
    generator = torch.Generator().manual_seed(seed)
    samples: list[Example] = []
    left = num_tokens
    while left > 0:
        length = MEDIAN * torch.exp(SPREAD * torch.randn((), generator=generator)).item()
        text = min(max(32, int(length)), longest)
        sample = _draw_sample(model, text, image_side, generator)
        if len(sample) > left or left - len(sample) < 32 + image_side**2:  # the last one fills the pack
            sample = _draw_sample(
                model, max(1, left - (image_side**2 + 2) * (image_side > 0)), image_side, generator
            )
        samples.append(sample)
        left -= len(sample)
    return samples


def _draw_sample(model: ModelConfig, num_text: int, side: int, generator: torch.Generator) -> Example:
    merge = model.vision.spatial_merge_size
    special = torch.tensor(model.vision_token_ids)
    text = torch.randint(model.vocab_size, (num_text,), generator=generator)
    text = text.masked_fill(torch.isin(text, special), max(model.vision_token_ids) + 1)
    grid = torch.tensor([[1, side * merge, side * merge]] if side else [], dtype=torch.int64).view(-1, 3)
    image = torch.full((side * side,), model.image_token_id)
    ends = torch.tensor([model.vision_start_token_id, model.vision_end_token_id])
    ids = torch.cat([ends[:1], image, ends[1:], text]) if side else text
    return Example(
        id="",
        input_ids=ids,
        loss_mask=torch.cat([torch.zeros(len(ids) - num_text), torch.ones(num_text)]),
        position_ids=mrope_position_ids(
            ids, grid, image_token_id=model.image_token_id, spatial_merge_size=merge
        ),
        pixels=torch.randint(
            256,
            (int(grid.prod(dim=1).sum()), model.family.patches.num_bytes),
            generator=generator,
            dtype=torch.uint8,
        ),
        image_grid_thw=grid,
    )
