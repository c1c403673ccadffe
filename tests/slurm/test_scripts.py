"""What the batch scripts give to srun, and how chain.sh refuses what it does not know; without a Slurm."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.hosts import ROOT

SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))


def start_step(script: Path, folder: Path, *words: str, **variables: str) -> list[str]:
    """Runs a batch script with an srun that prints its words, one a line; returns them."""
    srun = folder / "srun"
    srun.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
    srun.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "1", **variables}
    return subprocess.run(
        ["bash", str(script), *words], env=env, capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_pass_their_words_to_omr(script: Path, tmp_path: Path):
    words = start_step(script, tmp_path, "demo", "--run", "a folder", OMR_VENV="/venv")
    assert words == [
        *(
            "--kill-on-bad-exit=1",
            "/venv/bin/python",
            "-m",
            "launch.cli",
            script.stem,
            "demo",
            "--run",
            "a folder",
        )
    ]


def test_a_container_is_a_variable(tmp_path: Path):
    variables = {"OMR_CONTAINER": "/images/omr.sqsh", "OMR_MOUNTS": "/data:/data"}
    words = start_step(ROOT / "slurm/sft.sbatch", tmp_path, "demo", **variables)
    assert words[1:4] == [
        *(
            "--container-image=/images/omr.sqsh",
            "--container-mounts=/data:/data",
            f"--container-workdir={ROOT}",
        )
    ]
    assert words[4:] == ["python3", "-m", "launch.cli", "sft", "demo"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give at least one stage"),
        (["--sfd", "demo"], "--sfd is none of --sbatch, --data, --sft, --convert, --rl, --eval"),
        (["--sft"], "--sft needs a value"),
    ],
)
def test_the_chain_refuses_what_it_does_not_know(words: list[str], said: str):
    done = subprocess.run([ROOT / "slurm/chain.sh", *words], capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr


def write_command(path: Path, *lines: str) -> None:
    path.write_text("\n".join(("#!/bin/bash", *lines)))
    path.chmod(0o755)


def test_the_chain_splits_words_at_ends_of_lines(tmp_path: Path):
    write_command(tmp_path / "sbatch", f'echo "$@" >> {tmp_path}/given', "echo 7")
    words = ["--sbatch", "-p gpu\n -A a", "--sft", "--nodes=4 --\n demo\n --run $(id)", "--eval", "demo"]
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run([ROOT / "slurm/chain.sh", *words], env=env, check=True)
    start = "--parsable --kill-on-invalid-dep=yes"
    assert (tmp_path / "given").read_text().splitlines() == [
        f"{start} -p gpu -A a --nodes=4 slurm/sft.sbatch demo --run $(id)",
        f"{start} --dependency=afterok:7 -p gpu -A a slurm/eval.sbatch demo",
    ]


@pytest.mark.parametrize(("restarts", "goes_back"), [("", True), ("1", True), ("2", False)])
def test_a_job_goes_back_to_the_queue_a_limited_number_of_times(
    tmp_path: Path, restarts: str, goes_back: bool
):
    write_command(tmp_path / "srun", "exit 75")
    write_command(tmp_path / "scontrol", f'echo "$@" > {tmp_path}/asked')
    write_command(tmp_path / "sleep")
    path = f"{tmp_path}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "1", "OMR_REQUEUES": "2"}
    env |= {"SLURM_RESTART_COUNT": restarts}
    done = subprocess.run(["bash", ROOT / "slurm/eval.sbatch", "demo"], env=env, capture_output=True)
    assert done.returncode == 75 and (tmp_path / "asked").exists() == goes_back


def test_scripts_are_short():
    assert all(len(path.read_text().splitlines()) <= 60 for path in (ROOT / "slurm").iterdir())
