"""Encodes messages, images and videos as token ids, loss mask, positions and patches, by a model folder's template.

A response is encoded apart from its prompt, as an engine does, so that a response of a corpus and a sampled one have
the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from data_pipeline.encode import images as vision
from data_pipeline.encode.config import ImageConfig, LossOn
from data_pipeline.encode.limits import ModelLimits, PromptTokens
from data_pipeline.encode.media import Grid, Medium, expand
from data_pipeline.encode.positions import mrope_position_ids
from data_pipeline.encode.prompt_sharing import respond
from data_pipeline.encode.video_times import PAIR
from data_pipeline.errors import BadSample
from data_pipeline.types import Example, Sample, Video


class EnginePrompt(NamedTuple):
    """A prompt for an engine."""

    ids: list[int]  # one token for each image and video
    images: list[np.ndarray]  # [H, W, 3] uint8 each, in final size
    videos: list[tuple[np.ndarray, dict[str, object]]]  # frames [F, H, W, 3] uint8 in final size, their times

    @property
    def media(self) -> dict[str, list]:
        """The images and videos in vLLM's form; those that there are."""
        images = [Image.fromarray(image) for image in self.images]
        return {kind: media for kind, media in (("image", images), ("video", self.videos)) if media}


class ChatEncoder:
    """Encodes samples within the limits of one model. Safe to use from several threads."""

    def __init__(self, limits: ModelLimits) -> None:
        self.limits, chat = limits, limits.chat
        self.image_token_id, self.video_token_id = chat.image_token_id, chat.video_token_id
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

    def engine_prompt(self, sample: Sample) -> EnginePrompt:
        """Returns the prompt as an engine takes it, with one token for each image and video."""
        tokens = self.limits.tokenize_prompt(sample)
        return EnginePrompt(
            ids=tokens.ids,
            images=self._load_images(sample, tokens),
            videos=[
                (np.stack(self._load_frames(video, medium)), _describe(video))
                for video, medium in zip(sample.videos, tokens.videos, strict=True)
            ],
        )

    def encode_prompt(self, sample: Sample) -> Example:
        """Encodes the conversation up to the assistant's response; nothing is to be learned. Raises as encode()."""
        return self._encode_prompt(sample, self.limits.tokenize_prompt(sample))

    def _encode_prompt(self, sample: Sample, tokens: PromptTokens) -> Example:
        patches = self.limits.patches
        images = iter(self._load_images(sample, tokens))
        videos = zip(sample.videos, tokens.videos, strict=True)
        groups, blocks, steps = list[list[np.ndarray]](), list[Grid](), list[float]()
        for place, medium in tokens.media:
            if tokens.ids[place] == self.image_token_id:
                groups.append([image := next(images)])
                blocks.append((1, image.shape[0] // patches.side, image.shape[1] // patches.side))
            else:
                frames = self._load_frames(*next(videos))
                groups += [frames[first : first + PAIR] for first in range(0, len(frames), PAIR)]
                blocks += medium.blocks
            steps += [medium.step] * len(medium.blocks)
        pixels, grids, frame_counts = vision.cut_groups(groups, patches)
        places = [(place, medium.token_ids) for place, medium in tokens.media]
        input_ids = torch.from_numpy(expand(np.array(tokens.ids), places))
        learned = np.array(tokens.learned or [False] * len(tokens.ids))
        learned = expand(learned, [(place, np.zeros(len(ids), bool)) for place, ids in places])
        return Example(
            id=sample.id,
            input_ids=input_ids,
            loss_mask=torch.from_numpy(learned.astype(np.float32)),
            position_ids=mrope_position_ids(
                input_ids,
                torch.tensor(blocks, dtype=torch.int64).view(-1, 3),
                image_token_id=self.image_token_id,
                spatial_merge_size=patches.merge,
                video_token_id=self.video_token_id,
                steps=steps,
            ),
            pixels=pixels,
            image_grid_thw=grids,
            frames=frame_counts,
        )

    def _load_images(self, sample: Sample, tokens: PromptTokens) -> list[np.ndarray]:
        factor = self.limits.patches.token_side
        images = [vision.load_pixels(data, self.limits.image, factor) for data in sample.images]
        for image, medium in zip(images, tokens.images, strict=True):
            height, width, _ = image.shape
            if sorted((width, height)) != sorted(medium.size):  # its orientation may turn it
                detail = (
                    f"it becomes {(width, height)} pixels, by its header {medium.size}; convert it to PNG"
                )
                raise BadSample("image", detail)
        return images

    def _load_frames(self, video: Video, medium: Medium) -> list[np.ndarray]:
        limits, factor = self.limits.image.of_frames(len(video.frames)), self.limits.patches.token_side
        try:
            frames = [vision.load_pixels(data, limits, factor) for data in video.frames]
        except BadSample as error:
            raise BadSample("video", f"a frame {error.args[1]}") from error
        for number, frame in enumerate(frames):
            if frame.shape[1::-1] != medium.size:
                detail = f"frame {number} becomes {frame.shape[1::-1]} pixels, the video {medium.size}; write it again"
                raise BadSample("video", detail)
        return frames


def _describe(video: Video) -> dict[str, object]:
    """Returns what transformers and vLLM must know of a video to compute its times as we do."""
    return {
        "fps": video.fps,
        "duration": video.num_source_frames / video.fps,
        "total_num_frames": video.num_source_frames,
        "frames_indices": list(video.indices),
        "video_backend": "pyav",
        "do_sample_frames": False,  # they are chosen already
    }
