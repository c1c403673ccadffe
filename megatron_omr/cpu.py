"""Lets Megatron-Core run without CUDA, over gloo. On a machine with CUDA little is changed.

The package's `__init__` wraps the import of megatron.core in `prepared`, in every process. Only callables that
would raise on a machine without CUDA are replaced, and SwiGLU, so nothing that worked before behaves differently;
Transformer Engine, which works on GPUs alone, is hidden. With CUDA, our Adam stands in where neither Transformer Engine
nor apex brings one. No other module of the project asks which hardware it runs on.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from types import ModuleType
from typing import Any, Literal, cast
from urllib.parse import parse_qs, urlparse

import torch
import torch.distributed as dist
from torch.utils._device import _device_constructors

from megatron_omr.fallbacks.adam import GroupStepAdam
from megatron_omr.fallbacks.dispatcher import patch_experts
from megatron_omr.fallbacks.swiglu import bias_swiglu

WGRAD_MODULE = "fused_weight_gradient_mlp_cuda"
"""apex' compiled module that adds a weight gradient to the buffer in the product that makes it."""
_LOCAL = (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
_prepared = False
_sizes_only = False


def device() -> str:
    """Returns the device of parameters and batches: "cuda", "cpu", or "meta" inside `sizes_only`."""
    if _sizes_only:
        return "meta"
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def sizes_only() -> Iterator[None]:
    """Makes models, gradient buffers and optimizers of any size without memory: on the meta device, in a fake world.

    `parallel.initialize` then makes this process one rank of any number, with "fake://" for the address: all sizes
    are right, and nothing is sent or computed.

    Raises:
        ValueError: there is a GPU, for which this module replaces nothing.
    """
    global _sizes_only
    if device() == "cuda":
        raise ValueError("sizes are counted without a GPU; start the command with CUDA_VISIBLE_DEVICES=''")
    _register_fake_world()
    _sizes_only = True
    try:
        yield
    finally:
        _sizes_only = False


def _register_fake_world() -> None:
    """Registers torch's process group that only knows its size, and the address "fake://"."""
    from torch.distributed.rendezvous import register_rendezvous_handler
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def rendezvous(url: str, **_: Any) -> Iterator[tuple[Any, int, int]]:
        given = {name: int(value) for name, (value,) in parse_qs(urlparse(url).query).items()}
        yield FakeStore(), given["rank"], given["world_size"]

    with contextlib.suppress(RuntimeError):  # registered before
        register_rendezvous_handler("fake", rendezvous)


def device_name() -> str:
    """Returns the name of the device, e.g. "NVIDIA H200"; "cpu" where there is no GPU."""
    return torch.cuda.get_device_name() if device() == "cuda" else "cpu"


def claim_device() -> None:
    """Makes this rank's GPU the current device: the one with its number on this machine. Without CUDA nothing is done.

    The launcher and torchrun say which in LOCAL_RANK and LOCAL_WORLD_SIZE. Under Ray both are absent, and each process
    sees its own GPU alone, as a task of Slurm may.

    Raises:
        ValueError: there are more ranks on this machine than GPUs; NCCL allows one rank on each.
    """
    if device() == "cuda":
        torch.cuda.set_device(choose_gpu(os.environ, torch.cuda.device_count()))


def choose_gpu(env: Mapping[str, str], num_gpus: int) -> int:
    """Returns the number of this rank's GPU among the visible ones; raises as claim_device."""
    local_rank, local_size = (int(env.get(name, default)) for name, default in _LOCAL)
    has_its_own = num_gpus == 1 and int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1  # e.g. by --gpus-per-task
    if has_its_own:
        return 0
    ranks = max(local_size, local_rank + 1)
    if ranks > num_gpus:
        raise ValueError(
            f"{ranks} ranks were started on this machine, visible GPUs: {num_gpus}, and each needs one of its own; "
            "start fewer processes (--processes), on more machines, or set CUDA_VISIBLE_DEVICES= to run on the CPU"
        )
    return local_rank


def pins_memory() -> bool:
    """Returns True where batches are copied to the device faster from pinned memory."""
    return device() == "cuda"


def to_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the tensors in host memory: themselves on a CPU, copies in pinned memory of those on a GPU."""
    if device() == "cpu":
        return list(tensors)
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    torch.cuda.synchronize()
    return copies


def copy_to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a copy in host memory, which is pinned where there is a GPU: copies to it and back take half the time."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pins_memory())
    return copy.copy_(tensor)


def logits_chunk_bytes() -> int:
    """Returns the float32 bytes of logits to work on at once: what a core's cache holds, or fills a GPU."""
    return 256 << 20 if device() == "cuda" else 4 << 20


def distributed_backend() -> str:
    """Returns the backend of torch's process groups on this device."""
    return {"cuda": "nccl", "cpu": "gloo", "meta": "fake"}[device()]


def open_group(store: dist.Store, *, rank: int, num_ranks: int, address: str, timeout: timedelta) -> Any:
    """Returns a group that is not torch's default one: gloo on a CPU, bound to `address`, NCCL on a GPU.

    Args:
        timeout: for all ranks to come, and then for each call, whose wait() raises RuntimeError after it.
    """
    store.set(f"rank-{rank}", "here")
    store.wait([f"rank-{other}" for other in range(num_ranks)], timeout)  # NCCL would wait without end
    if device() == "cuda":
        # read in the constructor; otherwise a call that runs out of time ends the process
        os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
        nccl = dist.ProcessGroupNCCL.Options()
        nccl._timeout = timeout
        group = dist.ProcessGroupNCCL(store, rank, num_ranks, nccl)
        group.allreduce([torch.zeros(1, device="cuda")]).wait()  # connects now, while all are here
        return group
    gloo = dist.ProcessGroupGloo._Options()
    gloo._timeout = timeout
    gloo._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    return dist.ProcessGroupGloo(store, rank, num_ranks, gloo)


def capability() -> tuple[int, int] | None:
    """Returns the compute capability of the GPU, (9, 0) for Hopper; None where there is none."""
    return torch.cuda.get_device_capability() if device() == "cuda" else None


def cuda_version() -> tuple[int, ...]:
    """Returns the version of CUDA that torch was built with, (13, 0); () for a CPU build."""
    return tuple(map(int, (torch.version.cuda or "").split("."))) if torch.version.cuda else ()


def fuses_weight_gradients(choice: Literal["auto", "on", "off"]) -> bool:
    """Returns whether weight gradients are added to the gradient buffer by the product that makes them.

    Raises:
        ValueError: they are to be, and the module that can do so is missing.
    """
    found = device() == "cuda" and importlib.util.find_spec(WGRAD_MODULE) is not None
    if choice == "on" and not found:
        reason = "there is no GPU" if device() == "cpu" else f"the module {WGRAD_MODULE} of apex is not built"
        raise ValueError(
            f"compute.wgrad_fusion=on, and {reason}; build apex from github.com/NVIDIA/apex with --cuda_ext "
            "(not `pip install apex`), or use compute.wgrad_fusion=auto"
        )
    return found and choice != "off"


def transformer_overrides() -> dict[str, Any]:
    """Returns the fields of TransformerConfig that a machine without CUDA needs; none with CUDA."""
    if device() == "cuda":
        return {}
    return dict(
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        cross_entropy_loss_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        batch_p2p_comm=False,
        # freeing a sent tensor is safe behind an NCCL stream; gloo may still be reading it
        deallocate_pipeline_outputs=False,
    )


def check_prepared() -> None:
    """Checks that Megatron-Core can run on this machine.

    Raises:
        RuntimeError: megatron.core was imported before this package, too early to prepare for it.
    """
    if device() == "cpu" and not _prepared:
        raise RuntimeError("megatron.core was imported before megatron_omr; import megatron_omr first")


def prepared(exec_module: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    """Wraps the loader's `exec_module` of megatron.core: prepares a machine without CUDA before and after it."""

    def run(module: ModuleType) -> None:
        global _prepared
        if device() == "cuda":
            _check_transformer_engine()
            exec_module(module)
            _use_own_adam()
            return
        _hide_transformer_engine()
        _replace_torch_cuda()
        _silence_warnings()
        with _compiling_off():
            exec_module(module)
        _patch_rng()
        _use_own_adam()
        _use_cuda_type_names()
        _use_own_swiglu()
        patch_experts()
        _prepared = True

    return run


def _check_transformer_engine() -> None:
    """Raises ValueError where Transformer Engine is installed and its import fails in a way Megatron does not expect.

    Megatron-Core takes an ImportError for "not installed"; anything else ends its own import in a traceback.
    """
    if importlib.util.find_spec("transformer_engine") is None:
        return
    error = find_import_error("transformer_engine.pytorch")
    if error is not None and not isinstance(error, ImportError):
        raise ValueError(
            f"Transformer Engine is installed and does not work ({describe(error)}), and Megatron-Core cannot be "
            "imported beside it; repair it, or run `pip uninstall transformer-engine`"
        )


def find_import_error(module: str) -> Exception | None:
    """Returns what the import of a package raises, if it does."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken install raises nearly anything: missing symbols, cuDNN, driver
        return error
    return None


def describe(error: Exception) -> str:
    """Returns an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _hide_transformer_engine() -> None:
    """Makes Transformer Engine absent for this process: its layers need CUDA, and a broken one stops Megatron."""
    if "transformer_engine" not in sys.modules:
        sys.modules["transformer_engine"] = cast(ModuleType, None)  # importing it is an ImportError


def _replace_torch_cuda() -> None:
    """Makes "cuda" mean the CPU: current device, synchronisation, transfers, literal devices, generator."""
    torch.cuda.current_device = lambda: torch.device(device())
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.current_stream = lambda device=None: None  # called by 0.19; only CUDA graphs use the result
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    # fills torch's cache of factories while they are the originals: `with torch.device(...)` compares identities
    _device_constructors()
    for name in ("zeros", "ones", "empty", "tensor", "full", "arange", "empty_like", "zeros_like"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.cuda.manual_seed = lambda seed: torch.default_generator.manual_seed(seed)
    # one function object per name: dynamo refuses the same object under two
    torch.cuda.get_rng_state = lambda device="cuda": torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, device="cuda": torch.set_rng_state(state)
    torch.cuda.random.get_rng_state = lambda device="cuda": torch.get_rng_state()
    torch.cuda.random.set_rng_state = lambda state, device="cuda": torch.set_rng_state(state)


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = torch.device(device())
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return create


def _silence_warnings() -> None:
    """Silences Megatron's warnings about CUDA, Transformer Engine and apex, which every rank would repeat."""
    warnings.filterwarnings("ignore", module=r"megatron\.core")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


@contextlib.contextmanager
def _compiling_off() -> Iterator[None]:
    """Turns torch.compile off while Megatron-Core decorates functions at import, and its jit fuser afterwards."""
    compile_ = torch.compile
    torch.compile = lambda model=None, **kwargs: model if model is not None else (lambda fn: fn)
    try:
        yield
        from megatron.core import jit

        jit.disable_jit_fuser()
    finally:
        torch.compile = compile_


def _patch_rng() -> None:
    import megatron.core.tensor_parallel.random as random

    random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)

    class CpuRngStatesTracker(random.CudaRNGStatesTracker):
        """Forks the CPU generator; the original warns when that generator advances, which is intended here."""

        @contextlib.contextmanager
        def fork(self, name: str = random._MODEL_PARALLEL_RNG_TRACKER_NAME) -> Iterator[None]:
            if name not in self.states_:
                raise KeyError(f"no RNG state {name!r}; have {sorted(self.states_)}")
            outer = torch.get_rng_state(), self._current_state_name
            torch.set_rng_state(self.states_[name])
            self._current_state_name = name
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                torch.set_rng_state(outer[0])
                self._current_state_name = outer[1]

    random.CudaRNGStatesTracker = CpuRngStatesTracker


def _use_own_adam() -> None:
    """Puts our Adam in FusedAdam's place where neither Transformer Engine nor apex has brought that.

    Megatron would take torch's, whose state the distributed optimizer cannot load before the first step.
    """
    import megatron.core.optimizer as package
    from megatron.core.optimizer import distrib_optimizer

    if not distrib_optimizer.HAVE_APEX_OR_TE:
        package.Adam = distrib_optimizer.Adam = GroupStepAdam
        package.USING_PYTORCH_OPTIMIZER = False
        distrib_optimizer.HAVE_APEX_OR_TE = distrib_optimizer.USING_APEX_OPTIMIZER = True


def _use_own_swiglu() -> None:
    """Puts our SwiGLU in the place of Megatron's, which is slow and inexact without the compiler it is written for."""
    from megatron.core.transformer import mlp

    mlp.bias_swiglu_impl = bias_swiglu


def _use_cuda_type_names() -> None:
    """Lets the optimizer see CUDA's type names where it compares type names."""
    from megatron.core.optimizer import distrib_optimizer, optimizer

    for cls in (distrib_optimizer.DistributedOptimizer, optimizer.Float16OptimizerWithFloat16Params):
        cls.__init__ = _with_cuda_type_names(cls.__init__)
    optimizer.clip_grad_by_total_norm_fp32 = _with_cuda_type_names(optimizer.clip_grad_by_total_norm_fp32)


def _with_cuda_type_names(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `fn`: while it runs, Tensor.type() returns "torch.cuda.FloatTensor" for a CPU or meta tensor."""
    original = torch.Tensor.type

    def cuda_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        out = original(self, *args, **kwargs)
        return f"torch.cuda.{out.rpartition('.')[2]}" if isinstance(out, str) else out

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        torch.Tensor.type = cuda_type
        try:
            return fn(*args, **kwargs)
        finally:
            torch.Tensor.type = original

    return run
