"""A vLLM engine reads videos as the trainer and transformers do: token ids, times, positions and logprobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from vllm import RequestOutput

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.config import ImageConfig
from data_pipeline.encode.positions import mrope_position_ids
from data_pipeline.encode.prompt_sharing import respond
from data_pipeline.encode.video_times import seconds_per_pair
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.writer import write_shards
from megatron_omr.oracle import Oracle
from rl.config import EngineConfig, EvalConfig, SamplingConfig
from rl.prompts.stream import load_prompt_limits, read_prompts
from rl.rollout.engine import Engine
from rl.rollout.spans import Cut
from rl.types import Rollout
from tests.helpers.videos import ask_about, draw_png, make_video

pytestmark = [pytest.mark.heavy, pytest.mark.slow]

IMAGE = ImageConfig(min_pixels=784)
SAMPLING = SamplingConfig(n=2, max_tokens=8)
SAME = 1e-4
"""Of logprobs in float32: 4e-6 was seen, and 0.5 with other positions."""


def png(seed: int) -> bytes:
    return draw_png((84, 56), np.random.default_rng(seed))


SAMPLES = [
    ask_about([make_video(4)], name="even"),
    ask_about([make_video(5, fps=30.0, every=7)], name="odd"),
    ask_about(
        [replace(make_video(4, fps=30.0), indices=(0, 3, 40, 41), num_source_frames=97)], name="irregular"
    ),
    ask_about([make_video(8, fps=1.0, every=1)], name="times beyond rows and columns"),
    ask_about(
        [make_video(3, size=(56, 56)), make_video(6, size=(112, 56), seed=1)],
        [png(1), png(2)],
        name="two and images",
    ),
    ask_about([make_video(3, size=(75, 101))], name="resized"),
    ask_about([], name="text"),
]


class RecordingEngine(Engine):
    """Keeps the ids that vLLM has put in the place of a prompt's."""

    def __init__(self, config: EvalConfig) -> None:
        super().__init__(config)
        self.prompt_ids: list[list[int]] = []

    def _rollouts(self, output: RequestOutput, cuts: Sequence[Cut]) -> tuple[Rollout, ...]:
        self.prompt_ids.append(list(output.prompt_token_ids or ()))
        return super()._rollouts(output, cuts)


def eval_config(model: Path, shards: Path) -> EvalConfig:
    return EvalConfig(
        model=str(model),
        shards=str(shards),
        out="",
        image=IMAGE,
        engine=EngineConfig(
            precision="fp32",
            max_model_len=512,
            max_num_seqs=64,
            max_images=2,
            max_videos=2,
            cpu_kv_cache_gib=0.25,
        ),
        sampling=SAMPLING,
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clips") / "shards"
    write_shards(SAMPLES, out)
    return out


@pytest.fixture(scope="module", params=["tiny_hf", "tiny_qwen3"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def engine(folder: Path, shards: Path) -> Iterator[RecordingEngine]:
    with closing(RecordingEngine(eval_config(folder, shards))) as engine:
        yield engine


def test_ids_and_logprobs_are_those_of_trainer_and_transformers(
    engine: RecordingEngine, folder: Path, shards: Path
):
    prompts = [p for p, _ in read_prompts(shards, load_prompt_limits(eval_config(folder, shards)))]
    encoder, oracle, gaps = ChatEncoder.from_hf(folder, IMAGE), Oracle(str(folder)), {}
    for prompt in prompts:
        engine.prompt_ids.clear()
        (found,) = engine.generate([prompt], SAMPLING, 0)
        assert not found.fault, found
        asked = encoder.encode_prompt(read_sample(shards, prompt.ref))
        assert engine.prompt_ids == [asked.input_ids.tolist()], prompt.ref.id
        assert prompt.num_tokens == len(asked)
        for rollout in found.rollouts:
            with torch.no_grad():
                logits = oracle._logits(respond(asked, rollout.token_ids, id=""))
            count, ids = len(rollout.token_ids), torch.from_numpy(rollout.token_ids).long()
            logprobs = logits[-count - 1 : -1].log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
            gap = float((logprobs - torch.from_numpy(rollout.logprobs)).abs().max())
            gaps[prompt.ref.id] = max(gap, gaps.get(prompt.ref.id, 0.0))
    assert len(gaps) == len(SAMPLES) and max(gaps.values()) < SAME, gaps


def test_a_video_over_the_engines_limit_is_a_fault(tiny_hf: Path, tmp_path: Path):
    video = make_video(1)
    write_shards([ask_about([video, video, video])], tmp_path / "s")
    config = eval_config(tiny_hf, tmp_path / "s")
    ((_, error),) = read_prompts(tmp_path / "s", load_prompt_limits(config))
    assert str(error) == "video: 3 videos, more than engine.max_videos=2"


@pytest.mark.parametrize("fps", [0.3, 0.6, 1.2, 2.4, 3.7, 23.976, 25.0, 30.0])
def test_positions_follow_vllm_in_every_rate(fps: float):
    """Also where a single-precision product would round to another time."""
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Model

    for num_frames in (2, 7, 40, 81):
        video = make_video(num_frames, size=(28, 28), fps=fps, every=3)
        seconds = torch.tensor([seconds_per_pair(video)])  # as transformers' processor returns it
        pairs = -(-num_frames // 2)
        grid = torch.tensor([[pairs, 2, 4]])
        ids = torch.tensor([9] * 5 + [1] * (2 * pairs) + [9] * 4)
        feature: Any = SimpleNamespace(
            modality="video",
            mm_position=SimpleNamespace(offset=5),
            data={
                "video_grid_thw": SimpleNamespace(data=grid[0]),
                "second_per_grid_ts": SimpleNamespace(data=seconds[0]),
            },
        )
        config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=2))
        model: Any = SimpleNamespace(config=config)
        model.iter_mm_grid_thw = lambda features, model=model: Model.iter_mm_grid_thw(model, features)
        wanted, _ = Model.get_mrope_input_positions(model, ids.tolist(), [feature])
        step = float(np.float32(seconds_per_pair(video))) * 2
        got = mrope_position_ids(
            ids, grid, image_token_id=0, spatial_merge_size=2, video_token_id=1, steps=[step]
        )
        assert torch.equal(got, wanted), (fps, num_frames)
