"""Ray on the nodes of a Slurm step starts, and ends with the step in whatever way its tasks end."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest

from launch.ranks.identity import find_step
from launch.ranks.ray_nodes import lead_nodes, serve_nodes
from tests.helpers.hosts import Host, needs_hosts, start_hosts
from tests.helpers.processes import wait_until
from tests.helpers.srun import list_processes, srun

pytestmark = [pytest.mark.heavy, pytest.mark.slow, needs_hosts]


def drive(run: Path, code: int) -> None:
    """A task: its driver looks at Ray's nodes, and ends with `code`, or waits if that is negative."""
    step = find_step("driver")
    assert step is not None
    if step.node > 0:
        sys.exit(serve_nodes(step, run))
    with lead_nodes(step, run, lambda error: code):
        import ray

        from data_pipeline.ray_session import start_ray

        start_ray(nodes=len(step.hosts))
        print("pid", os.getpid(), *sorted(node["NodeManagerAddress"] for node in ray.nodes()), flush=True)
        while code < 0:
            time.sleep(1)
        sys.exit(code)


def words(run: Path, code: int) -> list[str]:
    return [sys.executable, "-m", "tests.rl_loop.multi_host.test_ray_nodes", str(run), str(code)]


def ray_is_gone(host: Host) -> bool:
    return not any("ray" in row for row in list_processes(host))


def test_all_tasks_end_with_the_drivers_code_and_leave_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with start_hosts(["alpha", "beta"], tmp_path) as hosts:
        with srun(hosts, words(run, 9), tmp_path / "first") as tasks:
            file = run / ".ray-7-0-0.json"
            wait_until(file.exists, seconds=60)
            assert file.stat().st_mode & 0o777 == 0o600
            assert tasks.wait(seconds=90) == [9, 9], tasks.output()
            assert " ".join(host.address for host in hosts) in tasks.output()
        assert not list(run.iterdir())
        assert all(ray_is_gone(host) for host in hosts), [list_processes(host) for host in hosts]

        with srun(hosts, words(run, -1), tmp_path / "second", job=8) as tasks:
            wait_until(lambda: hosts[0].address in tasks.output(), seconds=90)
            driver = re.search(r"pid (\d+)", tasks.output())
            assert driver
            hosts[0].run("kill", "-KILL", driver[1])  # without a word
            killed = time.monotonic()
            assert tasks.wait(1, seconds=60) == [1]
            assert time.monotonic() - killed < 20, "the other tasks end within seconds"
            assert "the task on alpha is lost" in tasks.output()
            try:
                wait_until(lambda: all(map(ray_is_gone, hosts)), seconds=20)
            except TimeoutError:
                raise AssertionError([list_processes(host) for host in hosts]) from None


if __name__ == "__main__":
    drive(Path(sys.argv[1]), int(sys.argv[2]))
