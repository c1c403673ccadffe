"""What a model and the settings of its trainer or engine refuse: the one check of samples, from texts and headers.

Import, `omr data validate`, SFT, RL and evaluation use it. No pixel is decoded here; a broken image is found later,
where it is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

from data_pipeline.encode import images as vision
from data_pipeline.encode.chat_format import ChatFormat
from data_pipeline.encode.config import ImageConfig, LimitsConfig, LossOn, PatchFormat
from data_pipeline.encode.image_header import image_size
from data_pipeline.encode.media import Medium, order_media, place_image, place_video
from data_pipeline.encode.processor import find_patches, read_max_positions, read_tokens_per_second
from data_pipeline.encode.turns import check_text, check_turns, split_response
from data_pipeline.encode.video_times import check_video
from data_pipeline.errors import BadSample
from data_pipeline.types import Message, Sample, Video


@dataclass(frozen=True, kw_only=True)
class PromptTokens:
    """A prompt's tokens, and its images and videos."""

    ids: list[int]  # one for each image and video
    learned: list[bool] | None  # of each id; None: nothing is learned
    images: list[Medium]
    videos: list[Medium]
    media: list[tuple[int, Medium]]  # of both, with their places among the ids, in order
    num_tokens: int  # with all tokens of the images and videos

    @property
    def patches(self) -> tuple[int, ...]:
        """The patches of each image, and each pair of a video's frames."""
        return tuple(count for _, medium in self.media for count in medium.patches)


@dataclass(frozen=True, kw_only=True)
class ModelLimits:
    """Checks and tokenizes samples against a model's chat format and the limits of its trainer or engine."""

    chat: ChatFormat
    image: ImageConfig
    patches: PatchFormat
    max_tokens: int | None = None  # of a prompt, or a prompt with its response; None: any number
    max_images: int | None = None  # of a sample; None: any number
    max_videos: int | None = None
    tokens_per_second: float = 1.0  # positions of a second of a video, where the text does not say times
    max_positions: int | None = None  # of the times of a sample's videos; None: any number
    tokens_field: str = "max_tokens"  # names of the options that set them, for messages
    images_field: str = "max_images"
    videos_field: str = "max_videos"

    @classmethod
    def from_hf(
        cls,
        folder: str | Path,
        image: ImageConfig,
        *,
        max_tokens: int | None = None,
        max_images: int | None = None,
        max_videos: int | None = None,
        tokens_field: str = "max_tokens",
        images_field: str = "max_images",
        videos_field: str = "max_videos",
    ) -> Self:
        """Returns the limits of a model's folder with these settings.

        Raises:
            ValueError: with its template or image processor, trainer and engine would see different prompts.
        """
        patches = find_patches(Path(folder), image)
        return cls(
            chat=ChatFormat.from_hf(folder),
            image=image,
            patches=patches,
            max_tokens=max_tokens,
            max_images=max_images,
            max_videos=max_videos,
            tokens_per_second=read_tokens_per_second(Path(folder)),
            max_positions=read_max_positions(Path(folder)),
            videos_field=videos_field,
            tokens_field=tokens_field,
            images_field=images_field,
        )

    def check(self, sample: Sample) -> None:
        """Raises BadSample where the sample cannot be learned from, or asked if it has no response."""
        if split_response(sample.messages)[1] is None:
            self.tokenize_prompt(sample)
        else:
            self.tokenize(sample)

    def tokenize(self, sample: Sample, loss_on: LossOn = "all") -> tuple[PromptTokens, list[int]]:
        """Returns the tokens of a sample's prompt and of the response that ends it.

        A response is tokenized apart from its prompt, as an engine does.

        Raises:
            BadSample: no response at its end, or as tokenize_prompt, of which the response is part.
        """
        prompt, response = split_response(sample.messages)
        if response is None:
            raise BadSample("text", "the last message is not the assistant's: nothing to learn from")
        images, videos = self._check(sample, sample.messages)
        tokens = self._tokenize_prompt(prompt, images, videos, learn=loss_on == "all")
        response_ids = [*self.chat.tokenize(response.content), self.chat.stop_token_id]
        self._check_length(tokens.num_tokens + len(response_ids))
        return tokens, response_ids

    def tokenize_prompt(self, sample: Sample) -> PromptTokens:
        """Returns the tokens of a sample's turns without the response at its end.

        Raises:
            BadSample: turns that check_turns refuses, special tokens in a text, an image or a video that has no size
                within the limits, or too many tokens, images or videos.
        """
        prompt, _ = split_response(sample.messages)
        images, videos = self._check(sample, prompt)
        return self._tokenize_prompt(prompt, images, videos, learn=False)

    def _check(self, sample: Sample, messages: Sequence[Message]) -> tuple[list[Medium], list[Medium]]:
        """Checks all that needs no tokens of the text; returns the images and the videos."""
        check_turns(messages, len(sample.images), len(sample.videos))
        for message in messages:
            check_text(message.content, self.chat.special)
        if self.max_images is not None and len(sample.images) > self.max_images:
            detail = f"{len(sample.images)} images, more than {self.images_field}={self.max_images}"
            raise BadSample("image", detail)
        if self.max_videos is not None and len(sample.videos) > self.max_videos:
            detail = f"{len(sample.videos)} videos, more than {self.videos_field}={self.max_videos}"
            raise BadSample("video", detail)
        images = [place_image(self._final_size(data), self.chat, self.patches) for data in sample.images]
        videos = [self._place_video(video) for video in sample.videos]
        reach = sum(video.reach for video in videos)
        if self.max_positions is not None and reach > self.max_positions:
            detail = (
                f"its times reach {reach} positions, more than max_position_embeddings={self.max_positions}"
            )
            raise BadSample("video", f"{detail} of the model; is its fps right? cut it")
        if self.max_tokens is not None and sum(len(m.content) for m in messages) > self.max_tokens:
            at_least = self.chat.count_at_least("".join(message.content for message in messages))
            self._check_length(at_least + sum(len(m.token_ids) for m in images + videos), "at least ")
        return images, videos

    def _tokenize_prompt(
        self, prompt: Sequence[Message], images: list[Medium], videos: list[Medium], *, learn: bool
    ) -> PromptTokens:
        text = self.chat.render(prompt, has_videos=bool(videos))
        ids = self.chat.tokenize(text)
        num_tokens = len(ids) + sum(len(medium.token_ids) - 1 for medium in images + videos)
        self._check_length(num_tokens)
        learns = learn and any(message.role == "assistant" for message in prompt)
        learned = self.chat.mark_responses(text, prompt) if learns else None
        media = list(order_media(ids, images, videos, self.chat))
        return PromptTokens(
            ids=ids, learned=learned, images=images, videos=videos, media=media, num_tokens=num_tokens
        )

    def _place_video(self, video: Video) -> Medium:
        if self.chat.video_token_id < 0:
            raise BadSample("video", "the model's tokenizer has no token for videos; give another model")
        check_video(video)
        if len(video.frames) > self.image.max_frames:
            detail = f"{len(video.frames)} frames, more than image.max_frames={self.image.max_frames}"
            raise BadSample("video", f"{detail}; import it with fewer, or raise that")
        sizes = sorted(set(map(image_size, video.frames)))
        if len(sizes) > 1:
            raise BadSample("video", f"frames of {len(sizes)} sizes, such as {sizes[0]} and {sizes[1]}")
        limits = self.image.of_frames(len(video.frames))
        try:
            size = vision.final_size(*sizes[0], limits, self.patches.token_side)
        except BadSample as error:
            detail = (
                f"a frame of {len(video.frames)}: {error.args[1]}; image.frame_pixels={self.image.frame_pixels} and "
                f"image.video_pixels={self.image.video_pixels} leave it {limits.max_pixels} pixels"
            )
            raise BadSample("video", detail) from error
        return place_video(video, size, self.chat, self.patches, self.tokens_per_second)

    def _final_size(self, data: bytes) -> tuple[int, int]:
        width, height = image_size(data)
        if width * height > vision.MAX_SOURCE_PIXELS:
            raise BadSample("image", f"{width} x {height} pixels, more than {vision.MAX_SOURCE_PIXELS}")
        return vision.final_size(width, height, self.image, self.patches.token_side)

    def _check_length(self, num_tokens: int, at_least: str = "") -> None:
        if self.max_tokens is not None and num_tokens > self.max_tokens:
            detail = f"{at_least}{num_tokens} tokens, more than {self.tokens_field}={self.max_tokens}"
            raise BadSample("too_long", detail)


@lru_cache(maxsize=1)
def load_limits(config: LimitsConfig) -> ModelLimits | None:
    """Returns the limits of the configured model, None where none is configured; raises as ModelLimits.from_hf."""
    if not config.model:
        return None
    return ModelLimits.from_hf(
        config.model,
        config.image,
        max_tokens=config.max_tokens,
        max_images=config.max_images,
        max_videos=config.max_videos,
    )
