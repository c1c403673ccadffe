"""The live page in headless Chromium, while a run writes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from launch.watch.server import WatchServer
from tests.helpers.browser import contrast, open_page, text_colors, texts_outside
from tests.helpers.live_run import LiveRun, serving
from tests.helpers.processes import wait_until

CARDS = "return [...document.querySelectorAll('.gallery h3')].map(each => each.textContent)"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> LiveRun:
    run = LiveRun(tmp_path_factory.mktemp("watch") / "run")
    run.start(warn_mismatch=1e-9, max_mismatch=0.1)
    for step in range(20):
        run.step(step)
    run.report(20)
    return run


@pytest.fixture(scope="module")
def server(live: LiveRun) -> Iterator[WatchServer]:
    with serving(live.folder, live.folder / "not there yet") as server:
        yield server


def text_of(browser, part: str) -> str:
    return browser.execute_script(f"return document.querySelector('[data-part={part}]')?.textContent ?? ''")


def test_page_follows_the_run_without_a_reload_or_an_error(
    browser, live: LiveRun, server: WatchServer
) -> None:
    from selenium.webdriver import ActionChains

    open_page(browser, server.url)
    browser.execute_script("document.querySelector('a.run').click()")
    wait_until(lambda: browser.current_url == f"{server.url}run/0/")
    browser.execute_script("window.isSame = true")
    for step in range(20, 23):
        live.step(step, reward=step / 100 + 0.001)
        live.report(step + 1)
        wait_until(lambda step=step: f"0.{step}1reward" in text_of(browser, "state"))
        wait_until(lambda step=step: f"Steps 0 to {step}." in text_of(browser, "charts"))
    assert browser.execute_script(CARDS) == ["Step 22", "Step 21", "Step 20"]
    images = "return [...document.images].map(each => each.complete ? each.naturalWidth : 0)"
    wait_until(lambda: len(widths := browser.execute_script(images)) == 6 and min(widths) > 0)

    card = browser.find_element("css selector", ".card")  # who reads an answer keeps it
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", card)
    ActionChains(browser).move_to_element(card).perform()
    live.step(23)
    newer = browser.find_element("id", "newer")
    wait_until(newer.is_displayed)
    assert browser.execute_script(CARDS)[0] == "Step 22"
    browser.execute_script("arguments[0].click()", newer)
    wait_until(lambda: browser.execute_script(CARDS)[0] == "Step 23")

    live.start(first_step=10)  # resumed from a checkpoint
    wait_until(lambda: "Steps 0 to 9." in text_of(browser, "charts"))
    for step in range(10, 23):
        live.step(step)
    wait_until(lambda: "Steps 0 to 22." in text_of(browser, "charts"))
    assert browser.execute_script("return [window.isSame, window.pwned ?? null]") == [True, None]
    assert browser.get_log("browser") == []


def test_page_says_when_it_is_cut_off(browser, server: WatchServer) -> None:
    open_page(browser, f"{server.url}run/0/")
    conditions = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)
    wait_until(lambda: "what is shown is old" in browser.find_element("id", "offline").text)
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", conditions | {"offline": False})
    wait_until(lambda: not browser.find_element("id", "offline").is_displayed())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_pages_fit_and_can_be_read(browser, server: WatchServer, width: int, scheme: str) -> None:
    for path in ("", "run/0/", "run/1/"):
        open_page(browser, server.url + path, width=width, scheme=scheme)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert texts_outside(browser) == []
        pairs = {tuple(pair) for pair in text_colors(browser)}
        worst = min((contrast(front, back), front, back) for front, back in pairs)
        assert worst[0] >= 4.5, worst
