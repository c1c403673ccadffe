"""What the server answers, and to whom, over real connections."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html import escape
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from PIL import Image

from launch.watch.server import WatchServer, watch
from tests.helpers.live_run import LiveRun, serving
from tests.helpers.report_run import HOSTILE, sft_row, write_json, write_lines


class Got(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def get(server: WatchServer, path: str, **headers: str) -> Got:
    """Asks for a path behind the key; one that begins with / is asked for as it is."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", path if path.startswith("/") else f"/{server.key}/{path}", headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return Got(answer.status, dict(answer.getheaders()), body)


def changes(server: WatchServer, path: str, since: int = -1) -> tuple[int, dict[str, str]]:
    found = json.loads(get(server, f"{path}parts?since={since}").body)
    return found["revision"], found["parts"]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> LiveRun:
    run = LiveRun(tmp_path_factory.mktemp("watch") / "run")
    run.start(warn_mismatch=0.01, max_mismatch=0.1)
    for step in range(8):
        run.step(step)
    run.report(8)
    return run


@pytest.fixture(scope="module")
def server(live: LiveRun) -> Iterator[WatchServer]:
    with serving(live.folder) as server:
        yield server


def test_only_the_address_with_its_key_and_own_name_is_answered(server: WatchServer) -> None:
    assert urlsplit(server.url).hostname == "127.0.0.1" and len(server.key) >= 20
    for path in ("/", "/parts", "/run/0/", f"/{server.key[:-1]}/", f"/{'x' * len(server.key)}/"):
        assert get(server, path).status == 404
    for name in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "[::1", ""):
        assert get(server, "", Host=name).status == 403, name
    for name in ("localhost:9000", "127.0.0.1:9000", "127.0.0.1", "[::1]:9000"):  # also through a tunnel
        assert get(server, "", Host=name).status == 200, name


def test_server_for_the_network_answers_to_its_names_and_addresses(tmp_path: Path) -> None:
    with serving(tmp_path, host="0.0.0.0") as server:
        assert get(server, "", Host=f"10.1.2.3:{server.port}").status == 200
        assert get(server, "", Host="evil.example").status == 403


@pytest.mark.parametrize(
    "path",
    [
        *(
            "run/1/",
            "run/-1/",
            "run/x/",
            "run/0",
            "run/0/nothing",
            "run/0/config.json",
            "nothing",
            "server.py",
        ),
        *("run/0/../../../etc/passwd", "..%2f..%2fetc/passwd", "run/0/image/../../config.json", "./", "//"),
        *(
            "run/0/image/7/0/1",
            "run/0/image/7/2/0",
            "run/0/image/-1/0/0",
            "run/0/image/7/0/0/0",
            "run/0/image/7/0",
        ),
        f"run/0/image/{'9' * 12}/0/0",
    ],
)
def test_there_is_nothing_but_pages_and_their_images(server: WatchServer, path: str) -> None:
    assert get(server, "run/0/").status == 200
    assert get(server, path).status == 404


def test_images_are_those_of_the_questions_on_the_page(server: WatchServer) -> None:
    text = changes(server, "run/0/")[1]["answers"]
    addresses = re.findall(r'src="([^"]+)"', text)
    assert len(addresses) == 6
    for address in addresses:
        got = get(server, f"run/0/{address}")
        assert got.headers["Content-Type"] == "image/png"
        assert Image.open(io.BytesIO(got.body)).size[0] > 20


def test_answers_forbid_scripts_and_strangers(server: WatchServer) -> None:
    for path in ("", "run/0/", "run/0/parts", "watch.js", "nothing"):
        headers = get(server, path).headers
        policy = dict(each.split(" ", 1) for each in headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'" and policy["script-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
        assert (
            headers["Cross-Origin-Resource-Policy"] == "same-origin"
            and headers["Cache-Control"] == "no-store"
        )
        assert "Access-Control-Allow-Origin" not in headers and "python" not in headers["Server"].lower()


def test_what_a_model_wrote_is_text(server: WatchServer) -> None:
    text = changes(server, "run/0/")[1]["answers"]
    assert escape(HOSTILE) in text.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
    assert "<script" not in text and "<img src=http" not in text
    page = get(server, "run/0/").text
    assert re.findall(r"<script[^>]*>", page) == [
        f'<script src="../../{name}.js">' for name in ("page", "watch")
    ]


def test_names_of_runs_and_engines_are_text(tmp_path: Path) -> None:
    run = tmp_path / "<script>alert(1)<"
    write_lines(run / "metrics.jsonl", [sft_row(0)])
    write_json(
        run / "status.json", {"time": 1e12, "engines": [{"number": 0, "state": "<script>", "address": "<u>"}]}
    )
    with serving(run) as server:
        for path in ("", "run/0/"):
            text = get(server, path).text
            assert "alert(1)" in text and "<script>" not in text and "<u>" not in text


def test_page_of_a_run_has_all_parts(server: WatchServer) -> None:
    revision, parts = changes(server, "run/0/")
    assert parts["title"] == "run · running 8/60"
    assert "Step 8. Phase generate for 2.0 s." in parts["state"] and "of 60" in parts["state"]
    for name in ("reward", "held-out", "length", "entropy", "mismatch", "seconds", "tokens"):
        assert f'id="chart-rl-{name}"' in parts["charts"]
    assert "warns</text>" in parts["charts"] and "stops</text>" in parts["charts"]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", parts["engines"].replace("<i></i>", ""))
    assert cells[:7] == ["generating", "8", "3", "12", "5000", "321", "10.0.0.1:4000"]
    assert "(-1)" in cells[8] and "4 ready, 16 asked" in parts["engines"]
    assert "nothing was learned &lt;b&gt;" in parts["signs"]
    assert (
        re.findall(r"<h3>Step (\d+)", parts["answers"]) == ["7", "6", "5"]
        and "accuracy 1, format 1" in parts["answers"]
    )
    assert changes(server, "run/0/", revision)[1].keys() <= {"state"}, "nothing else has changed"


def test_page_follows_new_steps_and_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MIN_POLL", "MIN_REDRAW", "REDRAW_SHARE"):
        monkeypatch.setattr(f"launch.watch.run_page.{name}", 0.0)
    live = LiveRun(tmp_path / "run", steps=5)
    with serving(live.folder) as server:
        revision, parts = changes(server, "run/0/")
        assert "waiting" in parts["state"] and "<figure" not in parts["charts"]
        live.start()
        for step in range(4):
            live.step(step)
            revision, parts = changes(server, "run/0/", revision)
            assert (
                parts["title"] == f"run · running {step + 1}/5" and f"Steps 0 to {step}." in parts["charts"]
            )
            assert f"<h3>Step {step}" in parts["answers"]
        live.start(first_step=2)
        revision, parts = changes(server, "run/0/", revision)
        assert "Steps 0 to 1." in parts["charts"] and "<h3>Step 2" not in parts["answers"]
        for step in range(2, 5):
            live.step(step)
        revision, parts = changes(server, "run/0/", revision)
        assert parts["title"] == "run · done 5/5" and "Done: 5 steps." in parts["state"]


def test_first_page_has_a_card_for_each_run_and_a_demo_stands_for_its_own(tmp_path: Path) -> None:
    demo, other = tmp_path / "demo", tmp_path / "other"
    with serving(demo, other) as server:
        assert re.findall("<h2>(.*?)</h2>", get(server, "").text) == ["demo", "other"]
        write_json(demo / "sft/config.json", {"steps": 3})
        write_lines(demo / "sft/metrics.jsonl", [sft_row(step) for step in range(3)])
        write_json(demo / "rl/config.json", {"steps": 9, "sampling": {"n": 8}})
        text = get(server, "").text
        assert re.findall("<h2>(.*?)</h2>", text) == ["demo/sft", "demo/rl", "other"]
        assert re.findall(r'class="badge (\w+)"', text) == ["done", "starting", "waiting"]
        assert "3 of 3 steps · " in text and text.count('<svg class="spark"') == 1
        number = re.findall(r'href="run/(\d+)/"', text)
        assert "demo/sft" in get(server, f"run/{number[0]}/").text
        assert "chart-sft-loss" in changes(server, f"run/{number[0]}/")[1]["charts"]


def test_large_answers_are_packed_where_the_browser_can_read_that(server: WatchServer) -> None:
    plain = get(server, "run/0/")
    packed = get(server, "run/0/", **{"Accept-Encoding": "gzip, br"})
    assert packed.headers["Content-Encoding"] == "gzip" and len(packed.body) < len(plain.body) / 3
    assert b"chart-rl-reward" in gzip.decompress(packed.body)


def test_mistakes_are_named_before_anything_is_served(tmp_path: Path, server: WatchServer) -> None:
    (tmp_path / "file").touch()
    for runs, message in (
        ([], "no run is given"),
        ([tmp_path / "file"], "is a file; give the folder of a run"),
        ([tmp_path, tmp_path], "is given twice"),
    ):
        with pytest.raises(ValueError, match=message):
            watch(runs, host="127.0.0.1", port=0, say=print)
    for host, port in (("127.0.0.1", server.port), ("127.0.0.1", 70_000), ("192.0.2.1", 0)):
        with pytest.raises(ValueError, match=f"host={host} port={port}: .*--port 0 takes a free one"):
            watch([tmp_path], host=host, port=port, say=print)


def test_server_needs_neither_torch_nor_ray() -> None:
    code = "import sys, launch.watch.server; print(sorted({'torch', 'ray', 'numpy'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.strip() in ("[]", "['numpy']")
