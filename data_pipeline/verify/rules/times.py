"""Compares times of day.

>>> is_same_time("03:30", "3:30"), is_same_time("15:30", "3:30 pm"), is_same_time("3:30", "1:10")
(True, True, False)
"""

from __future__ import annotations

import re

_TIME = re.compile(r"(\d?\d)(?::([0-5]\d)(?::([0-5]\d))?)? ?(?:([ap])\.?m\.?)?", re.IGNORECASE)


def is_same_time(given: str, wanted: str) -> bool | None:
    """Returns None where one of the two is no time of day; am and pm count where both sides have them."""
    ours, theirs = _read_time(given), _read_time(wanted)
    if ours is None or theirs is None:
        return None
    if ours == theirs:
        return True
    # 15:30 is 3:30 pm; so is 3:30, which leaves the pm out as a number may leave out its unit
    is_half_left_out = bool(ours[1]) != bool(theirs[1])
    return is_half_left_out and (ours[0] == theirs[0] or _on_dial(ours) == _on_dial(theirs))


def _read_time(text: str) -> tuple[int, str] | None:
    """Returns the seconds since midnight, and a or p where the text says am or pm."""
    if not text[:1].isdigit() or len(text) > len("12:30:00 p.m."):
        return None
    found = _TIME.fullmatch(text)
    if not found or not (found.group(2) or found.group(4)):
        return None
    hour, minute, second = (int(part or 0) for part in found.groups()[:3])
    half = (found.group(4) or "").lower()
    if hour > (12 if half else 24):
        return None
    if half:
        hour = hour % 12 + 12 * (half == "p")
    return hour * 3600 + minute * 60 + second, half


def _on_dial(time: tuple[int, str]) -> int:
    """Returns the seconds on a dial of twelve hours; a time past them without am or pm is on no dial."""
    seconds, half = time
    return seconds % 43_200 if half or seconds < 46_800 else -1
