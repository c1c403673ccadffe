"""Looks at the live page of a demo, in headless Chromium, while the demo runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launch.report.axes import format_number
from tests.helpers.browser import open_page, start_browser
from tests.helpers.live_run import serving
from tests.helpers.processes import wait_until

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

LINK = (
    "return [...document.querySelectorAll('a.run')].find(each => each.textContent.includes('{name}'))?.href"
)
TEXT = "return document.querySelector('[data-part={part}]').textContent"
IMAGES = "return [...document.images].map(each => each.complete ? each.naturalWidth : 0)"


class PageWatcher:
    """Opens the first page, and the page of RL once it is there; keeps what it says, from a thread."""

    def __init__(self, demo: Path, url: str, profile: Path) -> None:
        self.titles: dict[str, None] = {}  # in the order in which they were seen
        self.engines: set[str] = set()
        self._demo, self._url, self._profile = demo, url, profile
        self._ends = threading.Event()
        self._browser: Chrome | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def check(self, stage: str = "rl") -> None:
        """Checks that the page has followed the run of RL to its end, by the numbers of its files, without an error."""
        self._ends.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        browser = self._browser
        if browser is None:  # not installed
            return
        rows = [json.loads(line) for line in (self._demo / stage / "metrics.jsonl").read_text().splitlines()]
        done = f"done {len(rows)}/{len(rows)}"
        wait_until(lambda: done in browser.title, seconds=30)
        wait_until(
            lambda: f"Steps 0 to {len(rows) - 1}." in browser.execute_script(TEXT.format(part="charts"))
        )
        assert f"{format_number(rows[-1]['reward'])}reward" in browser.execute_script(
            TEXT.format(part="state")
        )
        assert browser.execute_script("return document.querySelectorAll('figure svg').length") > 10
        wait_until(lambda: len(widths := browser.execute_script(IMAGES)) > 1 and min(widths) > 0, seconds=30)
        assert any("starting" in title for title in self.titles), self.titles
        assert any("idle" in text or "generating" in text for text in self.engines), self.engines
        assert browser.get_log("browser") == []
        open_page(browser, self._url)
        assert len(browser.find_elements("css selector", ".badge.done")) == 2, "SFT and RL"

    def close(self) -> None:
        """Ends the browser."""
        self._ends.set()
        self._thread.join()
        if self._browser is not None:
            self._browser.quit()

    def _work(self) -> None:
        try:
            self._browser = start_browser(self._profile)
            open_page(self._browser, self._url)
            self._watch(self._browser)
        except pytest.skip.Exception:  # the tests of the page alone are reported as skipped
            pass
        except Exception as error:
            self._failure = error

    def _watch(self, browser: Chrome) -> None:
        while not self._ends.wait(0.3):
            if link := browser.execute_script(LINK.format(name=f"{self._demo.name}/rl")):
                open_page(browser, link)
                break
        while not self._ends.wait(0.3):
            self.titles[browser.title] = None
            self.engines.add(browser.execute_script(TEXT.format(part="engines")))


@contextmanager
def watching(demo: Path, profile: Path) -> Iterator[PageWatcher]:
    """Serves a demo's live page, and looks at it while the block runs; without Chromium nobody looks."""
    with serving(demo) as server:
        watcher = PageWatcher(demo, server.url, profile)
        try:
            yield watcher
        finally:
            watcher.close()
