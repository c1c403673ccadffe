"""Which frames are chosen from a video, and which numbers of them are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from data_pipeline.encode.video_times import Timeline, check_video, choose_frames, seconds_per_pair
from data_pipeline.errors import BadSample
from tests.helpers.videos import make_video


@pytest.mark.parametrize(
    ("num_frames", "source_fps", "fps", "most", "chosen"),
    [
        (300, 30.0, 1.0, 100, list(range(0, 300, 30))),
        (300, 30.0, 2.0, 4, [0, 75, 150, 225]),  # evenly over all of it, not its first seconds
        (5, 1.0, 4.0, 100, [0, 1, 2, 3, 4]),  # there are no more
        (10, 25.0, 1.0, 100, [0]),
        (100, 29.97, 1.0, 100, [0, 33, 66]),
    ],
)
def test_frames_are_spread_evenly(num_frames, source_fps, fps, most, chosen):
    assert choose_frames(num_frames, source_fps, fps=fps, max_frames=most) == chosen


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(indices=(0, 2, 4)), "4 frames with 3 numbers"),
        (dict(frames=(), indices=()), "0 frames"),
        (dict(indices=(0, 4, 2, 6)), "must ascend"),
        (dict(indices=(-1, 2, 4, 6)), "must ascend"),
        (dict(indices=(0, 2, 4, 8)), "below num_source_frames=8"),
        (dict(fps=0.0), "0.0 frames a second"),
        (dict(fps=float("inf")), "inf frames a second"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(change, words):
    with pytest.raises(BadSample, match=words) as caught:
        check_video(replace(make_video(4), **change))
    assert caught.value.reason == "video"


def test_pairs_of_frames_have_the_mean_distance():
    assert seconds_per_pair(make_video(6, fps=4.0, every=2)) == 1.0
    assert make_video(3, fps=4.0, every=2).seconds == (0.0, 0.5, 1.0)


@pytest.mark.parametrize("change", [dict(fps=1e-9), dict(fps=1e9), dict(num_source_frames=1 << 40)])
def test_rates_and_lengths_that_no_video_has_are_refused(change: dict):
    with pytest.raises(BadSample, match="frames a second, outside|more than 2147483648 frames"):
        check_video(replace(make_video(2), **change))


def test_rates_of_slow_videos_are_kept():
    assert Timeline.of_times([0.0, 3_600.0, 7_200.0]).fps == pytest.approx(1 / 3_600, rel=1e-5)
