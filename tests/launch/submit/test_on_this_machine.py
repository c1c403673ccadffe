"""`omr launch --on local`: a job of this machine, that outlives its start and is asked about from other processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from launch.submit.code import Code
from launch.submit.jobs import find_state, read_birth
from launch.submit.records import JobRecord, begin_records, read_record, write_record
from tests.helpers.launching import run_omr
from tests.helpers.processes import wait_until

DIGITS = ["launch", "data", "digits", "data", "--on", "local", "--validation", "1", "--test", "1", "--train"]


def test_job_ends_with_its_code_log_and_records(tmp_path: Path):
    done, again, listed = run_omr(
        [*DIGITS, "8"], [*DIGITS, "9"], ["launch", "status", "data", "--json"], cwd=tmp_path
    )
    records = tmp_path / "data.launch"
    assert done.code == 0, done.out + done.err
    assert "samples in data/train" in done.out and "COMPLETED" in done.err
    assert (tmp_path / "data" / "train" / "index.json").is_file()
    assert again.code == 2, "the folder has other settings"
    assert "FAILED, exit code 2" in again.err and "omr: error:" in again.out
    assert listed.code == 1
    found = json.loads(listed.out)
    assert (found["state"], found["exit_code"], found["ended"]) == ("FAILED", 2, True)
    (earlier,) = (records / "earlier").iterdir()
    assert json.loads((earlier / "job.json").read_text())["command"][-1] == "8"
    assert (earlier / "exit_code").read_text() == "0\n" and (records / "exit_code").read_text() == "2\n"
    assert "\nnemo-run==0.11.1\n" in (records / "environment.txt").read_text()
    assert f"PYTHONPATH={Path(__file__).parents[3]}" in (records / "script.sh").read_text()


def test_detached_job_runs_on_and_is_cancelled_with_all_its_processes(tmp_path: Path):
    (started,) = run_omr([*DIGITS, "3000000", "--detach"], cwd=tmp_path)
    assert started.code == 0, started.err
    record = read_record(tmp_path / "data.launch")
    wait_until(lambda: list((tmp_path / "data").glob("*")), seconds=60, every=0.1)
    running, second, cancelled, ended = run_omr(
        ["launch", "status", "data"],
        [*DIGITS, "3000000"],
        ["launch", "cancel", "data"],
        ["launch", "status", "data"],
        cwd=tmp_path,
    )
    assert running.code == 0 and running.out.startswith(f"job {record.job}: RUNNING (process {record.job})\n")
    assert second.code == 2 and "is RUNNING" in second.err and "omr launch cancel data" in second.err
    assert cancelled.out == f"job {record.job} is cancelled\n"
    assert "CANCELLED" in ended.out
    assert read_birth(int(record.job)) != record.born
    left = [pid for pid in filter(str.isdigit, os.listdir("/proc")) if _session(int(pid)) == int(record.job)]
    assert not left


def test_setup_that_fails_ends_the_job(tmp_path: Path):
    (tmp_path / "bad.toml").write_text('kind = "local"\nsetup = ["source /none/activate"]\n')
    (failed,) = run_omr(["launch", "data", "digits", "data", "--on", "bad.toml"], cwd=tmp_path)
    assert failed.code == 1 and "/none/activate: No such file" in failed.out and "FAILED" in failed.err
    assert not (tmp_path / "data").exists()


def test_a_job_that_does_not_start_leaves_the_records_of_the_one_before(tmp_path: Path):
    records, cluster = tmp_path / "launch", tmp_path / "mine.toml"
    cluster.write_text('kind = "local"\n')
    job = JobRecord(kind="local", job="1", command=("sft", "demo"), folder="/", log="", submitted="")
    with begin_records(records, Code(root=tmp_path, revision="old"), cluster):
        write_record(records, job)
    with pytest.raises(OSError, match="refused"), begin_records(records, Code(root=tmp_path), cluster):
        raise OSError("sbatch refused")
    assert read_record(records) == job and (records / "revision").read_text() == "old\n"


def test_a_process_of_another_machine_is_not_taken_for_ended(tmp_path: Path):
    job = JobRecord(
        kind="local", job="1", command=("sft",), folder="/", log="", submitted="", machine="elsewhere"
    )
    with pytest.raises(ValueError, match="process 1 of this run was started on elsewhere"):
        find_state(tmp_path, job)
    (tmp_path / "exit_code").write_text("3\n")
    assert find_state(tmp_path, job).exit_code == 3


def _session(pid: int) -> int:
    """Returns the session of a process that runs; 0 for one that has ended."""
    try:
        return os.getsid(pid) if read_birth(pid) else 0
    except ProcessLookupError:
        return 0
