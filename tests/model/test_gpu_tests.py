"""What the tests for a GPU run on the CPU of its machine runs here, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.test_training import on_cpu

pytestmark = [pytest.mark.heavy, pytest.mark.slow]


def test_cpu_half_of_the_checkpoint_test_runs(
    tiny_hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_CPU_SCRIPT", str(tmp_path / "on_cpu.py"))
    on_cpu(f"train(Path({str(tiny_hf)!r}), LOCAL, 2, {str(tmp_path)!r})")
    checkpoint = str(tmp_path / "step-00000002")
    on_cpu(f"run_ranks(load, 1, {str(tiny_hf)!r}, {checkpoint!r}, LOCAL) == [True]")
