"""Every kind of real damage to a good folder is found and named; hostile tars neither crash nor hang."""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_pipeline.errors import BadSample
from data_pipeline.loader.config import MixConfig
from data_pipeline.loader.mixture import mix
from data_pipeline.shards.config import ShardConfig, ValidateConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.validate import ValidationReport, validate
from data_pipeline.shards.writer import finish_shards, write_part, write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import Sample
from launch import cli
from tests.helpers.bad_samples import bad_questions, with_question
from tests.helpers.broken_shards import Members, edit_tar, header, member, png_bomb
from tests.helpers.videos import ask_about, make_video

SECOND = "shard-000000-0001.tar"
ID = "digits/train/0/000006"  # the third sample of the second shard
KEY = "000000-0001-000002"


def check(folder: Path, **options: Any) -> ValidationReport:
    return validate(ValidateConfig(shards=str(folder), **options))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "shards"
    write_shards(digit_samples("train", 12, 0), folder, ShardConfig(samples_per_shard=4))
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "shards"))


def test_a_good_folder_has_nothing_broken(good: Path):
    report = check(good, images=True)
    assert report.ok and report.has_index
    assert (report.shards, report.samples, report.images) == (3, 12, 12)
    assert report.lines == [f"{good}: 3 shards, 12 samples, 12 images", "nothing is broken"]
    assert check(good, quick=True).ok


# ---- members and samples: `edit` changes the second shard, and the problem is found with and without an index


def edited_json(**changes: object) -> Callable[[Members], Members]:
    """Changes fields of the third sample; None removes one."""

    def edit(members: Members) -> Members:
        info, data = members[4]
        fields = {**json.loads(data), **changes}
        fields = {name: value for name, value in fields.items() if value is not None}
        return [*members[:4], (info, json.dumps(fields).encode()), *members[5:]]

    return edit


def with_image(data: bytes) -> Callable[[Members], Members]:
    return lambda members: [*members[:5], (members[5][0], data), *members[6:]]


def renamed(number: int, name: str) -> Callable[[Members], Members]:
    def edit(members: Members) -> Members:
        members[number][0].name = name
        return members

    return edit


def inserted(*new: tuple[tarfile.TarInfo, bytes]) -> Callable[[Members], Members]:
    return lambda members: [*members[:6], *new, *members[6:]]


def swapped(a: int, b: int) -> Callable[[Members], Members]:
    def edit(members: Members) -> Members:
        members[a], members[b] = members[b], members[a]
        return members

    return edit


def torn_png() -> bytes:
    return next(iter(digit_samples("train", 1, 0))).images[0][:-120]


EDITS: dict[str, tuple[str, Callable[[Members], Members], str]] = {
    # name: (kind, edit, what the problem must name)
    "json that does not parse": ("json", lambda m: [*m[:4], (m[4][0], b'{"id": '), *m[5:]], KEY),
    "json nested too deep": ("json", lambda m: [*m[:4], (m[4][0], b"[" * 100_000), *m[5:]], KEY),
    "json with NaN": ("json", edited_json(metadata={"score": float("nan")}), KEY),
    "json with a name twice": (
        "json",
        lambda m: [*m[:4], (m[4][0], m[4][1][:-1] + b',"answer":"7"}'), *m[5:]],
        KEY,
    ),
    "json that is a list": ("json", lambda m: [*m[:4], (m[4][0], b"[1]"), *m[5:]], KEY),
    "a field of the wrong type": ("fields", edited_json(messages="Hi"), ID),
    "a turn without content": ("fields", edited_json(messages=[{"role": "user"}]), ID),
    "more marks than images": (
        "text",
        edited_json(messages=[{"role": "user", "content": "<image>" * 2}]),
        ID,
    ),
    "fewer marks than images": ("text", edited_json(messages=[{"role": "user", "content": "What?"}]), ID),
    "no turn of the user": (
        "text",
        edited_json(
            messages=[{"role": "system", "content": "<image>"}, {"role": "assistant", "content": "7"}]
        ),
        ID,
    ),
    "a blank response": (
        "text",
        edited_json(messages=[{"role": "user", "content": "<image>"}, {"role": "assistant", "content": " "}]),
        ID,
    ),
    "half a surrogate pair": (
        "text",
        edited_json(messages=[{"role": "user", "content": "<image>\ud800"}]),
        ID,
    ),
    "half a surrogate pair in the answer": ("text", edited_json(answer="\ud800"), ID),
    "a missing image": ("missing-member", lambda m: [*m[:5], *m[6:]], f"{KEY}.0.png"),
    "a renamed image": ("missing-member", renamed(5, f"{KEY}.9.png"), f"{KEY}.0.png"),
    "a renamed image is one too many": ("extra-member", renamed(5, f"{KEY}.9.png"), f"{KEY}.9.png"),
    "an image that the json does not name": (
        "extra-member",
        inserted(member(f"{KEY}.1.png", torn_png())),
        f"{KEY}.1.png",
    ),
    "a member twice": ("extra-member", inserted(member(f"{KEY}.0.png", torn_png())), f"{KEY}.0.png"),
    "an image before its json": ("member-order", swapped(4, 5), ID),
    "members of two samples mixed": ("member-order", swapped(5, 6), KEY),
    "a path out of the folder": ("path", inserted(member("../../x.json", b"{}")), "../../x.json"),
    "an absolute path": ("path", inserted(member("/etc/cron.d/x.json", b"{}")), "/etc/cron.d/x.json"),
    "a path of Windows": ("path", inserted(member("a\\..\\..\\x.json", b"{}")), "a\\..\\..\\x.json"),
    "a symbolic link": ("link", inserted(member(f"{KEY}.png", kind=tarfile.SYMTYPE)), f"{KEY}.png"),
    "a hard link": ("link", inserted(member(f"{KEY}.png", kind=tarfile.LNKTYPE)), f"{KEY}.png"),
    "a device": ("link", inserted(member(f"{KEY}.png", kind=tarfile.CHRTYPE)), f"{KEY}.png"),
    "a pipe": ("link", inserted(member(f"{KEY}.png", kind=tarfile.FIFOTYPE)), f"{KEY}.png"),
    "a companion of macOS": ("companion", inserted(member("._x.json", b"\0\5\26\7")), "._x.json"),
    "a companion in a folder": ("companion", inserted(member("x/._1.png", b"\0\5\26\7")), "x/._1.png"),
    "a companion between two members": (
        "companion",
        lambda m: [*m[:5], member("__MACOSX/._x.png"), *m[5:]],
        "__MACOSX/._x.png",
    ),
    "a name without extension": ("name", inserted(member("README", b"hello")), "README"),
    "a decompression bomb": ("bomb", with_image(png_bomb()), ID),
    "an image just too large": ("bomb", with_image(png_bomb(10_000)), ID),
    "bytes that are no image": ("image", with_image(b"what?"), ID),
    "the same sample again": ("duplicate", lambda m: [*m, *((again(i), d) for i, d in m[4:6])], ID),
}


def again(info: tarfile.TarInfo) -> tarfile.TarInfo:
    return info.replace(name=info.name.replace(KEY, "000000-0001-000009"), deep=False)


@pytest.mark.parametrize("has_index", [True, False], ids=["index", "plain"])
@pytest.mark.parametrize("name", EDITS)
def test_problems_of_a_sample_are_found_and_named(folder: Path, name: str, has_index: bool):
    kind, edit, named = EDITS[name]
    edit_tar(folder / SECOND, edit)
    if not has_index:
        for path in folder.glob("*.json"):
            path.unlink()
    report = check(folder)
    assert report.has_index == has_index
    problems = [problem for problem in report.problems if problem.kind == kind]
    assert problems and report.counts[kind] == len(problems)
    assert all(problem.shard == SECOND for problem in problems)
    assert any(named in (p.sample, *p.place.split(" "), p.detail) for p in problems), problems
    if not has_index and "renamed" not in name and "mixed" not in name:
        assert set(report.counts) <= {kind, "image"}, "and no other problem is reported"


def test_a_key_that_comes_back_names_both_places(folder: Path):
    edit_tar(folder / SECOND, swapped(5, 6))
    offset = ShardIndex.load(folder).rows(1).offsets[2]
    problem = next(problem for problem in check(folder).problems if problem.kind == "member-order")
    assert f"member {KEY}.0.png" in problem.place and f"begin at byte {offset}" in problem.detail


def test_a_compressed_shard_is_named_as_such(folder: Path):
    path = folder / SECOND
    path.write_bytes(gzip.compress(path.read_bytes()))
    details = [problem.detail for problem in check(folder).problems if problem.kind == "header"]
    assert details == ["it is compressed with gzip; unpack it (gzip -d)"]
    with pytest.raises(BadSample, match=r"compressed with gzip; unpack it \(gzip -d\)"):
        list(read_shards(folder))


def test_a_missing_field_is_found_in_a_folder_with_an_index(folder: Path):
    edit_tar(folder / SECOND, edited_json(source=None))
    problem = next(problem for problem in check(folder).problems if problem.kind == "fields")
    assert (problem.sample, problem.detail) == (ID, "source: wanted str, saw nothing")


def test_what_a_model_refuses_is_found_and_named(tmp_path: Path, tiny_hf: Path):
    """With the settings of the run; without a model only what no model takes."""
    good = list(digit_samples("test", 4, 0))
    bad = bad_questions(good[0])
    write_shards([*(sample for sample, _ in bad.values()), *good], tmp_path / "s")
    plain = {problem.sample for problem in check(tmp_path / "s").problems}
    assert plain == {"bad/surrogate", "bad/no question", "bad/no image"}
    found = check(tmp_path / "s", model=str(tiny_hf), max_tokens=2_000, max_images=1)
    kinds = {f"bad/{cause}": words.partition(":")[0] for cause, (_, words) in bad.items()}
    del kinds["bad/torn"], kinds["bad/no reference"]  # found by --images, and by RL and evaluation
    assert {problem.sample: problem.kind for problem in found.problems} == kinds
    assert check(tmp_path / "s", model=str(tiny_hf), max_tokens=100).counts["too_long"] > 4
    with pytest.raises(ValueError, match="complete folder of the model"):
        check(tmp_path / "s", model=str(tmp_path))


def test_an_image_torn_after_its_header_is_found_by_decoding(folder: Path):
    edit_tar(folder / SECOND, with_image(torn_png()))
    assert "image" not in check(folder).counts
    problem = next(problem for problem in check(folder, images=True).problems if problem.kind == "image")
    assert (problem.shard, problem.sample) == (SECOND, ID) and "cannot decode" in problem.detail


def test_broken_videos_are_found_and_named(tmp_path: Path):
    video = make_video(3)
    bad = {
        "good": ask_about([video]),
        "order": ask_about([replace(video, indices=(0, 4, 2))]),
        "marks": replace(ask_about([video]), videos=(video, video)),
        "frame": ask_about([replace(video, frames=(*video.frames[:2], b"what?"))]),
        "text": with_question(ask_about([]), "Is <video> a tag of HTML?"),
    }
    write_shards([replace(sample, id=name) for name, sample in bad.items()], tmp_path / "s")
    report = check(tmp_path / "s")
    assert {p.sample: p.kind for p in report.problems} == {
        "order": "video",
        "marks": "text",
        "frame": "image",
    }
    assert report.images == 3 + 3 + 6 + 3


# ---- bytes and the index


def test_a_flipped_byte_names_its_sample(folder: Path):
    index = ShardIndex.load(folder)
    rows, path = index.rows(1), folder / SECOND
    data = bytearray(path.read_bytes())
    data[rows.offsets[3] - 700] ^= 1  # in the image of the third sample
    path.write_bytes(data)
    report = check(folder)
    assert report.counts == {"checksum": 2}
    whole, sample = report.problems
    assert whole.shard == sample.shard == SECOND and sample.sample == ID
    assert sample.place == f"bytes {rows.offsets[2]} to {rows.offsets[3]}"


def test_every_flipped_byte_is_found(folder: Path):
    """In header, json, image, padding or end."""
    path = folder / SECOND
    whole = path.read_bytes()
    for place in random.Random(0).sample(range(len(whole)), 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        report = check(folder)
        assert report.counts["checksum"] >= 1, place
        assert {problem.shard for problem in report.problems} == {SECOND}


@pytest.mark.parametrize("keep", [0, 100, 512, 3_000, 10_000, -9_000])
def test_a_truncated_shard_is_found(folder: Path, keep: int):
    path = folder / SECOND
    path.write_bytes(path.read_bytes()[:keep])
    report = check(folder)
    assert {"size", "truncated", "count"} <= report.counts.keys() or keep == -9_000
    assert report.counts["size"] == 1 and {p.shard for p in report.problems} == {SECOND}
    assert check(folder, quick=True).counts == {"size": 1}
    for file in folder.glob("*.json"):
        file.unlink()
    assert "truncated" in check(folder).counts or keep == -9_000, "-9000 cuts only padding"


def test_missing_and_extra_shards_are_found(folder: Path):
    (folder / SECOND).rename(folder / "shard-000000-0077.tar")
    counts = check(folder).counts
    assert counts == {"missing-shard": 1, "extra-shard": 1}
    assert check(folder, quick=True).counts == counts


def test_an_empty_shard_is_found(folder: Path, tmp_path: Path):
    with tarfile.open(folder / SECOND, "w"):
        pass
    report = check(folder)
    assert report.counts["empty"] == report.counts["size"] == report.counts["count"] == 1
    write_shards([], tmp_path / "none")
    assert check(tmp_path / "none").counts == {"empty": 1}


def test_bytes_after_the_end_are_found(folder: Path):
    with (folder / SECOND).open("ab") as file:
        file.write(header("hidden.json", 2) + b"{}" + bytes(510))
    assert check(folder).counts["trailing"] == 1


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("ids", lambda ids: [*ids[:2], "another", *ids[3:]], "the index says 'another' of"),
        ("offsets", lambda offsets: [*offsets[:2], offsets[2] + 512, *offsets[3:]], "the index says nothing"),
        ("sizes", lambda sizes: [*sizes[:2], sizes[2] + 512, *sizes[3:]], f"the index says '{ID}' of"),
        ("crc32", lambda sums: [*sums[:2], sums[2] ^ 1, *sums[3:]], "CRC-32"),
        ("tokens", lambda tokens: tokens[:-1], "lists 4 samples where index.json counts 4"),
        ("images", lambda images: images[:-1], "lists 4 samples where index.json counts 4"),
        ("images", lambda images: [[28], *images[1:]], "are no widths and heights"),
        ("images", lambda images: ["28", *images[1:]], "are no widths and heights"),
        ("images", lambda images: [None, *images[1:]], "cannot be read"),
        ("offsets", lambda offsets: ["here"] * 4, "cannot be read"),
        ("offsets", lambda offsets: [-512, *offsets[1:]], "a number below 0"),
        ("ids", lambda ids: [1, 2, 3, 4], "an id that is no text"),
    ],
)
def test_rows_that_do_not_match_are_found(folder: Path, column: str, change: Callable, message: str):
    path = folder / SECOND.replace(".tar", ".index.json")
    rows = json.loads(path.read_text())
    path.write_text(json.dumps({**rows, column: change(rows[column])}))
    report = check(folder)
    assert any(message in problem.detail and problem.shard == SECOND for problem in report.problems), (
        report.problems
    )
    assert report.counts.keys() <= {"rows", "checksum"}


@pytest.mark.parametrize("text", [None, "", "{", '{"version": 1, "shards": []}', '{"version": 2}'])
def test_a_missing_or_unreadable_index_is_found(folder: Path, text: str | None):
    (folder / "index.json").unlink() if text is None else (folder / "index.json").write_text(text)
    report = check(folder)
    assert report.counts == {"index": 1} and not report.has_index
    assert report.samples == 12, "the shards are checked nevertheless"


def test_leftovers_of_a_killed_write_are_found(folder: Path):
    (folder / "shard-000000-0003.tar.partial").write_bytes(b"half")
    (folder / "part-000000.json").write_text("{}")
    (folder / "part-000001.lock").touch()
    assert check(folder, quick=True).counts == {"leftover": 3}


# ---- ids


def test_an_id_that_occurs_in_two_shards_is_found(tmp_path: Path):
    samples = list(digit_samples("train", 6, 0))
    for part in range(3):
        write_part([samples[2 * part], samples[2 * part + 1], samples[1]], tmp_path, part)
    finish_shards(tmp_path, 3)
    for quick in (False, True):
        report = check(tmp_path, quick=quick)
        assert report.counts == {"duplicate": 3}
        assert [problem.sample for problem in report.problems] == ["digits/train/0/000001"]
        assert "the id of 4 samples: shard-000000-0000.tar sample 1, " in report.problems[0].detail


def test_control_characters_of_ids_are_escaped(tmp_path: Path):
    sample = replace(next(iter(digit_samples("train", 1, 0))), id="a\x1b[2Jb")
    write_shards([sample, sample], tmp_path)
    lines = "\n".join(check(tmp_path).lines)
    assert "a\\x1b[2Jb" in lines and "\x1b" not in lines


def test_all_folders_of_a_mixture_are_checked(tmp_path: Path, good: Path, folder: Path):
    write_shards(digit_samples("test", 5, 0), tmp_path / "other")
    mix(MixConfig(shards=(str(tmp_path / "other"), str(folder)), out=str(tmp_path / "mix")))
    report = check(tmp_path / "mix")
    assert report.ok and (report.shards, report.samples) == (4, 17)
    (folder / SECOND).unlink()
    problem = check(tmp_path / "mix").problems[0]
    assert problem.kind == "missing-shard" and problem.shard.endswith(f"shards/{SECOND}")
    (tmp_path / "mix" / "mixture.json").unlink()
    write_shards(read_shards(good), tmp_path / "twin", ShardConfig(samples_per_shard=5))
    mix(MixConfig(shards=(str(good), str(tmp_path / "twin")), out=str(tmp_path / "mix")))
    assert check(tmp_path / "mix", quick=True).counts == {"duplicate": 12}


# ---- folders of other writers


def test_a_folder_of_another_webdataset_writer_has_no_problems(tmp_path: Path):
    """Long and non-ASCII names make extended headers; texts and labels have no json."""
    import webdataset

    image = Image.new("RGB", (30, 20), "red")
    (tmp_path / "deep").mkdir()
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / "deep" / f"{shard}.tar")) as writer:
            for number in range(5):
                key = f"{'long/' * 40}größe-{shard}-{number}"
                writer.write({"__key__": key, "jpg": image, "txt": "red", "cls": 1, "json": {"a": number}})
    with tarfile.open(tmp_path / "gnu.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(*_with_bytes("folder", b"", tarfile.DIRTYPE))
        for number in range(3):
            tar.addfile(*_with_bytes(f"{'n' * 200}{number}.txt", b"hello"))
    report = check(tmp_path)
    assert report.ok and not report.has_index, report.problems
    assert (report.shards, report.samples, report.images) == (3, 13, 10)


def _with_bytes(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info, _ = member(name, kind=kind)
    info.size = len(data)
    return info, io.BytesIO(data)


PAX = b"29 size=99999999999999999999\n\x00".ljust(512, b"\0")
HOSTILE = {
    "a size beyond all disks": (header("a.json", 1 << 60), "truncated"),
    "a negative size": (header("a.json", -512), "header"),
    "an extended header of eight exabytes": (header("a", 1 << 62, tarfile.XHDTYPE), "header"),
    "a long name of gigabytes": (header("a", 1 << 33, tarfile.GNUTYPE_LONGNAME), "header"),
    "an extended size": (header("a", 29, tarfile.XHDTYPE) + PAX + header("a.json", 2), "truncated"),
    "an extended header that is none": (
        header("a", 12, tarfile.XHDTYPE) + b"999999 a=b\n".ljust(512),
        "header",
    ),
    "an extended header of itself": (header("a", 12, tarfile.XHDTYPE) + b"0 a=b\n".ljust(512), "header"),
    "a sparse file": (header("a.json", 512, tarfile.GNUTYPE_SPARSE) + bytes(512), "header"),
    "a sparse map without an end": (
        header("a", 40, tarfile.XHDTYPE)
        + b"22 GNU.sparse.major=1\n18 GNU.sparse.m=0\n".ljust(512, b"\0")
        + header("a.json", 512)
        + b"9" * 512,
        "header",
    ),
    "a thousand extended headers and no member": (
        (header("a", 9, tarfile.XHDTYPE) + b"9 a=bcde\n".ljust(512, b"\0")) * 1_000 + bytes(1_024),
        "header",
    ),
    "noise": (random.Random(1).randbytes(5_000), "header"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tars_are_reported(tmp_path: Path, name: str):
    data, kind = HOSTILE[name]
    (tmp_path / "a.tar").write_bytes(data)
    report = check(tmp_path)
    assert report.counts.pop(kind) == 1
    assert report.counts in ({}, {"empty": 1}), report.problems


def test_randomly_damaged_tars_never_crash(good: Path, tmp_path: Path):
    """Without an index, so that only the tar itself is read."""
    whole = (good / SECOND).read_bytes()
    draw = random.Random(2)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.choice((1, 5, 50))):
            place = draw.randrange(len(data))
            data[place : place + draw.choice((1, 8, 512))] = draw.randbytes(draw.choice((1, 8, 512)))
        (tmp_path / "a.tar").write_bytes(data)
        check(tmp_path, images=True)


# ---- the command


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(["data", "validate", *words])
    return int(left.value.code or 0), capsys.readouterr().out


def test_command_exits_with_1_and_prints_the_problems(folder: Path, capsys: pytest.CaptureFixture[str]):
    code, printed = run(capsys, str(folder), "--images")
    assert code == 0 and "nothing is broken" in printed
    (folder / SECOND).unlink()
    code, printed = run(capsys, str(folder))
    assert code == 1
    assert printed.splitlines()[1:] == [
        "missing-shard: 1",
        f"  {SECOND}: the index lists it, but it does not exist",
    ]
    code, printed = run(capsys, str(folder), "--json", "--work.workers", "2")
    report = json.loads(printed)
    assert code == 1 and report["counts"] == {"missing-shard": 1}
    assert report["problems"][0] == {
        "kind": "missing-shard",
        "shard": SECOND,
        "place": "",
        "sample": "",
        "detail": "the index lists it, but it does not exist",
    }


def test_only_the_first_problems_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    samples: list[Sample] = [replace(sample, images=(b"?",)) for sample in digit_samples("train", 130, 0)]
    write_shards(samples, tmp_path)
    code, printed = run(capsys, str(tmp_path))
    assert code == 1 and "image: 130\n" in printed and printed.count("cannot identify") == 5
    assert "... and 125 more" in printed
    assert len(check(tmp_path).problems) == 100, "memory is bounded"


def test_a_missing_folder_is_an_error_and_an_empty_one_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["data", "validate", str(tmp_path / "none")]) == 2
    assert "is not a folder; give one of .tar shards" in capsys.readouterr().err
    assert check(tmp_path).counts == {"empty": 1}
