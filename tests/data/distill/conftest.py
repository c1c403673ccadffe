"""The teacher that the quick tests ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.adding_teacher import AddingTeacher


@pytest.fixture
def teacher() -> Iterator[AddingTeacher]:
    with AddingTeacher() as server:
        yield server
