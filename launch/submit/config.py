"""The file of a cluster: a small TOML file of the user's, read into a frozen dataclass (standard library only)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from data_pipeline.config import check_at_least

C = TypeVar("C")

TIME = re.compile(r"(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2})")
"""How Slurm writes a time limit: minutes, minutes:seconds, hours:minutes:seconds, or one of these after days-hours."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET = re.compile(r"(?i)(key|token|secret|password)$")


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """The resources that a job asks Slurm for."""

    account: str = ""
    partition: str = ""
    """Partition of jobs with GPUs, and of all where cpu_partition is empty; empty takes the cluster's default."""
    cpu_partition: str = ""
    """Partition of `data` and `convert`, which use no GPU."""
    qos: str = ""
    time: str = "24:00:00"
    """Time limit of a job, as sbatch takes it. A run that needs longer saves, and its job goes back to the queue."""
    gpus_per_node: int = 0
    """GPUs of a node: each is a rank of SFT, a trainer or part of an engine. 0: the cluster has none."""
    tasks_per_node: int = 0
    """Where there are no GPUs: ranks of SFT, or trainers and engines, of a node."""
    cpus_per_node: int = 0
    """Cores of a node, shared evenly by its tasks; 0 asks for no number."""
    mem: str = ""
    """Memory of a node, such as "0" for all of it; empty asks for no amount."""
    signal_seconds: int = 600
    """Seconds before the time limit at which the run is told to save: those of a step and a checkpoint, and more."""
    requeues: int = 20
    """Times that a job may go back to the queue after its time was over."""
    parameters: dict[str, str | int | bool] = field(default_factory=dict)
    """More parameters of sbatch by name: exclusive = true, constraint = "h100"."""

    def __post_init__(self) -> None:
        check_at_least(self, "slurm.", gpus_per_node=0, tasks_per_node=0, cpus_per_node=0)
        check_at_least(self, "slurm.", signal_seconds=1, requeues=0)
        if not TIME.fullmatch(self.time):
            raise ValueError(
                f'slurm.time={self.time!r} is no time of Slurm; write "04:00:00" or "2-00:00:00"'
            )
        if self.signal_seconds >= self.seconds:
            raise ValueError(
                f"slurm.signal_seconds={self.signal_seconds} must be less than slurm.time={self.time!r}, which are "
                f"{self.seconds} seconds; lower it, or raise the limit"
            )
        if self.gpus_per_node and self.tasks_per_node:
            raise ValueError(
                f"slurm.tasks_per_node={self.tasks_per_node} is for clusters without GPUs: with "
                f"slurm.gpus_per_node={self.gpus_per_node} a node has a rank for each GPU; leave it out"
            )

    @property
    def seconds(self) -> int:
        """Returns the time limit in seconds."""
        days, dash, rest = self.time.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        if dash:
            hours, minutes, seconds = [*parts, 0, 0][:3]
        elif len(parts) == 3:
            hours, minutes, seconds = parts
        else:
            hours, (minutes, seconds) = 0, [*parts, 0][:2]
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


@dataclass(frozen=True, kw_only=True)
class ContainerConfig:
    """A container that tasks run in, through pyxis and enroot."""

    image: str = ""
    """Image as srun's --container-image takes it; empty: no container."""
    mounts: tuple[str, ...] = ()
    """FROM:TO or FROM:TO:FLAGS; `folder` and the run's folder are mounted anyway."""

    def __post_init__(self) -> None:
        for mount in self.mounts:
            if not re.fullmatch(r"[^:,]+(:[^:,]+){1,2}", mount):
                raise ValueError(f"container.mounts: {mount!r} must be FROM:TO or FROM:TO:FLAGS")
        if self.mounts and not self.image:
            raise ValueError("container.mounts is set without container.image; set the image, or drop mounts")


@dataclass(frozen=True, kw_only=True)
class SshConfig:
    """The login node of a cluster that this machine does not belong to."""

    host: str = ""
    """Name or address; empty: this machine is the cluster's own, and shares its file system."""
    user: str = ""
    port: int = 22
    identity: str = ""
    """Private key; empty: those that ssh finds itself."""


@dataclass(frozen=True, kw_only=True)
class ClusterFile:
    """A place to run: this machine, or a Slurm cluster."""

    kind: Literal["local", "slurm"]
    folder: str = ""
    """Folder on the cluster that relative paths of recipes start from; empty: the current one."""
    setup: tuple[str, ...] = ()
    """Lines of bash that a job begins with: modules, an environment, secrets. By default the python of `omr launch`.
    A line that fails ends the job."""
    gpu: Literal["", "h100", "h200", "h800", "a100", "a800", "b200"] = ""
    """Kind of GPU, as in `omr plan --cluster.gpu`; with it, whether the recipe fits is checked. Empty: it is not."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of every process. They are saved with the run: no secrets."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    container: ContainerConfig = field(default_factory=ContainerConfig)
    ssh: SshConfig = field(default_factory=SshConfig)

    def __post_init__(self) -> None:
        for name in self.environment:
            if not NAME.fullmatch(name):
                raise ValueError(f"environment: {name!r} is no name of a variable")
            if SECRET.search(name):
                raise ValueError(
                    f"environment.{name}: values are saved with the run, so secrets belong elsewhere; export it in a "
                    'file of your own, and name that in setup = ["source ~/.my-secrets"]'
                )
        if self.kind == "local" and (self.ssh.host or self.container.image or self.slurm != SlurmConfig()):
            raise ValueError(
                'kind="local" runs on this machine as it is; drop [slurm], [container] and [ssh]'
            )
        if self.ssh.host and not self.folder.startswith("/"):
            raise ValueError(
                f"folder={self.folder!r} must be a full path on {self.ssh.host}: relative paths start from it there"
            )
        if self.ssh.host and not (self.setup or self.container.image):
            raise ValueError(
                f"setup is empty: say how a job on {self.ssh.host} gets a python with the packages, such as "
                'setup = ["source /path/to/venv/bin/activate"]'
            )


def read_cluster(path: Path) -> ClusterFile:
    """Returns what a cluster file says.

    Raises:
        ValueError: it is no TOML, has an unknown field (the nearest is named), or a value that is refused.
    """
    try:
        return _build(ClusterFile, tomllib.loads(path.read_text()), "")
    except ValueError as mistake:  # TOMLDecodeError is one
        raise ValueError(f"{path}: {mistake}") from None


def _build(config: type[C], table: Mapping[str, Any], section: str) -> C:
    hints, known = get_type_hints(config), {each.name: each for each in fields(config)}  # pyright: ignore
    for name in table:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {section}{near[0]}? " if near else ""
            raise ValueError(f"no field {section}{name}; {hint}there are {', '.join(known)}")
    for name, each in known.items():
        if name not in table and each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{section}{name} is missing; it is {_describe(hints[name])}")
    return config(**{name: _read(hints[name], value, f"{section}{name}") for name, value in table.items()})


def _read(hint: Any, value: Any, name: str) -> Any:
    """Returns a value of TOML as the type of its field."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        is_right = value in inner
    elif origin is tuple and isinstance(value, list):
        return tuple(_read(inner[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    elif origin is dict and isinstance(value, dict):
        return {key: _read(inner[1], item, f"{name}.{key}") for key, item in value.items()}
    elif isinstance(hint, type) and hint not in (str, int, bool) and isinstance(value, dict):
        return _build(hint, value, f"{name}.")
    else:
        is_right = type(value) in (inner if origin is UnionType else (hint,))  # exactly: True is an int, too
    if not is_right:
        raise ValueError(f"{name}={value!r} must be {_describe(hint)}")
    return value


def _describe(hint: Any) -> str:
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return " or ".join(f'"{choice}"' for choice in inner)
    if get_origin(hint) is tuple:
        return "a list of texts"
    if get_origin(hint) is dict or hint not in (str, int, bool, *([hint] if inner else [])):
        return "a table"
    names = {str: "a text", int: "a whole number", bool: "true or false"}
    return " or ".join(names[each] for each in inner or (hint,))
