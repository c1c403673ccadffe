"""The demo's corpus: splits share no scan, answers are right, the content is pinned."""

from __future__ import annotations

import hashlib
import io
import re
from itertools import groupby

import numpy as np
import pytest
from PIL import Image

from data_pipeline.encode.video_times import check_video
from data_pipeline.sources.digits import (
    GRIDS,
    QUESTIONS,
    SPLITS,
    TURNS,
    digit_clips,
    digit_lines,
    digit_samples,
    digit_texts,
    scan_splits,
)
from data_pipeline.types import IMAGE_MARK, SYSTEM_PROMPT, VIDEO_MARK, Sample


def test_splits_are_disjoint_complete_and_stratified():
    from sklearn.datasets import load_digits

    splits = scan_splits()
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(1_797))
    labels = load_digits().target
    for split in SPLITS:
        shares = np.bincount(labels[splits[split]], minlength=10) / len(splits[split])
        assert np.allclose(shares, 0.1, atol=0.02)


@pytest.mark.parametrize("split", SPLITS)
def test_samples_show_only_scans_of_their_split(split):
    from sklearn.datasets import load_digits

    own, labels = set(scan_splits()[split].tolist()), load_digits().target
    for sample in digit_samples(split, 100, 5):
        scans = _numbers(sample, "scans")
        assert set(scans) <= own
        assert _numbers(sample, "digits") == [int(labels[scan]) for scan in scans]


def test_answers_are_right_and_unambiguous():
    kinds = set()
    for sample in digit_samples("train", 600, 1):
        question, target = sample.messages[1].content, sample.messages[2].content
        digits, kind = _numbers(sample, "digits"), str(sample.metadata["kind"])
        kinds.add(kind)
        assert int(sample.answer) == _oracle(kind, question, digits), (question, digits)
        reading = " ".join(map(str, digits))
        assert re.fullmatch(rf"<think>{reading}\. .+</think><answer>{sample.answer}</answer>", target)
        assert sample.messages[0].content == SYSTEM_PROMPT
        assert question.count(IMAGE_MARK) == len(sample.images) == 1
    assert kinds == set(TURNS) == set(QUESTIONS)


def test_images_hold_the_digits_in_the_stated_layout():
    layouts = set()
    for sample in digit_samples("validation", 120, 2):
        image = Image.open(io.BytesIO(sample.images[0]))
        rows, columns = map(int, str(sample.metadata["layout"]).split("x"))
        layouts.add((rows, columns))
        assert image.format == "PNG" and image.size == (56 * columns, 56 * rows)
        cells = np.asarray(image).reshape(rows, 56, columns, 56).max(axis=(1, 3))
        assert (cells > 200).sum() == len(_numbers(sample, "digits"))
    assert layouts == set(GRIDS)


def test_sample_depends_on_split_seed_and_number_alone():
    few, many = list(digit_samples("train", 5, 3)), list(digit_samples("train", 20, 3))
    assert few == many[:5]
    assert [s.images for s in digit_samples("train", 5, 4)] != [s.images for s in few]
    assert len({sample.id for sample in many}) == 20


def test_content_is_pinned():
    """The demo's published numbers hold for this content; texts and pixels, as PNG bytes depend on zlib."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for sample in digit_samples(split, 100, 7):
            texts = (sample.id, *(message.content for message in sample.messages), sample.answer)
            digest.update("\n".join((*texts, *map(str, sample.metadata.values()))).encode())
            digest.update(Image.open(io.BytesIO(sample.images[0])).tobytes())
    assert digest.hexdigest() == "cd783d0e8841022209bb562dc7bf437d3fcc91b1206d23f2e9cbf52f5ca59b24"


def test_options_narrow_the_corpus():
    samples = list(digit_samples("train", 12, 0, cell=28, kinds=("sum",), num_digits=(2, 2)))
    assert {s.metadata["kind"] for s in samples} == {"sum"}
    assert {len(_numbers(s, "digits")) for s in samples} == {2}
    assert {Image.open(io.BytesIO(s.images[0])).height for s in samples} <= {28, 56, 84, 112}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (dict(split="dev"), "split"),
        (dict(kinds=("product",)), "kinds"),
        (dict(cell=30), "cell"),
        (dict(num_digits=(2, 9)), "num_digits"),
    ],
)
def test_wrong_options_are_named(arguments, field):
    split = arguments.pop("split", "train")
    with pytest.raises(ValueError, match=field):
        next(digit_samples(split, 1, 0, **arguments))


def test_texts_cover_the_words_of_every_split():
    known = set(re.findall(r"[a-z]+", " ".join(digit_texts()).lower()))
    for split in SPLITS:
        for sample in digit_samples(split, 60, 9):
            text = sample.messages[1].content.replace(IMAGE_MARK, "") + sample.messages[2].content
            assert set(re.findall(r"[a-z]+", text.lower())) <= known


def test_lines_hold_their_digits_and_no_image():
    samples = list(digit_lines("train", 200, 4))
    assert [sample.id for sample in samples[:3]] == [sample.id for sample in digit_lines("train", 3, 4)]
    for sample in samples:
        reading, _, question = sample.messages[1].content.partition(". ")
        digits, kind = [int(word) for word in reading.split()], str(sample.metadata["kind"])
        assert 2 <= len(digits) <= 4 and digits == _numbers(sample, "digits") and not sample.images
        assert int(sample.answer) == _oracle(kind.removeprefix("line_"), question, digits)
        assert sample.messages[2].content.startswith(f"<think>{reading}. ")
        assert sample.messages[2].content.endswith(f"</think><answer>{sample.answer}</answer>")
    assert {str(sample.metadata["kind"]) for sample in samples} == {f"line_{kind}" for kind in QUESTIONS}


def _numbers(sample: Sample, field: str) -> list[int]:
    return [int(word) for word in str(sample.metadata[field]).split()]


def _oracle(kind: str, question: str, digits: list[int]) -> int:
    if kind == "count":
        words = question.rstrip("?").split()
        bound = int(words[-1]) if words[-1].isdigit() else 0
        return {
            "even": sum(d % 2 == 0 for d in digits),
            "odd": sum(d % 2 for d in digits),
            "greater": sum(d > bound for d in digits),
            "less": sum(d < bound for d in digits),
            "equal": digits.count(bound),
        }[words[6]]
    if kind == "position":
        return digits[0] if "first" in question else digits[-1]
    return {
        "sum": sum(digits),
        "difference": max(digits) - min(digits),
        "largest": max(digits),
        "smallest": min(digits),
    }[kind]


def test_clips_show_the_digits_of_their_split_one_after_the_other():
    samples = list(digit_clips("test", 40, 3))
    assert [sample.id for sample in samples[:3]] == [sample.id for sample in digit_clips("test", 3, 3)]
    own = set(scan_splits()["test"].tolist())
    for sample in samples:
        (video,) = sample.videos
        digits, scans = sample.metadata["digits"].split(), list(map(int, sample.metadata["scans"].split()))
        check_video(video)
        assert set(scans) <= own and len(set(scans)) == len(digits)
        shown = [key for key, _ in groupby(video.frames)]
        assert len(shown) == len(digits) and len(video.frames) in (2 * len(digits), 2 * len(digits) - 1)
        question = sample.messages[1].content
        wanted = sum(map(int, digits)) if sample.metadata["kind"] == "clip_sum" else None
        if wanted is None:
            wanted = digits[0] if "first" in question else digits[-1]
            assert question.startswith(VIDEO_MARK + "Which digit comes") and "reading" not in question
        assert sample.answer == str(wanted) and f"<answer>{wanted}</answer>" in sample.messages[2].content
    assert {len(sample.videos[0].frames) % 2 for sample in samples} == {0, 1}
