"""Opens pages in headless Chromium and measures them; parses them without a browser."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


def start_browser(profile: Path) -> Chrome:
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("the pages were not opened in a browser: install chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        *(
            "headless",
            "no-sandbox",
            "disable-gpu",
            "disable-quic",
            "no-first-run",
            "disable-component-update",
        ),
        *(
            "disable-background-networking",
            "disable-sync",
            "disable-dev-shm-usage",
            f"user-data-dir={profile}",
        ),
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    chrome.set_page_load_timeout(60)
    return chrome


def open_page(browser, page: Path | str, *, width: int = 1280, scheme: str = "light") -> None:
    browser.get_log("browser"), browser.get_log("performance")  # forget what came before
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page if isinstance(page, str) else page.as_uri())


def texts_outside(browser) -> list[str]:
    """Returns the texts of charts that reach out of their boxes."""
    return browser.execute_script("""
        return [...document.querySelectorAll('svg text')].filter(text => {
          const box = text.getBoundingClientRect(), room = text.closest('figure').getBoundingClientRect();
          return box.left < room.left || box.right > room.right || box.bottom > room.bottom;
        }).map(text => text.closest('figure').id + ': ' + text.textContent)""")


def text_colors(browser) -> list[tuple[str, str]]:
    """Returns for every text of the page and its charts its colour and that of its background."""
    return browser.execute_script("""
        const css = (e, name) => getComputedStyle(e).getPropertyValue(name);
        const ground = e => e.closest('figure, .card, .tile, .notes') || document.body;
        const texts = 'svg text, p, figcaption, td, th, b, .meta, h1, h2, h3, a, summary, li';
        return [...document.querySelectorAll(texts)]
          .map(e => [css(e, e.closest('svg') ? 'fill' : 'color'), css(ground(e), 'background-color')])""")


def contrast(front: str, back: str) -> float:
    """Returns WCAG's contrast ratio of two colours."""

    def luminance(color: str) -> float:
        channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(front), luminance(back)), reverse=True)
    return (high + 0.05) / (low + 0.05)


class ParsedPage(HTMLParser):
    """The ids, tags and texts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids |= {value for name, value in attrs if name == "id" and value}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
