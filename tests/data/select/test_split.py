"""`omr data split`: no image on both sides, the same parts in any order, repeated and killed runs, wrong sizes."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.config import WorkConfig
from data_pipeline.select.config import SplitConfig
from data_pipeline.select.fingerprints import hash_images
from data_pipeline.select.split import split
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.writer import write_shards
from data_pipeline.types import Sample
from launch import cli
from tests.helpers.alike import ask, png

SMALL = ShardConfig(samples_per_shard=7)


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (number, 255 - number, 40))


def questions(count: int = 40) -> list[Sample]:
    """Returns three questions about each of `count` images; the third has the image as another file."""
    files = [(png(picture(number)), _bmp(picture(number))) for number in range(count)]
    return [
        replace(ask(f"q{n}-{k}", f"Question {k}?", answer="1"), images=(again if k == 2 else first,))
        for n, (first, again) in enumerate(files)
        for k in range(3)
    ]


def _bmp(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "BMP")
    return file.getvalue()


def parts(folder: Path) -> dict[str, list[Sample]]:
    return {part: list(read_shards(folder / part)) for part in ("train", "test")}


def test_no_image_is_in_both_parts_and_nothing_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    samples = questions()
    write_shards(samples, tmp_path / "all", SMALL)
    out = tmp_path / "parts"
    assert cli.main(["data", "split", str(tmp_path / "all"), str(out), "--test", "0.25"]) == 0
    found = parts(out)
    images = {part: {hash_images(s.images)[0] for s in kept} for part, kept in found.items()}
    assert not images["train"] & images["test"] and len(images["train"] | images["test"]) == 40
    assert sorted(s.id for kept in found.values() for s in kept) == sorted(s.id for s in samples)
    assert len(found["test"]) == 30 and "25.0%" in capsys.readouterr().out


def test_parts_depend_on_the_seed_and_not_on_the_order(tmp_path: Path):
    samples = questions()
    shuffled = random.Random(0).sample(samples, len(samples))
    chosen = {}
    for name, order, seed in (("a", samples, 1), ("b", shuffled, 1), ("c", samples, 2)):
        write_shards(order, tmp_path / name, SMALL)
        split(SplitConfig(shards=str(tmp_path / name), out=str(tmp_path / f"{name}-out"), test=31, seed=seed))
        chosen[name] = {sample.id for sample in parts(tmp_path / f"{name}-out")["test"]}
    assert chosen["a"] == chosen["b"] != chosen["c"]
    assert len(chosen["a"]) == len(chosen["c"]) == 30, "at most 31, and three questions to an image"


def test_images_joined_by_one_sample_stay_together(tmp_path: Path):
    samples = questions(20)
    joining = [
        replace(ask(f"two-{n}", "Compare.", answer="1"), images=(png(picture(n)), png(picture(n + 1))))
        for n in range(9)
    ]
    write_shards([*samples, *joining], tmp_path / "all", SMALL)
    split(SplitConfig(shards=str(tmp_path / "all"), out=str(tmp_path / "out"), test=0.4))
    found = parts(tmp_path / "out")
    first = {hash_images((png(picture(n)),))[0] for n in range(10)}
    sides = {part for part, kept in found.items() for s in kept if first & set(hash_images(s.images))}
    assert len(sides) == 1, "the first ten images are one group"


def test_samples_without_an_image_are_divided_by_question(tmp_path: Path):
    texts = [ask(f"{q}-{k}", f"What is {q} + 1?", answer=str(q + 1)) for q in range(30) for k in range(2)]
    write_shards(texts, tmp_path / "all")
    split(SplitConfig(shards=str(tmp_path / "all"), out=str(tmp_path / "out"), test=20))
    asked = {part: {s.messages[-1].content for s in kept} for part, kept in parts(tmp_path / "out").items()}
    assert len(asked["test"]) == 10 and not asked["train"] & asked["test"]


def test_killed_and_parallel_splits_have_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_shards(questions(), tmp_path / "all", SMALL)

    def config(name: str) -> SplitConfig:
        return SplitConfig(shards=str(tmp_path / "all"), out=str(tmp_path / name), writer=SMALL)

    def stop(*_: object) -> bool:
        raise KeyboardInterrupt

    for function in ("_choose_test", "_keep_part"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"data_pipeline.select.split.{function}", stop)
            split(config("killed"))
    first = split(config("killed"))
    again = split(replace(config("parallel"), work=WorkConfig(workers=2)))
    for part in ("train", "test"):
        assert (
            first[part].index.digest == again[part].index.digest == split(config("killed"))[part].index.digest
        )
    with pytest.raises(ValueError, match="made with other settings: seed was 42, is 7"):
        split(replace(config("killed"), seed=7))


@pytest.mark.parametrize("test", [2, 120])
def test_an_empty_part_is_refused(test: int, tmp_path: Path):
    write_shards(questions(), tmp_path / "all")
    with pytest.raises(
        ValueError, match=f"test={test} of 120 samples leaves an empty part: they form 40 groups"
    ):
        split(SplitConfig(shards=str(tmp_path / "all"), out=str(tmp_path / "out"), test=test))
    other = split(SplitConfig(shards=str(tmp_path / "all"), out=str(tmp_path / "out"), test=30))
    assert len(other["test"].index) == 30, "the size that the message asks for is taken in the same folder"


def test_sizes_are_checked():
    for test in (0, -1, 1.0):
        with pytest.raises(ValueError, match="must be a number of samples"):
            SplitConfig(shards="a", out="b", test=test)
