"""Which tests run one after the other in one process where pytest has several (`-n 2 --dist loadfile`).

Those of one file do, as what a file shares is made once. So do those of several files that share a session's fixture
that takes minutes, or of which a machine has one.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

SHARED = {
    "slurm_session": (
        "tests/slurm/",
        "tests/launch/submit/test_on_slurm.py",
        "tests/launch/submit/test_over_ssh.py",
    ),
    "rl_config": (
        "tests/rl_loop/test_loop.py",
        "tests/rl_loop/test_chaos.py",
        "tests/rl_loop/multi_host/test_rl.py",
    ),
}
"""Paths of the tests that use a fixture, by its name."""


def name_scope(nodeid: str) -> str:
    """Returns what the tests that must run in one process have in common: their file, or a fixture of SHARED."""
    path = nodeid.split("::", 1)[0]
    return next((name for name, paths in SHARED.items() if path.startswith(paths)), path)


def order_items(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Returns the items with the slow ones first, so that no process works on a long one when the others are done."""
    return sorted(items, key=lambda item: item.get_closest_marker("slow") is None)


def check_shared(items: Iterable[pytest.Item]) -> None:
    """Raises UsageError where a test uses a fixture of SHARED that does not list its path."""
    for item in items:
        for name in SHARED.keys() & set(getattr(item, "fixturenames", ())):
            if not item.nodeid.startswith(SHARED[name]):
                raise pytest.UsageError(
                    f"{item.nodeid} uses the fixture {name}, which every process that runs such tests makes anew: "
                    f"add its path to SHARED in tests/helpers/side_by_side.py"
                )
