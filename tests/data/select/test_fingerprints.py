"""Fingerprints: equal bytes for equal samples, safe to write at once, and refused when broken."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.distill.teacher import clean_question
from data_pipeline.select.fingerprints import Fingerprints, fingerprint_samples, question_text
from tests.helpers.alike import ask, photographs, png
from tests.helpers.videos import ask_about, make_video


def test_same_samples_give_the_same_bytes(tmp_path: Path):
    samples = [ask("a", "Who?", png(photographs()[0])), ask("ü\n", "When?")]
    for name in ("x.npz", "y.npz"):
        fingerprint_samples(samples, "ngrams").save(tmp_path / name)
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()
    loaded = Fingerprints.load(tmp_path / "x.npz")
    lengths = np.linalg.norm(loaded.text.astype(np.float32), axis=1)
    assert loaded.ids == ("a", "ü\n") and lengths == pytest.approx(np.ones(2), abs=1e-2)  # float16


def test_broken_file_is_refused(tmp_path: Path):
    (tmp_path / "x.npz").write_bytes(b"torn")
    with pytest.raises(ValueError, match="x.npz holds no fingerprints"):
        Fingerprints.load(tmp_path / "x.npz")


def test_workers_may_write_the_same_fingerprints_at_once(tmp_path: Path):
    prints = fingerprint_samples([ask(str(n), f"question {n}") for n in range(500)], "ngrams")
    saves = [(prints, tmp_path / "x.npz")] * 60
    with multiprocessing.get_context("spawn").Pool(2) as workers:
        workers.starmap(Fingerprints.save, saves, chunksize=1)
    assert Fingerprints.load(tmp_path / "x.npz").ids == prints.ids
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_phrases_that_the_teacher_is_not_asked_are_not_compared():
    for phrase in ("Context: N/A", "Answer the question using a single word or phrase."):
        assert question_text(ask("a", f"Who? {phrase}")) == clean_question(f"Who? {phrase}") == "Who?"


def test_videos_of_the_same_frames_at_other_times_differ():
    slow, fast = (ask_about([make_video(2, fps=fps)]) for fps in (1.0, 2.0))
    same, other = (fingerprint_samples([slow, sample], "ngrams").content for sample in (slow, fast))
    assert same[0] == same[1] and other[0] != other[1]


def test_marks_of_videos_are_not_compared_where_there_are_videos():
    assert question_text(ask_about([make_video(1)])) == "What is 3 plus 4?"
    assert question_text(ask("a", "What is <video> in HTML?")) == "What is <video> in HTML?"
