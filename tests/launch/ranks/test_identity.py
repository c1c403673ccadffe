"""What a rank is told by torchrun and by Slurm: its number, its place on the machine, and where all ranks meet."""

from __future__ import annotations

import pytest

from launch.ranks.identity import count_tasks, find_identity, find_step, first_host, list_hosts

SRUN = {
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "2",
}


def test_srun_ranks_meet_on_the_first_node_of_their_step():
    here, there = find_identity(SRUN), find_identity(SRUN | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"})
    assert here is not None and there is not None
    assert (here.rank, here.world_size, here.local_rank, here.local_size) == (11, 16, 3, 8)
    assert here.init_method == there.init_method
    address, port = here.init_method.rsplit(":", 1)
    assert address == "tcp://gpu03" and 1024 < int(port) < 32_768


def test_steps_of_one_job_meet_at_different_ports():
    steps = [find_identity(SRUN | {"SLURM_STEP_ID": str(n)}) for n in range(3)]
    assert len({step.init_method for step in steps if step}) == 3


def test_address_of_the_user_comes_first():
    both = {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "4000"}
    given, host = find_identity(SRUN | both), find_identity(SRUN | {"MASTER_ADDR": "10.0.0.7"})
    assert given is not None and given.init_method == "env://"
    assert host is not None and host.init_method.startswith("tcp://10.0.0.7:")


def test_srun_without_nodes_is_a_mistake_with_a_way_out():
    with pytest.raises(ValueError, match="set MASTER_ADDR and MASTER_PORT"):
        find_identity({name: value for name, value in SRUN.items() if name != "SLURM_STEP_NODELIST"})


def test_batch_script_of_slurm_is_no_rank():
    assert find_identity({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None


def test_shell_in_a_step_of_slurm_is_no_rank():
    assert find_identity(SRUN | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) is None


def test_torchrun_says_the_place_on_the_machine():
    identity = find_identity(
        {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"} | SRUN
    )
    assert identity is not None
    assert identity.variables() == {
        "RANK": "9",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "8",
        "INIT_METHOD": "env://",
    }


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[03-05,07],cpu1", "gpu03"),
        ("gpu[7,9-11]", "gpu7"),
        ("rack[1-2]node[01-16]", "rack1node01"),
        ("a-[2-4]-ib.site,b1", "a-2-ib.site"),
        ("", ""),
    ],
)
def test_first_host_of_a_node_list(nodes: str, first: str):
    assert first_host(nodes) == first


def test_tasks_of_each_node():
    assert count_tasks("8(x2),4") == [8, 8, 4]
    assert count_tasks("1") == [1]


@pytest.mark.parametrize(
    ("nodes", "hosts"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("gpu[03-05,07],cpu1", ["gpu03", "gpu04", "gpu05", "gpu07", "cpu1"]),
        ("r[1-2]n[09-10]-ib", ["r1n09-ib", "r1n10-ib", "r2n09-ib", "r2n10-ib"]),
    ],
)
def test_all_hosts_of_a_node_list(nodes: str, hosts: list[str]):
    assert list_hosts(nodes) == hosts


ONE_TASK_A_NODE = SRUN | {
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}


def test_step_with_one_task_a_node_is_one_command_on_several_nodes():
    step, again = (
        find_step("omr rl RECIPE", ONE_TASK_A_NODE | more) for more in ({}, {"SLURM_RESTART_COUNT": "1"})
    )
    assert step is not None and again is not None
    assert (step.node, step.hosts, step.name) == (1, ("gpu03", "gpu04"), "1234-2-0")
    assert again.name != step.name and 1024 < step.port < 32_768
    assert find_step("omr rl RECIPE", {}) is None
    alone = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "RAY_ADDRESS": "10.0.0.1:6379"}
    assert find_step("omr rl RECIPE", SRUN | alone) is None


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8"}, "RANK=3 and WORLD_SIZE=8: torchrun"),
        (SRUN, r"SLURM_STEP_TASKS_PER_NODE=8\(x2\): srun started several tasks on a node"),
    ],
)
def test_command_that_starts_its_own_processes_says_how_it_is_started(env: dict[str, str], said: str):
    with pytest.raises(
        ValueError, match=f"{said}.*use `srun --ntasks-per-node=1 omr rl RECIPE` on several nodes"
    ):
        find_step("omr rl RECIPE", env)


def test_running_ray_cluster_is_joined_by_one_task():
    with pytest.raises(
        ValueError, match=r"RAY_ADDRESS=h:1 names .* srun started 2 tasks; use `omr rl RECIPE` once"
    ):
        find_step("omr rl RECIPE", ONE_TASK_A_NODE | {"RAY_ADDRESS": "h:1"})
