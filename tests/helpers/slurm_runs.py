"""Tiny runs of the batch scripts in slurm/ on the tests' Slurm: data and model, what to submit, what a run has done."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.hosts import ROOT
from tests.helpers.processes import wait_until
from tests.helpers.slurm_cluster import SlurmCluster

TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=4")
TINY_DATA = ("--train", "48", "--validation", "4", "--test", "16")
RL_SIZES = "--steps 2 --prompts_per_step 4 --sampling.n 4 --sampling.max_tokens 24 --trainers 1 --engine.num_engines 1"
JOB_ENV = {"OMP_NUM_THREADS": "1", "OMR_HOME": str(ROOT), "OMR_VENV": sys.prefix, "PYTHONPATH": ""}


@dataclass
class TinyRuns:
    """Where tiny runs find their data and model, and how they are submitted."""

    root: Path
    cluster: SlurmCluster

    def make_model(self) -> None:
        """Writes data and an untrained model for it, without Slurm."""
        omr("data", "digits", f"{self.root}/data", *TINY_DATA)
        omr("tiny", f"{self.root}/data/train", f"{self.root}/model")

    def sft_words(self, run: str, *, data: str = "data", model: str = "model") -> list[str]:
        """Returns the words after `omr sft` of a run that saves every 8 of its 32 steps."""
        values = {
            "run": f"{self.root}/{run}",
            "model": str(self.root / model),
            "steps": 32,
            "loader.shards": f"{self.root}/{data}/train",
            "loader.global_batch_size": 8,
            "checkpoint.every": 8,
        }
        return ["demo", *(word for name, value in values.items() for word in (f"--{name}", str(value)))]

    def submit_sft(self, run: str, *words: str) -> str:
        """Submits the run on two nodes, with more words for `omr`; returns the job's number."""
        options = (*TWO_NODES, f"--output={self.root}/{run}-%j.log")
        return self.cluster.submit(*options, "slurm/sft.sbatch", *self.sft_words(run), *words, env=JOB_ENV)

    def submit_chain(self) -> dict[str, str]:
        """Submits all stages with slurm/chain.sh; returns the jobs' numbers by stage."""
        chain, two_nodes = f"{self.root}/chain", " ".join(TWO_NODES)
        stages = {
            "sbatch": f"--output={chain}/%x.log",
            "data": f"--cpus-per-task=4 -- digits {chain}/data {' '.join(TINY_DATA)}",
            "sft": f"{two_nodes} -- {' '.join(self.sft_words('chain/sft', data='chain/data'))}",
            "convert": f"-- to-hf {chain}/sft/checkpoints/step-00000032 {chain}/converted",
            "rl": f"{two_nodes} -- demo --run {chain}/rl --model {chain}/converted {RL_SIZES} "
            f"--shards {chain}/data/train",
            "eval": f"--cpus-per-task=4 --gpus-per-node=0 -- demo --model {chain}/rl/hf "
            f"--shards {chain}/data/test --out {chain}/eval --engine.num_engines 1",
        }
        Path(chain).mkdir()
        words = [word for stage, value in stages.items() for word in (f"--{stage}", value)]
        printed = self.cluster.run("slurm/chain.sh", *words, env=JOB_ENV)
        return dict(line.split() for line in printed.splitlines())

    def finish_sft(self) -> str:
        """Returns a run that nothing interrupted: the chain's, or one that is run here."""
        if (self.root / "chain/sft/hf").exists():
            return "chain/sft"
        self.cluster.wait(self.submit_sft("undisturbed"), "COMPLETED")
        return "undisturbed"

    def wait_for_step(self, run: str, step: int, *, seconds: float = 120) -> None:
        """Waits until the run has done `step` steps in all."""
        wait_until(lambda: self.count_steps(run) >= step, seconds=seconds, every=0.05)

    def count_steps(self, run: str) -> int:
        """Returns the steps that the run's metrics hold."""
        metrics = self.root / run / "metrics.jsonl"
        return metrics.read_text().count("\n") if metrics.exists() else 0

    def read_weights(self, run: str) -> bytes:
        """Returns the weights that the run wrote at its end."""
        return (self.root / run / "hf" / "model.safetensors").read_bytes()


def omr(*words: str) -> str:
    """Returns what an `omr` command prints on this machine."""
    command = [sys.executable, "-m", "launch.cli", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
