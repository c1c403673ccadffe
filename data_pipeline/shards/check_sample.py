"""Checks one sample of a shard: its json, its members, its images; and keeps what is found, counted by kind."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO

import numpy as np
from PIL import Image

from data_pipeline.encode.config import ImageConfig, LimitsConfig
from data_pipeline.encode.turns import check_text, check_turns
from data_pipeline.encode.video_times import check_video
from data_pipeline.errors import BadSample
from data_pipeline.files import parse_json
from data_pipeline.shards.format import FIELDS, find_wrong_fields, member_names, parse_videos
from data_pipeline.shards.records import Record
from data_pipeline.shards.tar_walk import TarMember
from data_pipeline.types import Message, Sample

KEPT = 100
"""Problems of a kind that are kept of each shard; all are counted."""
MAX_JSON, MAX_IMAGE = 1 << 24, 1 << 28
"""Sizes in bytes; larger members are not read."""
_IMAGES = ("png", "jpg", "jpeg", "webp", "gif", "bmp")

Report = Callable[..., None]  # Findings.add with a sample's name: report(kind, detail, place=...)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something broken, and its place."""

    kind: str
    shard: str = ""
    place: str = ""  # byte, member
    sample: str = ""  # its id, or its key where the id cannot be read
    detail: str


@dataclass(kw_only=True)
class Findings:
    """Numbers and problems of a shard."""

    shard: str
    samples: int = 0
    images: int = 0  # frames of videos among them
    counts: Counter[str] = field(default_factory=Counter)  # problems by kind
    problems: list[Problem] = field(default_factory=list)  # the first of each kind
    id_hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # [samples], in order

    def add(self, kind: str, detail: str, *, place: str = "", sample: str = "") -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= KEPT:
            texts = {"place": place, "sample": sample, "detail": detail}
            texts = {name: printable(text) for name, text in texts.items()}
            self.problems.append(Problem(kind=kind, shard=self.shard, **texts))


def printable(text: str) -> str:
    """Returns the text shortened, and without characters that a terminal would act on."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[:300])


def check_sample(
    file: BinaryIO, record: Record, found: Findings, *, strict: bool, images: bool, limits: LimitsConfig
) -> str:
    """Reports what is wrong with a sample, and returns its name: its id, or its key where it has none.

    Args:
        strict: check the fields of every json, not only of one that has all of FIELDS.
        images: decode images in full, not only their headers.
        limits: a model, what it refuses is reported where nothing else is wrong.
    """
    before = found.counts.total()
    fields = read_fields(file, record, found)
    name = sample_name(fields, record)
    report = partial(found.add, sample=name)
    if "json" not in record.members and strict:
        report("missing-member", f"{record.key}.json", place=record.place)
    ours = fields if fields is not None and (strict or FIELDS.keys() <= fields.keys()) else None
    if ours is not None:
        _check_fields(ours, record, report)
    for member in _image_members(fields, record):
        found.images += 1
        _check_image(file, member, report, in_full=images)
    if ours is not None and limits.model and found.counts.total() == before:
        _check_limits(file, ours, record, report, limits)
    return name


def read_fields(file: BinaryIO, record: Record, found: Findings) -> dict | None:
    """Returns the json member's object; None without one, or after a report of one that cannot be read."""
    member = record.members.get("json")
    if member is None:
        return None
    problem = f"{member.size} bytes of json, more than {MAX_JSON}"
    if member.size <= MAX_JSON:
        try:
            fields = parse_json(_read(file, member))
            if isinstance(fields, dict):
                return fields
            problem = "no JSON object"
        except ValueError as error:
            problem = f"no JSON: {error}"
    found.add("json", problem, place=member.place, sample=record.key)
    return None


def sample_name(fields: dict | None, record: Record) -> str:
    """Returns a sample's id, or its key where it has none."""
    name = fields.get("id") if fields else None
    return name if isinstance(name, str) and name else record.key


def _check_fields(fields: dict, record: Record, report: Report) -> None:
    """Checks a sample's json against its members."""
    wrong = list(find_wrong_fields(fields))
    for detail in wrong:
        report("fields", detail, place=record.place)
    if wrong:
        return
    wanted = ["json", *member_names(fields)]
    for extension in [extension for extension in wanted if extension not in record.members]:
        report("missing-member", f"{record.key}.{extension}", place=record.place)
    for extension in [extension for extension in record.members if extension not in wanted]:
        report("extra-member", "the json does not name it", place=record.members[extension].place)
    if list(record.members) != wanted and set(record.members) == set(wanted):
        order = f"{', '.join(record.members)}, wanted {', '.join(wanted)}"
        report("member-order", order, place=record.place)
    try:
        videos = parse_videos(fields, [b""] * len(member_names(fields)))
        check_turns(_messages(fields), len(fields["images"]), len(videos))
        for video in videos:
            check_video(video)
        check_text(f"{fields['id']} {fields['source']} {fields['answer']}")
    except BadSample as error:
        report(error.reason, error.args[1], place=record.place)


def _check_limits(file: BinaryIO, fields: dict, record: Record, report: Report, config: LimitsConfig) -> None:
    """Reports what the configured model refuses of a sample that is whole."""
    from data_pipeline.encode.limits import load_limits

    members = [_read(file, record.members[name]) for name in member_names(fields)]
    count = len(fields["images"])
    sample = Sample(
        id="",
        source="",
        messages=_messages(fields),
        images=tuple(members[:count]),
        videos=parse_videos(fields, members[count:]),
    )
    try:
        if limits := load_limits(config):
            limits.check(sample)
    except BadSample as error:
        report(error.reason, error.args[1], place=record.place)


def _messages(fields: dict) -> tuple[Message, ...]:
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in fields["messages"])


def _image_members(fields: dict | None, record: Record) -> list[TarMember]:
    """Returns the members that the json names as images or frames, and those with an image's extension."""
    named = fields.get("images") if fields else None
    names = list(named) if isinstance(named, list) else []
    names += member_names(fields) if fields and not any(find_wrong_fields(fields)) else []
    return [m for name, m in record.members.items() if name in names or name.rpartition(".")[2] in _IMAGES]


def _check_image(file: BinaryIO, member: TarMember, report: Report, *, in_full: bool) -> None:
    if member.size > MAX_IMAGE:
        report("bomb", f"{member.size} bytes, more than {MAX_IMAGE}", place=member.place)
        return
    data = _read(file, member)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.open(io.BytesIO(data)).close()
        if in_full:
            from data_pipeline.encode.images import load_image

            load_image(data, ImageConfig())
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        report("bomb", str(error), place=member.place)
    except Exception as error:  # Pillow's decoders raise all sorts of errors on broken files
        report("image", str(error) or repr(error), place=member.place)


def _read(file: BinaryIO, member: TarMember) -> bytes:
    file.seek(member.data)
    return file.read(member.size)
