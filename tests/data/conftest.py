"""One Ray for all tests of data: its start takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from data_pipeline.ray_session import start_ray, stop_ray
from tests.helpers.hosts import ROOT


@pytest.fixture(scope="package")
def ray_session() -> Iterator[None]:
    """Ray on this machine, whose workers find the tests' modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        start_ray()
    yield
    stop_ray()
