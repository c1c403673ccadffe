"""The size of Ray's object store follows the machine."""

import pytest

from data_pipeline.ray_session import choose_store_bytes, find_store_bytes

GIB = 2**30


@pytest.mark.parametrize(
    ("memory", "shared_memory", "store"),
    [
        (23 * GIB, 11 * GIB, 2.3 * GIB),  # a tenth of a laptop's memory
        (2_000 * GIB, 1_000 * GIB, 16 * GIB),  # as much as any step needs
        (500 * GIB, 2 * GIB, 1.6 * GIB),  # a container with a small /dev/shm
        (500 * GIB, GIB // 16, 80 * 2**20),  # Docker's own, in which Ray could not start
        (GIB // 2, GIB // 4, 80 * 2**20),
    ],
)
def test_store_fits_memory_and_shared_memory(memory: int, shared_memory: int, store: float):
    assert choose_store_bytes(memory, shared_memory) == pytest.approx(store, abs=1)


def test_store_of_this_machine_is_one_that_ray_accepts():
    assert find_store_bytes() >= 75 * 2**20
