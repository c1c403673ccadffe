"""Where samples come from: one small adapter per corpus, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from data_pipeline.digits import digit_samples
from data_pipeline.types import Sample

SOURCES: dict[str, Callable[..., Iterator[Sample]]] = {"digits": digit_samples}
