"""The parts of a live page, each of which is sent again when it has changed."""

from __future__ import annotations

from threading import Lock


class Parts:
    """HTML by the name of its part, with the revision of the page at which it last changed. Any thread may call."""

    def __init__(self) -> None:
        self._revision = 0
        self._parts: dict[str, tuple[int, str]] = {}
        self._lock = Lock()

    def put(self, name: str, html: str) -> None:
        """Sets a part; one that is equal to what it was has not changed."""
        with self._lock:
            if name not in self._parts or self._parts[name][1] != html:
                self._revision += 1
                self._parts[name] = (self._revision, html)

    def since(self, revision: int) -> tuple[int, dict[str, str]]:
        """Returns the revision now, and the parts that have changed after `revision`; -1 is before all of them."""
        with self._lock:
            changed = {name: html for name, (at, html) in self._parts.items() if at > revision}
            return self._revision, changed
