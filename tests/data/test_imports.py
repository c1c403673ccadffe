"""Imports without garbage collection."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from data_pipeline.imports import collection_paused


@pytest.fixture(autouse=True)
def undisturbed() -> Iterator[None]:
    yield
    gc.enable()


@pytest.mark.parametrize("was_on", [True, False])
def test_collection_pauses_and_what_was_imported_is_not_looked_at_again(was_on: bool):
    (gc.enable if was_on else gc.disable)()
    before = gc.get_freeze_count()
    with pytest.raises(ImportError), collection_paused():
        assert not gc.isenabled()
        kept = [[number] for number in range(1000)]
        import no_such_package  # pyright: ignore[reportMissingImports] # noqa: F401
    assert gc.isenabled() == was_on
    assert gc.get_freeze_count() >= before + len(kept)
    assert not any(found is kept for found in gc.get_objects())
