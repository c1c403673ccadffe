"""The GPUs that plans are made for; their FLOP/s are those that training reports MFU against."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_omr.flops import peak_flops
from megatron_omr.plan.config import GpuName

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Data-sheet values of a GPU."""

    name: GpuName
    memory_gib: float  # what torch can see of it
    hbm: float  # bytes/s of its memory
    nvlink: float  # bytes/s to other GPUs of the machine, one direction

    @property
    def peak(self) -> float:
        """Dense BF16 FLOP/s."""
        peak = peak_flops(self.name.upper())
        assert peak is not None, self.name
        return peak


_ALL = (
    Gpu(name="h100", memory_gib=79.1, hbm=3.35e12, nvlink=450e9),
    Gpu(name="h200", memory_gib=139.8, hbm=4.8e12, nvlink=450e9),
    Gpu(name="h800", memory_gib=79.1, hbm=3.35e12, nvlink=200e9),
    Gpu(name="a100", memory_gib=79.1, hbm=2.04e12, nvlink=300e9),
    Gpu(name="a800", memory_gib=79.1, hbm=2.04e12, nvlink=200e9),
    Gpu(name="b200", memory_gib=178.0, hbm=8.0e12, nvlink=900e9),
)
GPUS: dict[GpuName, Gpu] = {gpu.name: gpu for gpu in _ALL}

_FP8_GPUS: dict[str, tuple[GpuName, ...]] = {
    "tensorwise": ("h100", "h200", "h800", "b200"),
    "blockwise": ("h100", "h200", "h800", "b200"),
    "mxfp8": ("b200",),
}


def check_fp8(fp8: str, gpu: GpuName) -> None:
    """Raises ValueError where a GPU does not compute in this FP8 recipe; "off" is no recipe."""
    able = _FP8_GPUS.get(fp8, tuple(GPUS))
    if gpu not in able:
        raise ValueError(
            f"compute.fp8={fp8} does not run on cluster.gpu={gpu}; use {' or '.join(able)}, or compute.fp8=off"
        )
