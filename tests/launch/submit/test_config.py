"""Cluster files: what they say is read as it is meant, and every mistake is named with the field and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.submit.config import SlurmConfig, read_cluster
from launch.submit.lookup import EXAMPLES, find_cluster

WHOLE = """
kind = "slurm"
folder = "/shared/me"
setup = ["module load cuda", "source venv/bin/activate"]
gpu = "h200"
[slurm]
account = "a"
time = "1-00:00:00"
gpus_per_node = 8
parameters = {exclusive = true, nice = 5}
[container]
image = "x.sqsh"
mounts = ["/a:/b:ro"]
[environment]
NCCL_DEBUG = "WARN"
[ssh]
host = "login"
user = "me"
"""


def read(tmp_path: Path, text: str):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return read_cluster(path)


def test_every_section_is_read(tmp_path: Path):
    cluster = read(tmp_path, WHOLE)
    assert cluster.setup == ("module load cuda", "source venv/bin/activate")
    assert cluster.slurm.parameters == {"exclusive": True, "nice": 5}
    assert (cluster.slurm.gpus_per_node, cluster.slurm.partition, cluster.slurm.seconds) == (8, "", 86_400)
    assert (cluster.container.mounts, cluster.ssh.host, cluster.gpu) == (("/a:/b:ro",), "login", "h200")
    assert cluster.environment == {"NCCL_DEBUG": "WARN"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('kind = "slurm"\n[slurm]\ngpus_per_nodes = 8', "no field slurm.gpus_per_nodes; did you mean slurm.gpus_per_n"),
        ('kind = "slurm"\nsetups = []', "no field setups; did you mean setup?"),
        ('kind = "slrum"', 'kind=\'slrum\' must be "local" or "slurm"'),
        ('folder = "/x"', 'kind is missing; it is "local" or "slurm"'),
        ('kind = "slurm"\nsetup = "module load cuda"', "setup='module load cuda' must be a list of texts"),
        ('kind = "slurm"\nsetup = [3]', "setup[0]=3 must be a text"),
        ('kind = "slurm"\n[slurm]\ngpus_per_node = "8"', "slurm.gpus_per_node='8' must be a whole number"),
        ('kind = "slurm"\n[slurm]\ngpus_per_node = true', "slurm.gpus_per_node=True must be a whole number"),
        ('kind = "slurm"\n[slurm]\nparameters = {x = [1]}', "slurm.parameters.x=[1] must be a text or a whole number"),
        ('kind = "slurm"\nslurm = 3', "slurm=3 must be a table"),
        ('kind = "slurm"\n[slurm]\ngpus_per_node = -1', "slurm.gpus_per_node=-1 must be at least 0"),
        ('kind = "slurm"\n[slurm]\ntime = "4h"', "slurm.time='4h' is no time of Slurm"),
        ('kind = "slurm"\n[slurm]\ntime = "00:10:00"', "slurm.signal_seconds=600 must be less than slurm.time"),
        ('kind = "slurm"\n[slurm]\ngpus_per_node = 8\ntasks_per_node = 8', "slurm.tasks_per_node=8 is for clusters"),
        ('kind = "slurm"\n[environment]\nWANDB_API_KEY = "x"', "environment.WANDB_API_KEY: values are saved"),
        ('kind = "slurm"\n[environment]\n"A B" = "x"', "environment: 'A B' is no name of a variable"),
        ('kind = "slurm"\n[container]\nimage = "x"\nmounts = ["/a"]', "container.mounts: '/a' must be FROM:TO"),
        ('kind = "slurm"\n[container]\nmounts = ["/a:/a"]', "container.mounts is set without container.image"),
        ('kind = "slurm"\n[ssh]\nhost = "h"', "folder='' must be a full path on h"),
        ('kind = "slurm"\nfolder = "/f"\n[ssh]\nhost = "h"', "setup is empty: say how a job on h gets a python"),
        ('kind = "local"\n[slurm]\naccount = "a"', 'kind="local" runs on this machine as it is'),
        ("kind = slurm", "Invalid value (at line 1, column 8)"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_the_file(tmp_path: Path, text: str, said: str):
    with pytest.raises(ValueError) as mistake:
        read(tmp_path, text)
    assert str(mistake.value).startswith(f"{tmp_path}/mine.toml: {said}")


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5_400), ("10:30", 630), ("04:00:00", 14_400), ("2-0", 172_800), ("1-2:30", 95_400), ("1-0:0:9", 86_409)],
)  # fmt: skip
def test_time_limits_are_read_as_slurm_reads_them(time: str, seconds: int):
    assert SlurmConfig(time=time).seconds == seconds


def test_examples_of_the_package_are_valid():
    names = {path.stem for path in EXAMPLES.glob("*.toml")}
    assert names == {"local", "slurm", "slurm_pyxis", "slurm_ssh"}
    for name in names:
        path, cluster = find_cluster(name)
        assert path.parent == EXAMPLES and cluster.kind == ("local" if name == "local" else "slurm")


def test_names_are_looked_up_in_the_users_folders_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder, partition in (("home/.config/megatron-omr", "home"), ("clusters", "here")):
        (tmp_path / folder).mkdir(parents=True)
        for name in {"home": ("a", "slurm"), "here": ("a",)}[partition]:
            text = f'kind = "slurm"\n[slurm]\npartition = "{partition}"\n'
            (tmp_path / folder / f"{name}.toml").write_text(text)
    assert find_cluster("a")[1].slurm.partition == "here"
    assert find_cluster("slurm")[1].slurm.partition == "home"
    assert find_cluster("home/.config/megatron-omr/a.toml")[1].slurm.partition == "home"
    for name, said in (
        (
            "slrm",
            "no cluster 'slrm'; did you mean 'slurm'? there are local, slurm, slurm_pyxis, slurm_ssh, a",
        ),
        ("x.toml", "--on x.toml: there is no such file; names are local,"),
        ("", "--on is missing: the name of a cluster file, or a path to one; names are local,"),
    ):
        with pytest.raises(ValueError) as mistake:
            find_cluster(name)
        assert str(mistake.value).startswith(said)
