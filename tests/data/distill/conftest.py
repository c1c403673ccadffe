"""A quick teacher that adds, and one vLLM server for all tests: its start takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.adding_teacher import AddingTeacher
from tests.helpers.model_server import ModelServer


@pytest.fixture
def teacher() -> Iterator[AddingTeacher]:
    with AddingTeacher() as server:
        yield server


@pytest.fixture(scope="package")
def server(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A vLLM server of `tiny_hf`."""
    server = ModelServer(tiny_hf, tmp_path_factory.mktemp("server") / "log.txt")
    server.wait_until_ready()
    yield server
    server.kill()
