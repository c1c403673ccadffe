"""Large samples, for tests of memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_pipeline.types import Message, Sample


def noise_samples(count: int) -> Iterator[Sample]:
    """Yields samples of a megabyte each."""
    turns = (Message(role="user", content="What?"), Message(role="assistant", content="1"))
    for number in range(count):
        noise = np.random.default_rng(number).bytes(1_048_576)
        yield Sample(id=f"p/{number}", source="p", messages=turns, images=(noise,), answer="1")
