"""Fixtures shared by all tests: a tiny random Qwen2.5-VL in Hugging Face's format."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir()
)  # what tests write is kept for three sessions
os.environ.setdefault("OMP_NUM_THREADS", "1")  # ranks share the cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # or other tests would leave engines no time beside them

import pytest

from data_pipeline.scratch import scratch_folder
from tests.helpers.browser import start_browser
from tests.helpers.side_by_side import check_shared, name_scope, order_items
from tests.helpers.slurm_cluster import SlurmCluster, skip_without_slurm, start_slurm

_scratch = ExitStack()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part", choices=("light", "heavy"), help="only tests that may run side by side, or only the others"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the other part of the tests; `-m` and `-k` stay free for a selection of one's own."""
    check_shared(items)
    parts: dict[str, list[pytest.Item]] = {"light": [], "heavy": []}
    for item in items:
        alone = item.get_closest_marker("heavy") or item.get_closest_marker("gpu")
        parts["heavy" if alone else "light"].append(item)
    if part := config.getoption("part"):
        items[:] = order_items(parts.pop(part))
        config.hook.pytest_deselected(items=[item for others in parts.values() for item in others])


@pytest.hookimpl(optionalhook=True)  # GPU machines may lack pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Makes `--dist loadfile` keep also those files together that share what is costly."""
    from xdist.scheduler import LoadFileScheduling

    class SharingScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return name_scope(nodeid)

    return SharingScheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_configure() -> None:
    """Gives the session a temporary folder, as `omr` does for a command."""
    _scratch.enter_context(scratch_folder())


def pytest_unconfigure() -> None:
    _scratch.close()


@pytest.fixture(scope="session")
def tiny_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untied, random weights, with biases and norms far from 0 and 1 so that every mapping mistake shows."""
    return make_tiny(tmp_path_factory.mktemp("tiny"), tied=False)


@pytest.fixture(scope="session")
def tiny_tied_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Qwen3-VL, two of whose language layers take features of the vision tower."""
    return make_tiny(tmp_path_factory.mktemp("qwen3"), tied=True, family="qwen3_vl", head_dim=48)


@pytest.fixture(scope="session")
def tiny_moe_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied Qwen3-VL with experts in all layers."""
    sizes = {"head_dim": 48, "deepstack_visual_indexes": (0, 1)}
    return make_tiny(tmp_path_factory.mktemp("moe"), tied=False, family="qwen3_vl_moe", **sizes)


@pytest.fixture(scope="session")
def tiny_mixed_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Qwen3-VL whose second layer has an MLP, and the others experts."""
    sizes = {"head_dim": 48, "deepstack_visual_indexes": (0, 1), "mlp_only_layers": (1,)}
    return make_tiny(tmp_path_factory.mktemp("mixed"), tied=True, family="qwen3_vl_moe", **sizes)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """Headless Chromium; tests that use it are skipped where it is not installed."""
    chrome = start_browser(tmp_path_factory.mktemp("profile"))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="session")
def slurm_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A real Slurm of two nodes, which see every test's tmp_path; skipped where it cannot run."""
    skip_without_slurm()
    with start_slurm(tmp_path_factory.getbasetemp()) as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_session: SlurmCluster) -> Iterator[SlurmCluster]:
    """The session's Slurm; the test's jobs are cancelled, and nodes that it crashed are started again."""
    yield slurm_session
    slurm_session.reset()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints at the end how many tests were left out, and why."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.items():
        terminalreporter.write_line(f"left out: {count} test{'s' * (count > 1)}: {reason}", yellow=True)


def make_tiny(out: Path, *, tied: bool, **sizes: Any) -> Path:
    import torch
    from transformers import AutoModelForImageTextToText

    from megatron_omr.tiny import TinyConfig, create_tiny_model, publish_experts

    texts = [
        f"What is {a} plus {b}? <think>{a}+{b}={a + b}</think><answer>{a + b}</answer>"
        for a in range(20)
        for b in range(20)
    ]
    create_tiny_model(out, texts, config=TinyConfig(tied=tied, **sizes))
    model = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(0.3 * noise + ("norm" in name or "ln_q" in name))
            else:
                width = parameter.size(-1) if ".experts." in name else parameter[0].numel()
                parameter.copy_(noise / width**0.5)
    model.save_pretrained(out)
    publish_experts(out)
    return out
