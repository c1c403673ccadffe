"""The emulated hosts that other tests stand on are apart where real ones are, and end without a trace."""

import subprocess
from pathlib import Path

from tests.helpers.hosts import needs_hosts, start_hosts


@needs_hosts
def test_hosts_have_their_own_names_processes_and_memory_and_share_files(tmp_path: Path):
    with start_hosts(["node1", "node2"], tmp_path) as (one, two):
        assert one.run("hostname").strip() == "node1"
        assert "10.87" in one.run("getent", "hosts", "node2")
        one.run("touch", "/dev/shm/mine", "/tmp/mine", f"{tmp_path}/ours")
        assert two.run("ls", "/dev/shm").split() == []
        assert "mine" not in two.run("ls", "/tmp").split()
        assert "ours" in two.run("ls", str(tmp_path)).split()
        assert "/tmp/mine" not in two.run("ps", "ax")
        listening = two.popen(["python3", "-m", "http.server", "8000", "--bind", two.address])
        one.run("bash", "-c", f"until exec 3<>/dev/tcp/{two.address}/8000; do sleep 0.05; done")
        two.crash()
        assert listening.wait(10) != 0
        two.start()
        assert "http.server" not in two.run("ps", "ax")
        bridge = one.network.bridge
    assert bridge not in subprocess.run(["ip", "link"], capture_output=True, text=True).stdout
