"""Encodes messages and images as token ids, loss mask, positions and patches, as a model folder's template writes them.

A response is encoded apart from its prompt, as an engine does, so that a response of a corpus and a sampled one have
the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data_pipeline.encode import images as vision
from data_pipeline.encode.config import ImageConfig, LossOn
from data_pipeline.encode.limits import ModelLimits, PromptTokens
from data_pipeline.encode.positions import mrope_position_ids
from data_pipeline.encode.prompt_sharing import respond
from data_pipeline.errors import BadSample
from data_pipeline.types import Example, Sample


class ChatEncoder:
    """Encodes samples within the limits of one model. Safe to use from several threads."""

    def __init__(self, limits: ModelLimits) -> None:
        self.limits, chat = limits, limits.chat
        self.image_token_id = chat.image_token_id
        self.stop_token_id = chat.stop_token_id
        self.pad_token_id = chat.pad_token_id
        self.banned_token_ids = chat.banned_token_ids
        self.decode = chat.decode

    @classmethod
    def from_hf(cls, folder: str | Path, image: ImageConfig) -> ChatEncoder:
        """Returns an encoder of samples of any length for a model's folder; raises as ModelLimits.from_hf."""
        return cls(ModelLimits.from_hf(folder, image))

    def encode(self, sample: Sample, loss_on: LossOn = "all") -> Example:
        """Encodes the conversation up to the end of its last turn, the assistant's.

        Args:
            loss_on: learn all turns of the assistant, or the last alone. Of each turn its text is learned, and
                the token that ends it.

        Raises:
            BadSample: the limits refuse the sample, or an image cannot be decoded.
        """
        tokens, response_ids = self.limits.tokenize(sample, loss_on)
        return respond(self._encode_prompt(sample, tokens), response_ids, id=sample.id)

    def check_response(self, token_ids: Sequence[int] | np.ndarray) -> None:
        """Raises ValueError when a sampled response holds tokens that only prompts may hold."""
        banned = np.intersect1d(token_ids, self.banned_token_ids)
        if banned.size:
            raise ValueError(
                f"the response holds the special tokens {banned.tolist()}; ban them while sampling"
            )

    def engine_prompt(self, sample: Sample) -> tuple[list[int], list[np.ndarray]]:
        """Returns the prompt's ids with one token per image, and the images [H, W, 3] uint8 in final size."""
        tokens = self.limits.tokenize_prompt(sample)
        return tokens.ids, self._load_images(sample, tokens)

    def encode_prompt(self, sample: Sample) -> Example:
        """Encodes the conversation up to the assistant's response; nothing is to be learned. Raises as encode()."""
        return self._encode_prompt(sample, self.limits.tokenize_prompt(sample))

    def _encode_prompt(self, sample: Sample, tokens: PromptTokens) -> Example:
        patches = self.limits.patches
        pixels, grids = vision.cut_patches(self._load_images(sample, tokens), patches)
        ids = np.array(tokens.ids)
        repeats = np.ones_like(ids)
        repeats[ids == self.image_token_id] = grids.numpy().prod(axis=1) // patches.merge**2
        input_ids = torch.from_numpy(ids.repeat(repeats))
        learned = np.array(tokens.learned or [False] * len(ids)).repeat(repeats)
        return Example(
            id=sample.id,
            input_ids=input_ids,
            loss_mask=torch.from_numpy(learned.astype(np.float32)),
            position_ids=mrope_position_ids(
                input_ids, grids, image_token_id=self.image_token_id, spatial_merge_size=patches.merge
            ),
            pixels=pixels,
            image_grid_thw=grids,
        )

    def _load_images(self, sample: Sample, tokens: PromptTokens) -> list[np.ndarray]:
        factor = self.limits.patches.token_side
        images = [vision.load_pixels(data, self.limits.image, factor) for data in sample.images]
        for image, size in zip(images, tokens.image_sizes, strict=True):
            height, width, _ = image.shape
            if sorted((width, height)) != sorted(size):  # its orientation may turn it
                detail = f"it becomes {(width, height)} pixels, by its header {size}; convert it to PNG"
                raise BadSample("image", detail)
        return images
