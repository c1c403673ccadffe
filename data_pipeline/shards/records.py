"""Groups the members of a tar into records by key, as WebDataset does, and reports what would be lost on the way.

WebDataset ends a key at the first dot behind the last slash, and a record where the next member has another key. So
it skips links, and loses what comes back to a key later; a hidden file such as `folder/._1.png`, which macOS puts
beside `folder/1.png`, is to it a record of its own, which cuts the one around it in two. Here such companions are left
out and reported, and everything else that a record would lose is reported by its key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from data_pipeline.shards.tar_walk import TarMember

_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # key and extension, as webdataset splits a name
_UNPACKED_HEADERS = re.compile(r"(?:.*/)?PaxHeaders?(\.\d+)?/", re.DOTALL)
_OF_WINDOWS = ("thumbs.db", "desktop.ini")


class Report(Protocol):
    """Is called with each problem: its kind, what is wrong, the member's place and the key of its record."""

    def __call__(self, kind: str, detail: str, *, place: str = "", sample: str = "") -> None: ...


@dataclass(kw_only=True)
class Record:
    """The members of one sample; there is at least one."""

    key: str
    members: dict[str, TarMember]  # by extension, in order

    @property
    def offset(self) -> int:
        return next(iter(self.members.values())).offset

    @property
    def size(self) -> int:
        return next(reversed(self.members.values())).end - self.offset

    @property
    def place(self) -> str:
        return (self.members.get("json") or next(iter(self.members.values()))).place


def read_records(members: Iterable[TarMember], report: Report) -> Iterator[Record]:
    """Yields the records of a tar in order; a key that comes back gives another record, which is reported.

    Reports:
        companion: a file that an operating system put there.
        name: a member without key and extension, which belongs to no record.
        link: a link or a device, whose bytes the record lacks.
        extra-member: a name that the record has already.
        member-order: another record lies between members of one key.
    """
    places: dict[str, int] = {}  # of the first member of each key: an offset
    for key, group in groupby(_sample_members(members, report), key=lambda item: item[0]):
        record = Record(key=key, members={})
        for _, extension, member in group:
            if first := record.members.get(extension):
                detail = f"the same name again, first at byte {first.offset}"
                report("extra-member", detail, place=member.place, sample=key)
            else:
                record.members[extension] = member
        if key in places:
            detail = (
                f"another record lies between its members, which begin at byte {places[key]}; WebDataset readers "
                "lose those that come later: write the tar again, sorted by name (tar --sort=name)"
            )
            place = next(iter(record.members.values())).place
            report("member-order", detail, place=place, sample=key)
        places.setdefault(key, record.offset)
        yield record


def find_companion(name: str) -> str:
    """Returns what put a member there that belongs to no record; "" for any other member."""
    *folders, base = name.split("/")
    if "__MACOSX" in folders or base.startswith("._") or base == ".DS_Store":
        return "a file of macOS, which tar leaves out with COPYFILE_DISABLE=1 or --exclude '._*'"
    if _UNPACKED_HEADERS.match(name):
        return "a tar's extended header, unpacked as a file"
    if base.lower() in _OF_WINDOWS:
        return "a file of Windows"
    return "a hidden file" if base.startswith(".") else ""


def _sample_members(members: Iterable[TarMember], report: Report) -> Iterator[tuple[str, str, TarMember]]:
    """Yields (key, extension, member) of the members that belong to records."""
    for member in members:
        if member.kind == "directory" or re.fullmatch(r"__[^/]*__", member.name):
            continue  # as webdataset
        split = _NAME.fullmatch(member.name)
        if cause := find_companion(member.name):
            report("companion", f"{cause}; it belongs to no record", place=member.place)
        elif split is None:
            report("name", "no key and extension: WebDataset readers skip it", place=member.place)
        elif member.kind != "file":
            detail = f"a {member.kind}, not a file; write the tar with --dereference --hard-dereference"
            report("link", detail, place=member.place, sample=split[1])
        else:
            yield split[1], split[2].lower(), member
