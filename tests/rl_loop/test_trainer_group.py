"""The trainer's processes under Ray: shares, combined results, weights that this process can read."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.config import ImageConfig
from data_pipeline.failures import RankError
from data_pipeline.ray_session import start_ray, stop_ray
from megatron_omr.config import FaultConfig
from megatron_omr.convert.names import modern_name
from megatron_omr.train.metrics import read_json_lines
from rl.mismatch.watch import EnginesDisagree
from rl.placement.places import Placement
from rl.trainer_group import TrainerGroup
from rl.types import TrainRollout
from rl.weight_sync.shared_memory import read_place
from tests.helpers.processes import wait_until
from tests.helpers.rl_training import oracle_rollouts, rl_config
from tests.helpers.weights import received

pytestmark = [pytest.mark.heavy, pytest.mark.slow]


@pytest.fixture(scope="module")
def rollouts(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TrainRollout]:
    return oracle_rollouts(rl_config(tiny_hf, tmp_path_factory.mktemp("rollouts"), trainers=2))


@pytest.fixture
def trainers(tiny_hf: Path, tmp_path: Path) -> Iterator[TrainerGroup]:
    start_ray()
    try:
        config = replace(rl_config(tiny_hf, tmp_path, trainers=2), fault=FaultConfig(beat=0.5, silence=6))
        group = TrainerGroup(config, Placement(config))
        yield group
        group.close()
    finally:
        stop_ray()


def test_two_trainers_check_train_send_and_save(
    trainers: TrainerGroup,
    rollouts: list[TrainRollout],
    tiny_hf: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One test, because starting the trainers takes most of its time."""
    assert trainers.resume() == (0, {})
    place = trainers.open_sender()
    assert place.pop("inputs")["image.min_pixels"] == "784"
    place = read_place(place)
    assert trainers.send_weights(version=3) == ""
    base = {modern_name(name): tensor for name, tensor in load_file(tiny_hf / "model.safetensors").items()}
    sent = received(place, 3)
    assert sent.keys() == base.keys()
    assert all(torch.equal(sent[name], base[name]) for name in base)

    # float32 sums in another order give 1e-6; another tensor or prompt would give 0.1 and more
    gaps = trainers.check_engines(rollouts, 0)
    assert gaps["mismatch_mean"] <= gaps["mismatch_max"] < 1e-4
    assert trainers.check_engines(rollouts[:1], 0)["mismatch_max"] < 1e-4  # one rank gets none
    stale = trainers.check_engines(rollouts, 1)
    assert stale.keys() == {"mismatch_tokens", "mismatch_stale"} and stale["mismatch_stale"] < 1e-4
    other = [replace(r, logprobs=r.logprobs - 1) for r in rollouts]
    with pytest.raises(EnginesDisagree, match=r"difference\| 1 .* on 4 rollouts.*max_mismatch") as stop:
        trainers.check_engines(other, 0)
    assert stop.value.folder == tmp_path / "run-2" / "mismatch" / "step-00000000"
    samples = read_json_lines(stop.value.folder / "samples.jsonl")
    assert {sample["id"] for sample in samples} == {r.ref.id for r in rollouts}
    assert sorted(sample["token_ids"] for sample in samples) == sorted(r.token_ids.tolist() for r in rollouts)
    assert {sample["tokens"][-1] for sample in samples} == {"<|im_end|>"}
    assert all(
        np.subtract(sample["engine_logprobs"], sample["trainer_logprobs"]) == pytest.approx(-1, abs=1e-4)
        for sample in samples
    )

    metrics = trainers.train([rollouts[:2], rollouts[2:]], 0)
    assert metrics["skipped_steps"] == 0 and metrics["grad_norm"] > 0
    assert trainers.send_weights(version=4) == ""
    moved = received(place, 4)
    assert not any(torch.equal(moved[name], base[name]) for name in base)

    trainers.save(2, {"cursor": 7})
    trainers.save(3, {"cursor": 8})
    trainers.save_hf()  # waits for the checkpoint, too
    assert (tmp_path / "run-2/hf/model.safetensors").exists()
    (tmp_path / "run-2" / "checkpoints" / "step-00000003" / "state.json").write_bytes(b"")
    assert trainers.resume() == (2, {"cursor": 7})
    (message,) = caplog.messages
    assert message.startswith("the run continues from step-00000002: ")
    banned = ChatEncoder.from_hf(tiny_hf, ImageConfig()).image_token_id
    with pytest.raises(ValueError, match="ban them while sampling"):
        trainers.check_engines([replace(rollouts[0], token_ids=np.array([banned, 2], np.int32))], 0)

    trainers.check_alive()
    places = trainers._on_all(lambda worker: (os.getpid(), dist.get_rank()))
    (victim,) = [pid for pid, rank in places if rank == 1]
    os.kill(victim, signal.SIGSTOP)
    with pytest.raises(RankError) as stop:
        trainers.train([rollouts], 0)
    assert f"rank 1 on host {socket.gethostname()} (process {victim}) has given no sign of life" in str(
        stop.value
    )
    assert "last phase: " in str(stop.value) and ".py:" in str(stop.value)
    os.kill(victim, signal.SIGCONT)
    wait_until(lambda: not _raises(trainers.check_alive))

    os.kill(victim, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(RankError) as death:
        wait_until(trainers.check_alive, seconds=30)  # as while engines generate
    assert str(death.value).startswith("trainer rank 1 was killed or crashed")
    with pytest.raises(RankError, match="trainer rank 1 was killed"):
        trainers.train([rollouts], 0)
    assert time.monotonic() - started < 30  # 7 s were seen, 6 of them for what rank 0 may have to say


def _raises(call: Callable[[], object]) -> bool:
    try:
        call()
    except RankError:
        return True
    return False


def test_failure_is_its_message_and_nothing_is_left(tiny_hf: Path, tmp_path: Path) -> None:
    """Raised on all ranks when they start."""
    config = rl_config(tiny_hf, tmp_path, trainers=2)
    start_ray()
    try:
        config = replace(config, model=str(tmp_path / "nowhere"))
        group = TrainerGroup(config, Placement(config))
        with pytest.raises(ValueError, match="nowhere") as mistake:
            group.resume()
        assert "\n" not in str(mistake.value)
        group.close()
    finally:
        stop_ray()
    assert not list(Path(config.run).iterdir())
