"""Videos become the token ids, grids and pixels of transformers' processor, and the positions of vLLM's rule."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.config import ImageConfig
from data_pipeline.encode.images import find_frames, normalise
from data_pipeline.errors import BadSample
from data_pipeline.loader.packing import merge
from data_pipeline.types import Sample
from tests.helpers.videos import ask_about, draw_png, make_video

IMAGE = ImageConfig(min_pixels=784)


def png(seed: int) -> bytes:
    return draw_png((84, 56), np.random.default_rng(seed))


CASES = {
    "even": ask_about([make_video(4)]),
    "odd": ask_about([make_video(5, fps=30.0, every=7)]),
    "one frame": ask_about([make_video(1)]),
    "irregular": ask_about([replace(make_video(4, fps=30.0), indices=(0, 3, 40, 41), num_source_frames=97)]),
    "two and images": ask_about(
        [make_video(3, size=(56, 56)), make_video(6, size=(112, 56), seed=1)], [png(1), png(2)]
    ),
    "resized": ask_about([make_video(3, size=(75, 101))]),
    "text": ask_about([]),
}


@pytest.fixture(scope="module")
def encoder(tiny_hf: Path) -> ChatEncoder:
    return ChatEncoder.from_hf(tiny_hf, IMAGE)


@pytest.fixture(scope="module", params=["tiny_hf", "tiny_qwen3"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def processed(folder: Path, encoder: ChatEncoder, sample: Sample) -> dict[str, torch.Tensor]:
    """Returns what transformers' processor makes of the prompt, given frames of our sizes."""
    from transformers import AutoProcessor
    from transformers.video_utils import VideoMetadata

    asked = encoder.engine_prompt(sample)
    text = encoder.limits.chat.render(sample.messages[:1], has_videos=bool(sample.videos))
    metadata = [
        VideoMetadata(**{name: value for name, value in of.items() if name != "do_sample_frames"})
        for _, of in asked.videos
    ]
    processor = AutoProcessor.from_pretrained(folder)
    return processor(
        text=[text],
        images=[Image.fromarray(image) for image in asked.images] or None,
        videos=[frames for frames, _ in asked.videos] or None,
        videos_kwargs=dict(
            video_metadata=metadata, do_sample_frames=False, do_resize=False, cap_pixels_per_frame=False
        )
        if metadata
        else {},
        return_tensors="pt",
    )


@pytest.mark.parametrize("name", CASES)
def test_ids_grids_and_pixels_are_those_of_transformers(folder: Path, name: str):
    sample, encoder = CASES[name], ChatEncoder.from_hf(folder, IMAGE)
    example, theirs = encoder.encode_prompt(sample), processed(folder, encoder, sample)
    assert torch.equal(example.input_ids, theirs["input_ids"][0])
    tokens = encoder.limits.tokenize_prompt(sample)
    assert tokens.num_tokens == len(example)
    for media, grid in ((tokens.images, "image_grid_thw"), (tokens.videos, "video_grid_thw")):
        assert [list(medium.grid) for medium in media] == theirs.get(grid, torch.empty(0, 3)).tolist()
    values = normalise(example.pixels, encoder.limits.patches)
    if example.frames is not None:
        first, second = find_frames(example.image_grid_thw, example.frames)
        values = normalise(example.pixels[first], encoder.limits.patches, example.pixels[second])
    by_medium = values.split(
        [grid.prod().item() for grid in map(np.array, (m.grid for _, m in tokens.media))]
    )
    for kind, ours in (("pixel_values", tokens.images), ("pixel_values_videos", tokens.videos)):
        own = [by_medium[i] for i, (_, m) in enumerate(tokens.media) if any(m is medium for medium in ours)]
        assert torch.equal(torch.cat(own) if own else torch.empty(0), theirs.get(kind, torch.empty(0)))


def test_positions_continue_after_the_times_of_a_video(encoder: ChatEncoder):
    """8 frames, 7 seconds from the first pair to the last: times reach further than rows and columns."""
    example = encoder.encode_prompt(ask_about([make_video(8, fps=1.0, every=1)]))
    places = (example.input_ids == encoder.video_token_id).nonzero().flatten()
    first, last = int(places[0]), int(places[-1])
    times, rows, columns = example.position_ids[:, first : last + 1] - first
    tokens = len(times) // 4
    assert times.unique_consecutive().tolist() == [0, 4, 8, 12]  # 2 seconds of 2 positions
    assert rows[:tokens].max() == 2 and columns[:tokens].max() == 1
    assert example.position_ids[:, last + 1].tolist() == [first + 13] * 3
    assert int(example.position_ids.max()) == first + 13 + len(example) - last - 2


def test_times_of_qwen3_vl_are_in_the_text(tiny_qwen3: Path):
    encoder = ChatEncoder.from_hf(tiny_qwen3, IMAGE)
    example = encoder.encode_prompt(CASES["irregular"])
    text = encoder.decode(example.input_ids.tolist())
    assert (
        "What <0.1 seconds><1.4 seconds> is" in text
    )  # the means of 0 and 3, and of 40 and 41 at 30 a second
    places = (example.input_ids == encoder.video_token_id).nonzero().flatten()
    times, *_ = example.position_ids[:, places]
    assert len(set(times.tolist())) == 2  # each pair has one, whatever its seconds


def test_packing_keeps_frames_beside_images(encoder: ChatEncoder):
    names = ("two and images", "text", "odd")
    examples = [encoder.encode(CASES[name]) for name in names]
    batch = merge(examples, pad_token_id=0, multiple=4, pack_multiple=64)
    assert batch.frames is not None
    assert batch.frames.tolist() == [1, 2, 1, 2, 2, 2, 1] + [2, 2, 1]
    rows = batch.image_grid_thw.prod(dim=1) * batch.frames
    assert int(rows.sum()) == len(batch.pixels)
    assert merge([examples[1]], pad_token_id=0).frames is None


@pytest.mark.parametrize(
    ("sample", "limits", "words"),
    [
        (CASES["odd"], dict(max_frames=4), "5 frames, more than image.max_frames=4"),
        (CASES["odd"], dict(video_pixels=784), "image.video_pixels=784 leave it 156 pixels"),
        (replace(CASES["even"], videos=(replace(make_video(2), fps=0.0),)), {}, "0.0 frames a second"),
    ],
)
def test_videos_outside_the_limits_are_refused(tiny_hf: Path, sample: Sample, limits: dict, words: str):
    encoder = ChatEncoder.from_hf(tiny_hf, replace(IMAGE, **limits))
    with pytest.raises(BadSample, match=words):
        encoder.limits.check(sample)


def test_the_least_area_of_images_binds_no_frames(tiny_hf: Path):
    """It may be above what a frame of a long video may have."""
    limits = replace(IMAGE, min_pixels=28 * 28 * 16, frame_pixels=28 * 28 * 16)
    (video,) = ChatEncoder.from_hf(tiny_hf, limits).limits.tokenize_prompt(ask_about([make_video(2)])).videos
    assert video.size == (56, 84)


def test_frames_are_scaled_to_the_pixels_of_the_whole_video(tiny_hf: Path):
    limits = replace(IMAGE, video_pixels=4 * 28 * 56)
    tokens = ChatEncoder.from_hf(tiny_hf, limits).limits.tokenize_prompt(ask_about([make_video(4)]))
    assert tokens.videos[0].size[0] * tokens.videos[0].size[1] <= 28 * 56


def test_a_broken_frame_and_frames_of_other_sizes_are_refused(encoder: ChatEncoder):
    good = make_video(3)
    torn = replace(good, frames=(*good.frames[:2], good.frames[2][:-300]))
    with pytest.raises(BadSample, match="a frame cannot decode") as caught:
        encoder.encode(ask_about([torn]))
    assert caught.value.reason == "video"
    buffer = io.BytesIO()
    Image.new("RGB", (84, 56)).save(buffer, "PNG")
    mixed = replace(good, frames=(*good.frames[:2], buffer.getvalue()))
    with pytest.raises(BadSample, match="frames of 2 sizes"):
        encoder.encode(ask_about([mixed]))


def test_too_many_videos_are_refused(tiny_hf: Path):
    encoder = ChatEncoder.from_hf(tiny_hf, IMAGE)
    limits = replace(encoder.limits, max_videos=1, videos_field="engine.max_videos")
    with pytest.raises(BadSample, match=r"2 videos, more than engine.max_videos=1"):
        limits.check(CASES["two and images"])


def test_the_mark_of_a_video_is_text_in_a_sample_without_videos(encoder: ChatEncoder):
    sample = ask_about([])
    turns = (replace(sample.messages[0], content="Is <video> a tag?"), sample.messages[1])
    example = encoder.encode(replace(sample, messages=turns))
    assert "<video>" in encoder.decode(example.input_ids.tolist())


def test_times_beyond_the_positions_of_the_model_are_refused(tiny_hf: Path):
    """A video of two days; vLLM looks rotations up in a table, which ends."""
    video = replace(make_video(4), indices=(0, 1, 2, 100_000), fps=0.5, num_source_frames=100_001)
    limits = ChatEncoder.from_hf(tiny_hf, IMAGE).limits
    with pytest.raises(
        BadSample, match="its times reach 200003 positions, more than max_position_embeddings="
    ):
        limits.check(ask_about([video]))
    half_hour = replace(make_video(2), indices=(0, 899), fps=1.0, num_source_frames=900)
    limits.check(ask_about([half_hour, half_hour]))
