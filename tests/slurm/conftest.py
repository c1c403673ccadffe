"""One folder of tiny data, a tiny model and the runs on them, for all tests through the batch scripts."""

from __future__ import annotations

import pytest

from tests.helpers.slurm_cluster import SlurmCluster
from tests.helpers.slurm_runs import TinyRuns


@pytest.fixture(scope="session")
def runs(slurm_session: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> TinyRuns:
    runs = TinyRuns(tmp_path_factory.mktemp("runs"), slurm_session)
    runs.make_model()
    return runs
