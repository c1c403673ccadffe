"""One sample of a shard looked at: its json, its members, its images."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from PIL import Image

from data_pipeline.encode.config import ImageConfig
from data_pipeline.shards.findings import Findings
from data_pipeline.shards.format import FIELDS
from data_pipeline.shards.tar_walk import TarMember
from data_pipeline.types import IMAGE_MARK

MAX_JSON, MAX_IMAGE = 1 << 24, 1 << 28
"""Bytes of a member that are read at all."""
_IMAGES = ("png", "jpg", "jpeg", "webp", "gif", "bmp")
_ROLES = ("system", "user", "assistant")


@dataclass(kw_only=True)
class Record:
    """The members of one sample."""

    key: str
    offset: int
    end: int
    members: dict[str, TarMember] = field(default_factory=dict)  # by extension, in order


def check_sample(file: BinaryIO, record: Record, found: Findings, *, strict: bool, images: bool) -> str:
    """Report what is wrong with a sample, and return its name: its id, or its key where it has none.

    `strict` samples must be of our form; others only where they look like it. `images` decodes them in full.
    """
    fields, name = read_fields(file, record)
    _check_fields(fields, record, found, name=name, strict=strict)
    for extension in _image_names(fields, record):
        found.images += 1
        member = record.members[extension]
        if problem := _image_problem(file, member, in_full=images):
            found.add(problem[0], problem[1], place=member.place, sample=name)
    return name


def read_fields(file: BinaryIO, record: Record) -> tuple[dict | str | None, str]:
    """The json member's object, what is wrong with it, or None without one; and the sample's name."""
    member = record.members.get("json")
    if member is None:
        return None, record.key
    if member.size > MAX_JSON:
        return f"{member.size} bytes of json, more than {MAX_JSON}", record.key
    try:
        fields = json.loads(_read(file, member))
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}", record.key
    if not isinstance(fields, dict):
        return "no JSON object", record.key
    name = fields.get("id")
    return fields, name if isinstance(name, str) and name else record.key


def _check_fields(
    fields: dict | str | None, record: Record, found: Findings, *, name: str, strict: bool
) -> None:
    """A sample's json against its members; of samples that are not ours only that it is JSON."""
    place = (record.members.get("json") or next(iter(record.members.values()))).place
    if isinstance(fields, str):
        found.add("json", fields, place=place, sample=name)
    if fields is None and strict:
        found.add("missing-member", f"{record.key}.json", place=place, sample=name)
    if not isinstance(fields, dict) or not (strict or FIELDS.keys() <= fields.keys()):
        return
    wrong = list(_wrong_fields(fields))
    for detail in wrong:
        found.add("fields", detail, place=place, sample=name)
    if wrong:
        return
    wanted = ["json", *fields["images"]]
    for extension in [extension for extension in wanted if extension not in record.members]:
        found.add("missing-member", f"{record.key}.{extension}", place=place, sample=name)
    for extension in [extension for extension in record.members if extension not in wanted]:
        found.add("extra-member", "json names it not", place=record.members[extension].place, sample=name)
    if list(record.members) != wanted and set(record.members) == set(wanted):
        found.add(
            "member-order",
            f"{', '.join(record.members)}, wanted {', '.join(wanted)}",
            place=place,
            sample=name,
        )
    marks = sum(turn["content"].count(IMAGE_MARK) for turn in fields["messages"])
    if marks != len(fields["images"]):
        found.add(
            "marks",
            f"{marks} marks {IMAGE_MARK} for {len(fields['images'])} images",
            place=place,
            sample=name,
        )


def _wrong_fields(fields: dict) -> Iterator[str]:
    for name, kind in FIELDS.items():
        if not isinstance(fields.get(name), kind):
            yield f"{name}: wanted {kind.__name__}, saw {type(fields.get(name)).__name__}"
    turns, images = fields.get("messages"), fields.get("images")
    if not fields.get("id"):
        yield "id: empty"
    if isinstance(images, list) and not all(isinstance(image, str) for image in images):
        yield "images: wanted names of members"
    for number, turn in enumerate(turns if isinstance(turns, list) else ()):
        is_turn = isinstance(turn, dict) and isinstance(turn.get("content"), str)
        if not is_turn or turn.get("role") not in _ROLES:
            yield f"messages: turn {number} has no content, or no role of {', '.join(_ROLES)}"
    if turns == []:
        yield "messages: empty"


# --- images


def _image_names(fields: dict | str | None, record: Record) -> list[str]:
    """The members that are images: those that json names, and what is called like one."""
    named = fields.get("images") if isinstance(fields, dict) else None
    named = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    return [name for name in record.members if name in named or name.rpartition(".")[2] in _IMAGES]


def _image_problem(file: BinaryIO, member: TarMember, *, in_full: bool) -> tuple[str, str] | None:
    """(kind, detail) where an image cannot be used; its header alone unless `in_full`."""
    if member.size > MAX_IMAGE:
        return "bomb", f"{member.size} bytes, more than {MAX_IMAGE}"
    data = _read(file, member)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.open(io.BytesIO(data)).close()
        if in_full:
            from data_pipeline.encode.images import load_image

            load_image(data, ImageConfig())
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        return "bomb", str(error)
    except Exception as error:  # Pillow's decoders raise all sorts of errors on broken files
        return "image", str(error) or repr(error)
    return None


def _read(file: BinaryIO, member: TarMember) -> bytes:
    file.seek(member.data)
    return file.read(member.size)
