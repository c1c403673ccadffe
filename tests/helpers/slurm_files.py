"""Writes the configuration of a private Slurm: its own munge key, ports and accounting database, nothing in /etc."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

GPUS, CPUS, MEMORY_MB = 8, 8, 64_000
"""What each node claims to have: pretended GPUs, and more CPUs and memory than this machine may have."""
CONTROLLER_PORT, DATABASE_PORT, NODE_PORT = 6817, 6819, 6818

SLURM_CONF = """\
ClusterName=tests
SlurmctldHost={controller}({controller_address})
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job is held back; its default is 120 s
AuthInfo=socket={root}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=100000
SelectType=select/cons_tres
# memory is not counted: steps that overlap share CPUs, never memory
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
# a node that does not answer for so long is down, and its jobs start anew
SlurmdTimeout=10
SlurmctldTimeout=60
KillWait=5
MinJobAge=3600
Waittime=0
MessageTimeout=10
# nodes may claim more than the machine has
SlurmdParameters=config_overrides
GresTypes=gpu
PlugStackConfig={root}/etc/plugstack.conf
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={controller_address}
AccountingStoragePort={database_port}
# with munge, this is the path of its socket
AccountingStoragePass={root}/munge.socket
"""
NODE = "NodeName={name} NodeAddr={address} CPUs={cpus} CoresPerSocket={cpus} RealMemory={memory} Gres=gpu:{gpus}\n"
PARTITION = "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 State=UP\n"
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
DbdHost={controller}
DbdAddr={controller_address}
DbdPort={database_port}
SlurmUser=root
PidFile={root}/run/slurmdbd.pid
LogFile={root}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_accounts
"""


def write_slurm_files(root: Path, controller: str, controller_address: str, nodes: Mapping[str, str]) -> None:
    """Writes root/etc for a controller and for `nodes`, name to address, and makes the folders that daemons use."""
    for name in ("etc", "run", "state", "log", "db", *(f"spool/{node}" for node in nodes)):
        (root / name).mkdir(parents=True, exist_ok=True)
    values = {
        "root": root,
        "controller": controller,
        "controller_address": controller_address,
        "controller_port": CONTROLLER_PORT,
        "database_port": DATABASE_PORT,
        "node_port": NODE_PORT,
    }
    lines = [
        NODE.format(name=name, address=address, cpus=CPUS, memory=MEMORY_MB, gpus=GPUS)
        for name, address in nodes.items()
    ]
    etc = root / "etc"
    (etc / "slurm.conf").write_text(SLURM_CONF.format(**values) + "".join(lines) + PARTITION)
    _write_private(etc / "slurmdbd.conf", SLURMDBD_CONF.format(**values).encode())
    _write_private(etc / "munge.key", secrets.token_bytes(128))
    # slurmd 22.05 loads one of these even where nothing uses it; this one starts without any cgroup mounts, too
    (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (etc / "plugstack.conf").touch()
    gpus = (f"NodeName={node} Name=gpu File={_make_gpus(root / 'gpus' / node)}\n" for node in nodes)
    (etc / "gres.conf").write_text("".join(gpus))


def _make_gpus(folder: Path) -> str:
    """Makes null devices that stand in for /dev/nvidiaN; returns them as a Slurm list."""
    folder.mkdir(parents=True)
    for number in range(GPUS):
        os.mknod(folder / f"gpu{number}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    return f"{folder}/gpu[0-{GPUS - 1}]"


def _write_private(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
