"""Megatron-Core without CUDA: what is replaced, and that nothing changes on machines with CUDA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_omr.config import ParallelConfig
from tests.helpers.ranks import init_ranks, run_ranks


def test_nothing_changes_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import ModuleType

    from megatron_omr import cpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cpu, "_use_own_adam", lambda: None)  # of a Megatron that is not imported here
    factories = torch.zeros, torch.arange, torch.Tensor.cuda, torch.cuda.current_device, torch.compile
    executed: list[ModuleType] = []
    module = ModuleType("stand_in")
    cpu.prepared(executed.append)(module)
    assert executed == [module]
    assert (
        torch.zeros,
        torch.arange,
        torch.Tensor.cuda,
        torch.cuda.current_device,
        torch.compile,
    ) == factories
    assert cpu.transformer_overrides() == {}
    assert (cpu.device(), cpu.distributed_backend()) == ("cuda", "nccl")


def test_broken_transformer_engine_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron-Core's import would end in a traceback about a missing symbol."""
    from megatron_omr import cpu

    package = tmp_path / "transformer_engine"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('undefined symbol:\\n cublasLt')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "transformer_engine", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"\(OSError: undefined symbol: cublasLt\).*pip uninstall"):
        cpu.prepared(lambda module: None)(sys)


def gpu_of(num_gpus: int, **env: str) -> int:
    from megatron_omr.cpu import choose_gpu

    return choose_gpu(env, num_gpus)


def test_each_rank_has_the_gpu_of_its_number_on_the_machine() -> None:
    """Not of its number in the run: on the second of two machines with 6 ranks each, rank 6 has GPU 0 of 8."""
    assert gpu_of(8, RANK="6", LOCAL_RANK="0", LOCAL_WORLD_SIZE="6") == 0
    assert [gpu_of(2, LOCAL_RANK=rank, LOCAL_WORLD_SIZE="2") for rank in "01"] == [0, 1]
    assert gpu_of(1) == 0  # an actor of Ray
    its_own = {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4", "SLURM_STEP_NUM_TASKS": "8"}
    assert gpu_of(1, **its_own) == 0  # a task with a GPU of its own


@pytest.mark.parametrize("local_rank", ["0", "1"])
def test_more_ranks_than_gpus_is_refused_on_every_rank(local_rank: str) -> None:
    with pytest.raises(ValueError, match=r"^2 ranks .*visible GPUs: 1,.*CUDA_VISIBLE_DEVICES="):
        gpu_of(1, LOCAL_RANK=local_rank, LOCAL_WORLD_SIZE="2", SLURM_STEP_NUM_TASKS="1")


def test_importing_megatron_too_early_is_an_error(tmp_path: Path) -> None:
    package = tmp_path / "megatron" / "core"  # a stand-in: importing the real one takes long
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    code = "import megatron.core; from megatron_omr import cpu; cpu.check_prepared()"
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "import megatron_omr first" in done.stderr


def test_sizes_are_not_counted_on_a_machine_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_omr import cpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=''"), cpu.sizes_only():
        pass


@pytest.mark.heavy
@pytest.mark.parametrize(
    "check", ["devices", "contexts", "compile", "generators", "types", "engine", "adam", "sizes"]
)
def test_torch_after_installation(check: str) -> None:
    run_ranks(_CHECKS[check], 1)


def _check_devices() -> None:
    assert torch.zeros(2, device="cuda", pin_memory=True).device.type == "cpu"
    assert torch.empty_like(torch.ones(2), device=torch.device("cuda")).device.type == "cpu"
    assert torch.arange(3, device="meta").device.type == "meta"
    assert torch.cuda.current_device() == torch.device("cpu")
    assert torch.cuda.current_stream() is None and torch.cuda.synchronize() is None
    x = torch.ones(2)
    assert x.cuda() is x


def _check_contexts() -> None:
    """transformers builds models in such a context, which must reach the replaced factories."""
    for factory in (lambda: torch.arange(3), lambda: torch.zeros(2), lambda: torch.tensor([1.0])):
        with torch.device("meta"):
            assert factory().device.type == "meta"


def _check_compile() -> None:
    import megatron.core.fusions.fused_bias_swiglu as fused
    from megatron.core import jit

    assert jit.jit_fuser is jit.noop_decorator
    assert torch.compile.__name__ == "compile"
    assert fused.swiglu.__module__ == fused.__name__  # a plain function


def _check_generators() -> None:
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    init_ranks(ParallelConfig())
    tracker = get_cuda_rng_tracker()
    states = tracker.get_states()
    outside = torch.get_rng_state()
    with tracker.fork():
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), outside)
    with tracker.fork():
        second = torch.rand(3)
    assert not torch.equal(first, second)
    tracker.set_states(states)
    with tracker.fork():
        assert torch.equal(torch.rand(3), first)
    with pytest.raises(KeyError, match="no RNG state"), tracker.fork("unknown"):
        pass


def _check_types() -> None:
    """CUDA's type names are seen while the optimizer compares them, and at no other time."""
    from megatron_omr import cpu

    assert cpu._with_cuda_type_names(lambda: torch.ones(1).type())() == "torch.cuda.FloatTensor"
    assert torch.ones(1).type() == "torch.FloatTensor"
    assert cpu._with_cuda_type_names(lambda: torch.ones(1).type(torch.int32).dtype)() == torch.int32


def _check_engine() -> None:
    """Megatron's choices do not depend on a Transformer Engine that lies about: it needs CUDA."""
    from megatron.core.extensions import transformer_engine as extension

    assert sys.modules["transformer_engine"] is None
    assert not extension.HAVE_TE


def _check_adam() -> None:
    """Without a fused Adam, Megatron's own choice is torch's, and resuming fails an assertion; also with CUDA."""
    import megatron.core.optimizer as package
    from megatron.core.optimizer import distrib_optimizer

    from megatron_omr import cpu
    from megatron_omr.fallbacks.adam import GroupStepAdam

    assert package.Adam is distrib_optimizer.Adam is GroupStepAdam
    package.Adam = distrib_optimizer.Adam = torch.optim.AdamW
    cpu._use_own_adam()
    assert package.Adam is torch.optim.AdamW  # a fused one stays
    distrib_optimizer.HAVE_APEX_OR_TE = False
    cpu._use_own_adam()
    assert package.Adam is distrib_optimizer.Adam is GroupStepAdam and distrib_optimizer.HAVE_APEX_OR_TE


def _check_sizes() -> None:
    """A rank of a fake world of 64 builds on the meta device; afterwards everything is as before."""
    import torch.distributed as dist

    from megatron_omr import cpu, parallel

    for _ in range(2):
        with cpu.sizes_only():
            ranks = parallel.initialize(
                ParallelConfig(tp=2, pp=4), rank=17, world_size=64, init_method="fake://", seed=0
            )
            assert (ranks.tp_rank, ranks.pp_rank, ranks.dp_rank, dist.get_backend()) == (1, 1, 0, "fake")
            assert torch.zeros(2, device="cuda").device == torch.cuda.current_device() == torch.device("meta")
            types = cpu._with_cuda_type_names(lambda: torch.ones(1, device="meta").bfloat16().type())
            assert types() == "torch.cuda.BFloat16Tensor"
            parallel.shutdown()
    assert cpu.device() == torch.zeros(2, device="cuda").device.type == "cpu"


_CHECKS = {
    "engine": _check_engine,
    "adam": _check_adam,
    "devices": _check_devices,
    "contexts": _check_contexts,
    "compile": _check_compile,
    "generators": _check_generators,
    "types": _check_types,
    "sizes": _check_sizes,
}
